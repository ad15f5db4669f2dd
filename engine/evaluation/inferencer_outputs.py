"""Files of answers with the expected ones.

JSON Lines with the keys system_prompt, user_prompt, assistant_response and ground_truth.
"""

import json
from pathlib import Path
from typing import Final

from engine.errors import JobError, Violation

ANSWER: Final = "assistant_response"
EXPECTED: Final = "ground_truth"
_ASKED: Final = ("system_prompt", "user_prompt")
_LISTED: Final = 20


def read_outputs(path: Path) -> tuple[list[tuple[str, str]], list[str], list[str]]:
    """Returns what was asked (system prompt and prompt), the answers, and the expected answers.

    Raises JobError("BAD_DATA") with one violation for each row without an answer or an expected one.
    """
    asked, answers, expected = [], [], []
    violations = []
    with path.open(encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                texts = [row.get(name) or "" for name in _ASKED]
                given, right = row[ANSWER], row[EXPECTED]
            except (ValueError, RecursionError, AttributeError, KeyError, TypeError):
                violations.append(Violation(f"row {number}", f"is no object with {ANSWER} and {EXPECTED}."))
                continue
            if not all(isinstance(text, str) for text in (*texts, given, right)):
                violations.append(Violation(f"row {number}", "has a value that is no text."))
                continue
            asked.append((texts[0], texts[1]))
            answers.append(given)
            expected.append(right)
    if violations or not answers:
        first = f"{violations[0].field} {violations[0].description}" if violations else "it has no rows."
        advice = f"Each line is a JSON object with {', '.join((*_ASKED, ANSWER, EXPECTED))}."
        raise JobError("BAD_DATA", f"{path.name}: {first}", advice, violations[:_LISTED])
    return asked, answers, expected
