"""Pushes a package to the hub: `python -m services.exporter.push push.json`.

This process has the network and a token, so that it runs nothing but the hub's client: no model and no user's data is
loaded here. The token is the first line of the control pipe; without a supervisor, it is read from stdin.
"""

import os
import queue
import sys
import threading
import time
from pathlib import Path

from chassis.child.phases import Phases
from chassis.child.pipe import CONTROL_FD, EventSink, run_child
from chassis.failpoints import failpoint
from chassis.store.plain_files import open_file
from engine.hub_push import FileToPush, PushTarget, push
from finetuneflow.v1.stage_result_pb2 import ExportResult, HubCommit
from services.exporter.phases import PUSHING, phases_of
from services.exporter.push.push_input import PushInput

_PATIENCE_SECONDS = 30.0
"""Time for which the push is tried again without progress. It holds the exporter; a hub that stays away longer is tried
again by the next attempt. The hub's client repeats single requests of the upload for up to 23 s by itself."""
_TICK_SECONDS = 1.0

_lines: "queue.SimpleQueue[str]" = queue.SimpleQueue()


def obey(line: str) -> None:
    """Takes a line of the control pipe: the token, or a request of the supervisor."""
    if line == "cancel":
        # Nothing is lost: the commit is one request, and what was sent before is not sent again.
        os._exit(0)
    _lines.put(line)


def main(sink: EventSink, input_path: Path) -> ExportResult:
    """Runs one push."""
    given = PushInput.model_validate_json(input_path.read_bytes())
    token = _lines.get()
    phases = Phases(sink, phases_of(pushed=True), pausable=False)
    phases.enter(PUSHING, given.repo_id)
    total = sum(file.size_bytes for file in given.files) or 1
    lock, hashed = threading.Lock(), threading.Event()

    def on_read() -> None:
        # The hub's client sends several files at a time.
        with lock:
            if hashed.is_set():
                phases.advance(PUSHING, min(1.0, sum(file.furthest for file in files.values()) / total))
            else:
                phases.check()

    def on_hashed() -> None:
        for file in files.values():
            file.furthest = 0
        hashed.set()

    def on_retry(why: str, seconds: float) -> None:
        phases.enter(PUSHING, f"{given.repo_id}: {why} Trying again in {seconds:g} s.")
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            sink.tick()
            time.sleep(min(_TICK_SECONDS, left))

    files = {file.name: FileToPush(open_file(given.out_dir, file.name).detach(), on_read) for file in given.files}
    commit = push(
        PushTarget(given.repo_id, given.private, given.revision, given.commit_message),
        files,
        {file.name: file.sha256 for file in given.files},
        token,
        patience_seconds=_PATIENCE_SECONDS,
        on_hashed=on_hashed,
        on_retry=on_retry,
    )
    failpoint("push.committed")
    phases.advance(PUSHING, 1.0)
    return ExportResult(
        hub=HubCommit(repo_id=given.repo_id, revision=given.revision, commit_url=commit.url, commit_oid=commit.oid)
    )


if __name__ == "__main__":
    if CONTROL_FD not in os.environ:
        obey(sys.stdin.readline().strip())
    run_child(main, obey)
