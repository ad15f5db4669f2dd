"""The names of the operator's tasks of lm-evaluation-harness."""

import logging
from pathlib import Path

import pytest

from services.evaluator.harness_tasks import HarnessTasks, task_names
from tests.services.evaluator.harness_tasks import write_tasks


def test_tasks_groups_and_tags_have_the_names_that_the_harness_gives_them(tmp_path: Path) -> None:
    """A name that is announced but unknown to the harness fails every evaluation that a user asks for with it."""
    from lm_eval.tasks import TaskManager

    folder = write_tasks(
        tmp_path / "tasks",
        _defaults="output_type: generate_until\ntag: all_sums\n",
        more_sums="include: _defaults.yaml\ntask: more_sums\ndoc_to_text: !function prompts.text\n",
        both="group: both\ntask: [sums, colours]\n",
    )
    (folder / "deeper").mkdir()
    (folder / "deeper" / "task.yaml").write_text("include: ../_defaults.yaml\ntask: deeper_sums\n")

    names = task_names(folder)

    assert names == ["all_sums", "both", "choices", "colours", "deeper_sums", "more_sums", "sums"]
    assert names == TaskManager(include_path=str(folder), include_defaults=False).all_tasks


def test_reading_the_names_runs_no_code(tmp_path: Path) -> None:
    """The process that reads them has the keys of the artifact store; code of a task belongs into its child."""
    folder = write_tasks(tmp_path / "tasks", bad="task: bad\nprocess_docs: !function code.change\n")
    (folder / "code.py").write_text("raise SystemExit('run')\n")

    assert "bad" in task_names(folder)


@pytest.mark.parametrize(
    "text",
    [
        "task: [",
        "- a list",
        "task: loop\ninclude: broken.yaml",
        "task: far\ninclude: ../outside.yaml",
        "include: no.yaml",
    ],
)
def test_a_file_that_cannot_be_read_is_logged_and_left_out(
    text: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """An operator who mistypes one file must learn which, and the other tasks must stay available."""
    (tmp_path / "outside.yaml").write_text("output_type: generate_until\n")
    folder = write_tasks(tmp_path / "tasks", broken=text)

    assert task_names(folder) == ["choices", "colours", "sums"]
    (said,) = (record.getMessage() for record in caplog.records if record.levelno == logging.ERROR)
    assert "FTF_EVALUATOR_HARNESS_TASKS" in said and "broken.yaml" in said


def test_a_missing_folder_is_logged_and_means_no_tasks(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """An operator who mistypes the folder must learn of it, and the evaluator must do all its other work."""
    tasks = HarnessTasks(tmp_path / "mistyped")

    tasks.read()

    assert tasks.names == []
    assert "mistyped" in caplog.text
