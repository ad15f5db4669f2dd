"""The general regression set: short questions whose answers most language models know.

A model that was fine-tuned and answers them worse has forgotten. The set says nothing about how much a model knows.
"""

import itertools
from collections.abc import Iterator
from typing import Final

_CAPITALS: Final = {
    "France": "Paris", "Germany": "Berlin", "Italy": "Rome", "Spain": "Madrid", "Portugal": "Lisbon",
    "Greece": "Athens", "Austria": "Vienna", "Poland": "Warsaw", "Norway": "Oslo", "Sweden": "Stockholm",
    "Denmark": "Copenhagen", "Finland": "Helsinki", "Ireland": "Dublin", "Hungary": "Budapest", "Japan": "Tokyo",
    "China": "Beijing", "Egypt": "Cairo", "Russia": "Moscow", "Canada": "Ottawa", "Peru": "Lima",
}  # fmt: skip
_OPPOSITES: Final = {
    "hot": "cold", "big": "small", "fast": "slow", "up": "down", "day": "night", "open": "closed", "early": "late",
    "happy": "sad", "hard": "soft", "full": "empty", "light": "dark", "old": "young", "rich": "poor", "strong": "weak",
}  # fmt: skip
_PLURALS: Final = {
    "child": "children", "mouse": "mice", "foot": "feet", "tooth": "teeth", "woman": "women", "city": "cities",
    "leaf": "leaves", "box": "boxes", "book": "books", "knife": "knives",
}  # fmt: skip
_PAST: Final = {
    "go": "went", "eat": "ate", "see": "saw", "write": "wrote", "take": "took", "give": "gave", "buy": "bought",
    "think": "thought", "run": "ran", "swim": "swam",
}  # fmt: skip
_FRENCH: Final = {
    "water": "eau", "bread": "pain", "house": "maison", "dog": "chien", "cat": "chat", "red": "rouge", "one": "un",
    "friend": "ami",
}  # fmt: skip
_DAYS: Final = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_MONTHS: Final = ("January", "February", "March", "April", "May", "June", "July", "August", "September", "October")
_FACTS: Final = {
    "At what temperature in degrees Celsius does water freeze?": "Water freezes at 0 degrees Celsius.",
    "At what temperature in degrees Celsius does water boil at sea level?": "Water boils at 100 degrees Celsius.",
    "How many days are there in a week?": "There are seven days in a week.",
    "How many minutes are there in an hour?": "There are 60 minutes in an hour.",
    "How many centimetres are there in a metre?": "There are 100 centimetres in a metre.",
    "How many legs does a spider have?": "A spider has eight legs.",
    "Which planet is closest to the Sun?": "Mercury is the planet closest to the Sun.",
    "Which planet is the largest in the solar system?": "Jupiter is the largest planet in the solar system.",
    "What gas do plants take in from the air?": "Plants take in carbon dioxide from the air.",
    "What is the chemical formula of water?": "The chemical formula of water is H2O.",
    "What colour do you get when you mix blue and yellow?": "Mixing blue and yellow gives green.",
    "Who wrote Romeo and Juliet?": "William Shakespeare wrote Romeo and Juliet.",
    "What is the largest ocean on Earth?": "The Pacific Ocean is the largest ocean on Earth.",
    "What do bees make?": "Bees make honey.",
    "In which direction does the Sun rise?": "The Sun rises in the east.",
    "Write a Python expression for the length of the list items.": "len(items)",
    "Write a Python statement that prints the word hello.": 'print("hello")',
    "Which language is spoken in Brazil?": "Portuguese is spoken in Brazil.",
}


def general_rows() -> Iterator[dict[str, str]]:
    """Yields the rows, with the columns question and answer, always the same ones in the same order."""
    for country, capital in _CAPITALS.items():
        yield _row(f"What is the capital of {country}?", f"The capital of {country} is {capital}.")
    for word, opposite in _OPPOSITES.items():
        yield _row(f"What is the opposite of {word}?", f"The opposite of {word} is {opposite}.")
    for word, plural in _PLURALS.items():
        yield _row(f"What is the plural of {word}?", f"The plural of {word} is {plural}.")
    for verb, past in _PAST.items():
        yield _row(f"What is the past tense of {verb}?", f"The past tense of {verb} is {past}.")
    for word, french in _FRENCH.items():
        yield _row(f"What is the French word for {word}?", f"The French word for {word} is {french}.")
    for names, kind in ((_DAYS, "day"), (_MONTHS, "month")):
        for before, after in itertools.pairwise(names):
            yield _row(f"Which {kind} comes after {before}?", f"{after} comes after {before}.")
    for first in range(2, 10):
        yield _row(f"What is {first} plus {first + 3}?", f"{first} plus {first + 3} is {2 * first + 3}.")
        yield _row(f"What is {first} times {first}?", f"{first} times {first} is {first * first}.")
    for question, answer in _FACTS.items():
        yield _row(question, answer)


def _row(question: str, answer: str) -> dict[str, str]:
    return {"question": question, "answer": answer}
