"""What the system does with the folder of a base model."""

from pathlib import Path

from engine.catalogue import Catalogue
from engine.errors import JobError
from engine.estimate.architecture import Architecture
from tests.hostile.artifact import home_of

_TURNS = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}]


def check_model(folder: Path, home: Path | None = None) -> set[str]:
    """Fetches and describes the model, and computes its size."""
    catalogue = Catalogue(home or home_of(folder), {"hostile": folder})
    reasons = set()
    try:
        catalogue.fetch("hostile")
        catalogue.fetch("hostile", tokenizer_only=True)
    except JobError as error:
        reasons.add(error.reason)
    try:
        described = catalogue.describe("hostile")
    except JobError as error:
        # Both refuse it, and for the same reason: otherwise two answers are expected.
        reasons.add(error.reason)
    else:
        found = Architecture.of_tensors(described.config, described.shapes)
        assert found.num_active_parameters < 1 << 63
    return reasons


def check_tokenizer(folder: Path) -> set[str]:
    """Does the same, then loads the tokenizer, renders a conversation with the model's template and encodes it."""
    from engine.data.tokenizer import Tokenizer

    if reasons := check_model(folder):
        return reasons
    tokenizer = Tokenizer(folder)
    text = tokenizer.render(_TURNS, generation_prompt=True)
    tokenizer.decode(tokenizer.encode(text).ids)
    tokenizer.encode_all([text, "How are you? " * 100])
    return set()
