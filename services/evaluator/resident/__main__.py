"""Starts the child that generates text: `python -m services.evaluator.resident input.json`.

Without a supervisor it answers the lines of its stdin: `ask 1` reads 1.json in the folder for asks.
"""

import faulthandler
import os
import queue
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from chassis.child.out_of_memory import reason_of
from chassis.child.pipe import CONTROL_FD, EventSink, die_with_parent
from engine.errors import JobError
from services.evaluator.resident.messages import Reply, ResidentInput
from services.quiet_environment import quiet_environment


def main() -> NoReturn:
    if len(sys.argv) != 2 or not Path(sys.argv[1]).is_file():
        sys.exit("usage: python -m services.evaluator.resident input.json")
    die_with_parent()
    faulthandler.enable()
    lines: queue.Queue[str] = queue.Queue()
    alone = CONTROL_FD not in os.environ
    sink = EventSink.open(lines.put)

    def send(reply: Reply) -> None:
        sink.send(reply.model_dump_json(exclude_defaults=True).encode())

    if alone:
        threading.Thread(target=_read_stdin, args=(lines,), daemon=True).start()
    try:
        _run(ResidentInput.model_validate_json(Path(sys.argv[1]).read_bytes()), lines, send, sink)
    except Exception as error:  # noqa: BLE001 - it ends the process
        traceback.print_exc()
        if reason := reason_of(error):
            sys.stderr.write(f"{reason}\n")
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


def _run(child_input: ResidentInput, lines: "queue.Queue[str]", send: Callable[[Reply], None], sink: EventSink) -> None:
    quiet_environment()
    # Seconds of imports, which have to come after the environment and within the life that the supervisor watches.
    with sink.ticking():
        from services.evaluator.resident.answers import Answers, refusal_of
        from services.evaluator.resident.loading import load_resident

        try:
            model = load_resident(child_input)
        except JobError as error:
            send(Reply(number=0, refusal=refusal_of(error)))
            return
    send(Reply(number=0))
    Answers(model, child_input, lines, send).run()


def _read_stdin(lines: "queue.Queue[str]") -> None:
    for line in sys.stdin:
        lines.put(line.strip())


if __name__ == "__main__":
    main()
