"""Which variables of a service its children get."""

import pytest

from chassis.child.child_process import child_environment


def test_settings_of_the_heap_reach_children_and_passwords_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """Operators limit the memory of trainings on a CPU by them."""
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "1048576")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    found = child_environment({})
    assert found["MALLOC_MMAP_THRESHOLD_"] == "1048576"
    assert "AWS_SECRET_ACCESS_KEY" not in found
