"""Tasks of lm-evaluation-harness that the running evaluators have.

An early refusal, for people who mistype a name: the evaluator that takes the work checks its own tasks.
"""

import difflib
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from chassis.errors import InvalidArgument, Violation
from finetuneflow.v1.work_pb2 import Node

_LISTED: Final = 30


async def check_harness_tasks(asked: Sequence[str], path: str, nodes: Callable[[], Awaitable[list[Node]]]) -> None:
    """Checks the tasks that an evaluation names; `path` is that of the section.

    Raises InvalidArgument("UNKNOWN_HARNESS_TASK") if no running evaluator has one of them, and Unavailable while the
    broker is unavailable.
    """
    if not asked:
        return
    known = sorted({name for node in await nodes() for name in node.harness_tasks})
    found = [
        Violation(f"{path}.harness_tasks[{index}]", _problem(name, known))
        for index, name in enumerate(asked)
        if name not in known
    ]
    if found:
        raise InvalidArgument("UNKNOWN_HARNESS_TASK", f"{found[0].field}: {found[0].description}", found)


def _problem(name: str, known: Sequence[str]) -> str:
    problem = f"no running evaluator has the task {name[:128]!r} of lm-evaluation-harness."
    if not known:
        return f"{problem} None has any: the operator sets FTF_EVALUATOR_HARNESS_TASKS, the folder of their files."
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    meant = f" Did you mean {close[0]}?" if close else ""
    more = f" and {len(known) - _LISTED} more" if len(known) > _LISTED else ""
    return f"{problem}{meant} Tasks: {', '.join(known[:_LISTED])}{more}."
