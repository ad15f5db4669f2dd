"""Decides whether a turn is trained, from the keys that other programs use for it.

| key of a turn                     | used by                | trained when                                    |
|-----------------------------------|------------------------|-------------------------------------------------|
| weight                            | OpenAI, Mistral        | 1                                               |
| train, training, trainable        | Axolotl                | true                                            |
| loss, loss_scale, loss_weight     | ms-swift               | true or 1                                       |
| loss_mask                         | verl                   | 1                                               |
| masked                            | torchtune              | false                                           |
| train_detail, training_detail     | Axolotl                | refused: parts of a turn                        |
| mask                              | several, with opposite | refused                                         |
|                                   | meanings               |                                                 |
| label: false or 0                 | preference methods     | refused                                         |

Values are true and false, 1 and 0, as numbers or as text. Without any of the keys every assistant turn is trained.
"""

from collections.abc import Mapping
from typing import Any, Final

from engine.data.row_errors import BadValue

TRAINS: tuple[str, ...] = ("weight", "train", "training", "trainable", "loss", "loss_scale", "loss_weight", "loss_mask")
"""Keys whose true value means that the turn is trained."""
MASKS: tuple[str, ...] = ("masked",)
"""Keys whose true value means that the turn is not trained."""
_PARTS: Final = ("train_detail", "training_detail")
_KNOWN: Final = frozenset((*TRAINS, *MASKS, *_PARTS, "mask", "label"))
_ASKS: Final = ("train", "training", "trainable", "loss_mask")
"""Keys that request training when they are true. The other keys are true by default in their programs."""
_FLAGS: Final = {"1": True, "1.0": True, "true": True, "0": False, "0.0": False, "false": False}
_INSTEAD: Final = 'write "train": true or "train": false instead'


def flag_of(value: Any) -> bool | None:
    """Returns True for true and 1, False for false and 0, as numbers or as text; None for any other value."""
    if isinstance(value, str):
        return _FLAGS.get(value.strip().lower())
    return bool(value) if value in (0, 1) else None


def is_trained(turn: Mapping[str, Any], place: str, *, is_answer: bool) -> bool:
    """Returns True if the keys of a turn do not exclude it from training; `is_answer` is True for assistant turns.

    Raises BadValue: BAD_WEIGHT, CONTRADICTORY_WEIGHTS, UNSUPPORTED_TURN_KEY, NOT_AN_ANSWER.
    """
    given = {key: turn[key] for key in turn.keys() & _KNOWN if turn[key] not in (None, "", [])}
    if not given:
        return True
    if is_answer:
        _refuse_unsupported(given, place)
    said: dict[str, bool] = {key: _flag(key, given[key], place) for key in TRAINS if key in given}
    said |= {key: not _flag(key, given[key], place) for key in MASKS if key in given}
    if not is_answer:
        for key in _ASKS:
            if said.get(key):
                message = f"{place} has {key} = {_shown(given[key])}; only assistant turns can be trained"
                raise BadValue(place, "NOT_AN_ANSWER", message)
    if len(set(said.values())) > 1:
        values = " and ".join(f"{key} = {_shown(given[key])}" for key in said)
        message = f"{place} has {values}, which contradict each other; keep one of them"
        raise BadValue(place, "CONTRADICTORY_WEIGHTS", message)
    return all(said.values())


def _refuse_unsupported(given: Mapping[str, Any], place: str) -> None:
    for key in _PARTS:
        if key in given:
            message = f"{place} has {key}, but a turn is trained whole or not at all; {_INSTEAD}"
            raise BadValue(place, "UNSUPPORTED_TURN_KEY", message)
    if "mask" in given:
        message = f"{place} has mask, which means trained in some programs and not trained in others; {_INSTEAD}"
        raise BadValue(place, "UNSUPPORTED_TURN_KEY", message)
    if flag_of(given.get("label")) is False:
        message = f"{place} has label = {_shown(given['label'])}, which may mark an unwanted answer; {_INSTEAD}"
        raise BadValue(place, "UNSUPPORTED_TURN_KEY", message)


def _flag(key: str, value: Any, place: str) -> bool:
    flag = flag_of(value)
    if flag is None:
        message = (
            f"{place} has {key} = {_shown(value)}; it must be 0 or 1, true or false: a turn is trained whole or not at "
            "all"
        )
        raise BadValue(place, "BAD_WEIGHT", message)
    return flag


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)[:40]
