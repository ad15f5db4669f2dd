"""docs/estimates.md agrees with the code."""

from benchmarks.estimates import AIMS, DOCUMENT, configurations, matrix_lines


def test_the_matrix_in_the_document_is_current() -> None:
    """Readers choose hardware by it."""
    text = DOCUMENT.read_text("utf-8")
    for line in matrix_lines():
        assert line in text


def test_document_contains_a_complete_sweep() -> None:
    """The document has at least 50 configurations with all figures, and their summary."""
    lines = DOCUMENT.read_text("utf-8").splitlines()
    rows = [line for line in lines if line.count("|") == 12 and " × " in line]
    assert len(rows) == len(configurations()) >= 50
    for quantity in AIMS:
        (told,) = [line for line in lines if line.startswith(f"| {quantity} | ≤")]
        assert " of " in told
