"""Detects columns that supervised training on text does not support: preference labels and pairs, images, audio, video.

A row is not refused if the caller mapped the columns that form it, because the mapping says which columns are used.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from engine.config.advice import mapping
from engine.data.row_errors import BadValue
from engine.data.rows import RowProblem
from engine.data.turn_weights import TRAINS, flag_of
from engine.errors import JobError

_REJECTED: Final = ("rejected", "rejected_response", "rejected_messages")
_LABELS: Final = ("label", "kto_tag")
_LABELLED_FORMATS: Final = ("chat", "prompt_completion")
"""Formats in which preference methods keep their labels. Next to a question or an instruction, a label is more often
the class of a classification."""
_QUESTION_FORMATS: Final = ("question_answer", "instruction")
_MEDIA: Final = ("image", "images", "audio", "audios", "video", "videos", "pixel_values")
_PLACEHOLDER: Final = re.compile(r"<(?:\|?(?:image|video|audio)(?:_pad)?\|?|(?:image|video|audio)_?[0-9]+)>")


def refuse_preferences(values: Mapping[str, Any], format_: str, columns: Mapping[str, str]) -> None:
    """Raises JobError("UNSUPPORTED_FORMAT") for a row of a preference method. `columns` are those that form a row of
    the format, with their names in the file."""
    keep = f" Use {mapping(columns)} to train every row as it is." if columns else ""
    if format_ == "preference" or any(isinstance(values.get(name), str | list | dict) for name in _REJECTED):
        raise JobError(
            "UNSUPPORTED_FORMAT",
            "The rows are preference pairs (a chosen and a rejected answer); supervised training learns one answer, "
            "not which of two is better.",
            f"To train the chosen answers, use {mapping({'completion': 'chosen'})} beside the column prompt, or "
            f"{mapping({'messages': 'chosen'})}." + ("" if "chosen" in values else keep),
        )
    for name in _LABELS if format_ in _LABELLED_FORMATS else _LABELS[1:]:
        if flag_of(values.get(name)) is not None:
            raise JobError(
                "UNSUPPORTED_FORMAT",
                f"The rows have preference labels (column {name} is true or false); supervised training would "
                "also learn the unwanted answers.",
                f"Keep the rows whose {name} is true, and remove the column.{keep}",
            )


def refuse_media(values: Mapping[str, Any], columns: Mapping[str, str]) -> None:
    """Raises BadValue("UNSUPPORTED_MEDIA") for a row with images, audio or video. `columns` are those that form a row
    of the format, with their names in the file."""
    for name in _MEDIA:
        if values.get(name) and name not in columns:
            message = (
                f"has {name}, which would be ignored: only text is trained; drop these rows, or use "
                f"{mapping(columns)} to train their text alone"
            )
            raise BadValue(name, "UNSUPPORTED_MEDIA", message)


def unused_columns(number: int, values: Mapping[str, Any], format_: str) -> Iterator[RowProblem]:
    """Yields warnings about columns that seem to decide whether a row is trained, but are not used."""
    if format_ in _QUESTION_FORMATS and flag_of(values.get("label")) is not None:
        message = "column label is not used: the answer is trained whatever its label; drop unwanted rows"
        yield RowProblem(number, "label", "UNUSED_LABEL", message, "warns")
    if format_ == "chat":
        for name in TRAINS:
            if values.get(name) is not None and flag_of(values[name]) is not True:
                message = (
                    f"column {name} is not used: every row counts the same; drop the row, or set {name} in its turns"
                )
                yield RowProblem(number, name, "UNUSED_WEIGHT", message, "warns")


def placeholder(number: int, column: str, text: str) -> RowProblem | None:
    """Returns a warning if the text has a placeholder for an image, audio or video."""
    if found := _PLACEHOLDER.search(text):
        message = (
            f"{column} has the placeholder {found[0]}, which is trained as text; remove it if it stands for a file"
        )
        return RowProblem(number, column, "MEDIA_PLACEHOLDER", message, "warns")
    return None
