"""Checks the invariants of jobs, evaluations and exports, over the rows in SQL, the events that watchers received, and
the artifact store.

A violation is a sentence. The checker knows nothing of faults but what they may excuse: a job that was asked to be
cancelled, and checkpoints that were damaged on purpose.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from chassis.events import ENDINGS
from chassis.store.artifact_store import MANIFEST
from finetuneflow.v1.event_pb2 import ConfigResolved, Event
from finetuneflow.v1.fine_tuning_job_pb2 import Fault, JobState, Stage
from finetuneflow.v1.stage_result_pb2 import EvaluationResult
from gateway.sql.tables import SavedCheckpoint
from gateway.work.kinds import EVALUATION, EXPORT, FINE_TUNING_JOB, KINDS
from gateway.work.ledger import GATEWAY_SOURCE
from gateway.work.lifecycle import TERMINAL
from tests.chaos.history import WorkHistory
from tests.chaos.watchers import canonical


@dataclass
class Expected:
    """The expected facts of a job, or of an evaluation or export of its model, known without the product."""

    package_sha256: Callable[[Path], str]
    """Returns the digest that identifies the result in a package folder, relative to `<store>/<tenant>`."""
    reference: str
    """The digest of a run without faults."""
    cancel: str = ""
    """accepted: the job must end CANCELLED; refused: it must not; unknown: the response was lost, both are correct."""
    may_fail: bool = False
    """True if the job has so few attempts that faults may exhaust them."""
    tuned_loss: float | None = None
    """The loss that an evaluation must find. None: not compared."""
    deleted: str = ""
    """accepted: it must be gone; unknown: the response was lost, both are correct; else it must be there."""


@dataclass
class Seen:
    """The events that one watcher received, in order."""

    name: str
    work_id: str
    events: Sequence[tuple[int, bytes]]
    error: str = ""
    ended: bool = True


@dataclass
class Evidence:
    """The input of the checker."""

    histories: Mapping[str, WorkHistory]
    expected: Mapping[str, Expected]
    watchers: Sequence[Seen]
    store: Path
    orphans: Sequence[str] = ()
    damaged: frozenset[str] = frozenset()
    """Paths below the tenant that a fault damaged."""


@dataclass
class Findings:
    """Violations by kind, and counts of the run."""

    violations: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)

    def add(self, kind: str, sentence: str) -> None:
        self.violations.append(f"{kind}: {sentence}")

    def count(self, name: str, number: int = 1) -> None:
        self.counts[name] = self.counts.get(name, 0) + number

    def most(self, name: str, number: int) -> None:
        self.counts[name] = max(self.counts.get(name, 0), number)


def check(evidence: Evidence) -> Findings:
    """Checks every invariant; no violations means success."""
    findings = Findings()
    for work_id, expected in evidence.expected.items():
        history = evidence.histories.get(work_id)
        if history is None:
            if expected.deleted in ("accepted", "unknown"):
                findings.count("deleted")
            else:
                findings.add("loss", f"{work_id} is not in SQL")
            continue
        if expected.deleted == "accepted":
            findings.add("ending", f"{work_id} is in SQL although its deletion was accepted")
        events = history.events()
        findings.count("jobs" if history.work.kind == FINE_TUNING_JOB.name else "evaluations and exports")
        findings.count("attempts", len(history.attempts))
        findings.count("events", len(events))
        _check_sequences(history, events, findings)
        _check_claims(history, events, findings)
        _check_attempts(history, findings)
        _check_ending(history, events, expected, findings)
        _check_restored(history, events, evidence, findings)
        _check_retention(history, findings)
        _check_stored(history, evidence, findings)
        _check_result(history, expected, evidence, findings)
    for work_id in evidence.histories.keys() - evidence.expected.keys():
        findings.add("duplicate", f"{work_id} was created though nobody asked for it")
    for watcher in evidence.watchers:
        deleted = watcher.work_id in evidence.expected and bool(evidence.expected[watcher.work_id].deleted)
        _check_watcher(watcher, evidence.histories.get(watcher.work_id), deleted, findings)
    _check_final_paths(evidence, findings)
    for orphan in evidence.orphans:
        findings.add("orphan", orphan)
    return findings


def _check_sequences(history: WorkHistory, events: Sequence[Event], findings: Findings) -> None:
    work = history.work
    sequences = [row.sequence for row in history.rows]
    if sequences != list(range(1, len(sequences) + 1)):
        findings.add("loss", f"{work.id}: sequences in SQL are not dense: {_gaps(sequences)}")
    if work.last_sequence != (sequences[-1] if sequences else 0):
        findings.add("loss", f"{work.id}: last_sequence is {work.last_sequence}, SQL holds up to {sequences[-1:]}")
    for row, event in zip(history.rows, events, strict=True):
        if event.sequence != row.sequence or event.job_id != work.id:
            findings.add("loss", f"{work.id}: row {row.sequence} holds event {event.sequence} of {event.job_id}")


def _check_watcher(watcher: Seen, history: WorkHistory | None, deleted: bool, findings: Findings) -> None:
    who = f"watcher {watcher.name} of {watcher.work_id}"
    findings.count("watchers")
    findings.count("deliveries", len(watcher.events))
    if watcher.error:
        findings.add("watcher failed", f"{who}: {watcher.error}")
        return
    if not watcher.ended:
        findings.add("watcher failed", f"{who} did not end; it has seen up to {[s for s, _ in watcher.events][-1:]}")
        return
    in_sql = {} if history is None else dict(zip(_sequences(history), map(canonical, history.events()), strict=True))
    seen = [sequence for sequence, _ in watcher.events]
    if len(set(seen)) != len(seen):
        findings.add("duplicate", f"{who} was handed {sorted({s for s in seen if seen.count(s) > 1})} more than once")
    if seen != sorted(seen):
        findings.add("reorder", f"{who} was handed {seen}")
    if history is None and deleted:
        # What SQL held is gone; the last event says how many there were.
        end = Event.FromString(watcher.events[-1][1]) if watcher.events else Event()
        if not end.HasField("state_changed") or JobState.Name(end.state_changed.state) not in TERMINAL:
            findings.add("loss", f"{who} did not see the end before the deletion")
        if missing := set(range(1, end.sequence + 1)) - set(seen):
            findings.add("loss", f"{who} never saw {sorted(missing)}")
        return
    if missing := set(in_sql) - set(seen):
        findings.add("loss", f"{who} never saw {sorted(missing)}")
    for sequence, data in watcher.events:
        if in_sql.get(sequence) != data:
            findings.add("loss", f"{who} saw another event as {sequence} than SQL holds")


def _sequences(history: WorkHistory) -> list[int]:
    return [row.sequence for row in history.rows]


def _check_claims(history: WorkHistory, events: Sequence[Event], findings: Findings) -> None:
    """Checks that only the current claim's events were accepted, each ordinal once and in order."""
    work = history.work
    nodes = {(attempt.stage, attempt.attempt): attempt for attempt in history.attempts}
    current: tuple[str, int] | None = None
    following: dict[tuple[str, int], int] = {}
    for event in events:
        key = (Stage.Name(event.stage), event.attempt)
        where = f"{work.id}: event {event.sequence} of {key[0]} attempt {key[1]}"
        if event.source == GATEWAY_SOURCE:
            current = _current_after(event, key, current, where, findings)
            continue
        if key != current:
            findings.add("stale write", f"{where} was accepted while {current or 'nothing'} was claimed")
        elif key not in nodes:
            findings.add("loss", f"{where} belongs to an attempt that is not in SQL")
        elif event.source != nodes[key].node_id:
            findings.add("stale write", f"{where} came from {event.source}, claimed by {nodes[key].node_id}")
        wanted = following.get(key, 0)
        if event.ordinal != wanted:
            kind = "duplicate" if event.ordinal < wanted else "loss"
            findings.add(kind, f"{where} has ordinal {event.ordinal}, expected {wanted}")
        following[key] = event.ordinal + 1
        if event.WhichOneof("payload") in ENDINGS:
            current = None
    for key, attempt in nodes.items():
        if attempt.next_ordinal != following.get(key, 0):
            findings.add("loss", f"{work.id}: {key} accepted {attempt.next_ordinal}, SQL holds {following.get(key, 0)}")


def _current_after(
    event: Event, key: tuple[str, int], current: tuple[str, int] | None, where: str, findings: Findings
) -> tuple[str, int] | None:
    changed = event.state_changed
    if event.HasField("stage_failed"):
        # Lease or damage: the gateway ended the claim itself.
        return None
    if not event.HasField("state_changed"):
        return current
    if changed.node_id:
        if current is not None:
            findings.add("stale write", f"{where} claims while {current} is claimed")
        return key
    if JobState.Name(changed.state) in TERMINAL | {"JOB_STATE_PAUSED", "JOB_STATE_QUEUED"}:
        return None
    return current


def _check_attempts(history: WorkHistory, findings: Findings) -> None:
    work = history.work
    still_open = [attempt for attempt in history.attempts if attempt.state != "ENDED"]
    if len(still_open) > 1 or (work.state in TERMINAL and still_open):
        findings.add("attempts", f"{work.id}: {len(still_open)} attempts are open in state {work.state}")
    for stage in KINDS[work.kind].plan:
        numbers = [attempt.attempt for attempt in history.attempts if attempt.stage == stage]
        if numbers != list(range(1, len(numbers) + 1)):
            findings.add("attempts", f"{work.id}: attempts at {stage} are numbered {numbers}")
        completed = [a.attempt for a in history.attempts if a.stage == stage and a.outcome == "COMPLETED"]
        if len(completed) > 1 or (completed and completed[0] != numbers[-1]):
            findings.add("attempts", f"{work.id}: {stage} was completed by attempts {completed} of {numbers}")
    claims = [attempt.claim_id for attempt in history.attempts if attempt.claim_id]
    if len(set(claims)) != len(claims):
        findings.add("attempts", f"{work.id}: one claim stands for two attempts")
    counted = sum(attempt.counted for attempt in history.attempts)
    if counted != work.failed_attempts:
        findings.add("attempts", f"{work.id}: {counted} attempts are counted, the work says {work.failed_attempts}")


def _check_ending(history: WorkHistory, events: Sequence[Event], expected: Expected, findings: Findings) -> None:
    work = history.work
    if work.state not in TERMINAL:
        findings.add("ending", f"{work.id} has not ended: {work.state} {work.stage} {work.reason} {work.message}")
        return
    findings.count(work.state.removeprefix("JOB_STATE_").lower())
    ends = [
        event.sequence
        for event in events
        if event.HasField("state_changed") and JobState.Name(event.state_changed.state) in TERMINAL
    ]
    if ends != [len(events)]:
        findings.add("ending", f"{work.id} ended at {ends} of {len(events)} events: not once, or not last")
    if expected.cancel == "accepted" and work.state != "JOB_STATE_CANCELLED":
        findings.add("ending", f"{work.id} is {work.state} although its cancellation was accepted")
    if work.state == "JOB_STATE_CANCELLED" and expected.cancel not in ("accepted", "unknown"):
        findings.add("ending", f"{work.id} was cancelled; nobody asked for it (cancel {expected.cancel or 'not sent'})")
    if work.state == "JOB_STATE_FAILED":
        if Fault.Value(work.fault) != Fault.FAULT_SYSTEM_ERROR or work.failed_attempts < work.max_attempts:
            findings.add(
                "ending",
                f"{work.id} failed with {work.fault} {work.reason} after {work.failed_attempts} of "
                f"{work.max_attempts}: {work.message}",
            )
        elif not expected.may_fail:
            findings.add("ending", f"{work.id} was given up after {work.failed_attempts} failures: {work.reason}")


def _check_restored(history: WorkHistory, events: Sequence[Event], evidence: Evidence, findings: Findings) -> None:
    """Checks that a training resumes from the newest accepted checkpoint that is intact."""
    accepted: list[tuple[int, str, str]] = []
    reached = started = 0
    for event in events:
        kind = event.WhichOneof("payload")
        if kind == "checkpoint":
            accepted.append((event.checkpoint.step, event.checkpoint.path, event.checkpoint.manifest_sha256))
        elif kind == "checkpoint_pruned":
            accepted = [each for each in accepted if each[1] != event.checkpoint_pruned.path]
        elif kind == "log":
            newest = max((each for each in accepted if each[1] not in evidence.damaged), default=(0, "", ""))
            if event.log.step == 1 and newest[0]:
                findings.add(
                    "resume", f"{history.work.id}: attempt {event.attempt} began anew, step {newest[0]} was accepted"
                )
            if event.log.step != started + 1:
                findings.add(
                    "resume",
                    f"{history.work.id}: attempt {event.attempt} made step {event.log.step} after step {started}",
                )
            started = event.log.step
            reached = max(reached, event.log.step)
        elif kind == "restored":
            restored = event.restored
            whole = [each for each in accepted if each[1] not in evidence.damaged]
            newest = max(whole, default=(0, "", ""))
            if restored.checkpoint_step < newest[0]:
                findings.add(
                    "resume",
                    f"{history.work.id}: attempt {event.attempt} went on from step {restored.checkpoint_step}, "
                    f"accepted and whole was step {newest[0]}",
                )
            hashes = {each[2] for each in accepted if each[0] == restored.checkpoint_step}
            if restored.manifest_sha256 and restored.manifest_sha256 not in hashes:
                findings.add("resume", f"{history.work.id}: {restored.manifest_sha256} was never accepted")
            if restored.first_step != restored.checkpoint_step + 1:
                findings.add("resume", f"{history.work.id}: first step {restored.first_step} after its checkpoint")
            findings.count("resumptions")
            findings.most("most steps made again", reached - restored.checkpoint_step)
            started = restored.checkpoint_step
        elif kind == "phase" and event.phase.name == "loading_model" and event.stage == Stage.STAGE_TRAINING:
            started = 0


def _check_retention(history: WorkHistory, findings: Findings) -> None:
    """Checks that the best and the newest two checkpoints are kept, and no more than save_total_limit requires."""
    work, saved = history.work, history.checkpoints
    if not saved or work.config is None:
        return
    hyper = ConfigResolved.FromString(work.config).resolved_spec.hyperparameters
    kept = [checkpoint for checkpoint in saved if not checkpoint.pruned]
    needed = [*saved[-2:], *(checkpoint for checkpoint in saved if checkpoint.best)]
    for checkpoint in needed:
        if checkpoint.pruned:
            findings.add("retention", f"{work.id}: step {checkpoint.step}, one of the newest two or best, was pruned")
    if len(kept) > max(hyper.save_total_limit, 3):
        findings.add("retention", f"{work.id}: {len(kept)} checkpoints are kept; the limit is {hyper.save_total_limit}")


def _check_stored(history: WorkHistory, evidence: Evidence, findings: Findings) -> None:
    """Checks that every accepted file is complete in the store."""
    kept: Iterable[SavedCheckpoint] = (c for c in history.checkpoints if not c.pruned)
    for checkpoint in kept:
        if checkpoint.path in evidence.damaged:
            continue
        problem = _folder_problem(evidence.store / checkpoint.tenant / checkpoint.path, checkpoint.manifest_sha256)
        if problem:
            findings.add("store", f"{history.work.id}: accepted checkpoint {checkpoint.path}: {problem}")
    for artifact in history.artifacts:
        path = evidence.store / artifact.tenant / artifact.path
        if artifact.media_type == "inode/directory":
            problem = _folder_problem(path, artifact.sha256)
        elif not path.is_file():
            problem = "it is not there"
        else:
            problem = "" if _sha256(path) == artifact.sha256 else "its bytes are not the ones that were accepted"
        if problem:
            findings.add("store", f"{history.work.id}: accepted artifact {artifact.path}: {problem}")
    for checkpoint in history.checkpoints:
        if checkpoint.pruned and (evidence.store / checkpoint.tenant / checkpoint.path).exists():
            findings.count("pruned folders left behind")


def _folder_problem(folder: Path, manifest_sha256: str) -> str:
    manifest = folder / MANIFEST
    if not manifest.is_file():
        return "it has no manifest"
    if manifest_sha256 and _sha256(manifest) != manifest_sha256:
        return "its manifest is not the one that was accepted"
    entries = {entry["path"]: entry["sha256"] for entry in json.loads(manifest.read_text())["files"]}
    files = {str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file()} - {MANIFEST}
    if files != set(entries):
        return f"it holds {sorted(files)}, its manifest names {sorted(entries)}"
    wrong = [name for name, digest in entries.items() if _sha256(folder / name) != digest]
    return f"{wrong} are not what the manifest says" if wrong else ""


def _check_result(history: WorkHistory, expected: Expected, evidence: Evidence, findings: Findings) -> None:
    work = history.work
    if work.state != "JOB_STATE_SUCCEEDED":
        return
    kinds = {EVALUATION.name, EXPORT.name} if work.kind == FINE_TUNING_JOB.name else {work.kind}
    made = [result.kind for result in history.results if result.result is not None]
    if sorted(made) != sorted(kinds):
        findings.add("result", f"{work.id} left {made or 'nothing'}, expected one each: {sorted(kinds)}")
    for result in history.results:
        if result.kind == EVALUATION.name and result.result is not None and expected.tuned_loss is not None:
            tuned_loss = EvaluationResult.FromString(result.result).tuned_loss
            if tuned_loss != expected.tuned_loss:
                findings.add("result", f"{work.id}: tuned loss {tuned_loss}, of an unfaulted run {expected.tuned_loss}")
            elif work.kind == EVALUATION.name:
                findings.count("evaluations identical to an unfaulted run")
    if EXPORT.name not in kinds:
        return
    last = max((a.attempt for a in history.attempts if a.stage == "STAGE_EXPORT"), default=0)
    prefix = f"jobs/{work.id}/export/{last}/"
    packages = [a for a in history.artifacts if a.kind == "export_package" and a.path.startswith(prefix)]
    if len(packages) != 1:
        findings.add("result", f"{work.id}: attempt {last} at the export left {len(packages)} packages")
        return
    path = evidence.store / packages[0].tenant / packages[0].path
    found = expected.package_sha256(path) if path.is_file() else "nothing"
    if found != expected.reference:
        findings.add("result", f"{work.id}: the result is {found}, of an unfaulted run {expected.reference}")
    else:
        own = work.kind == FINE_TUNING_JOB.name
        findings.count("results identical to an unfaulted run" if own else "exports identical to an unfaulted run")


def _check_final_paths(evidence: Evidence, findings: Findings) -> None:
    """Checks that files at final paths are complete, accepted or not; unfinished ones are in `.partial`."""
    referenced = {
        f"{row.tenant}/{row.path}"
        for history in evidence.histories.values()
        for row in (*history.checkpoints, *history.artifacts)
    }
    for path in _final_folders(evidence.store):
        relative = path.relative_to(evidence.store).as_posix()
        below = relative.partition("/")[2]
        problem = "" if below in evidence.damaged else _folder_problem(path, "")
        # A pruned folder is deleted file by file, and a gateway may be killed in the middle: nobody resumes from it.
        if problem and relative not in referenced:
            findings.add("store", f"half-committed: {relative}: {problem}")
        if relative not in referenced:
            findings.count("stored but never accepted")
    partial = evidence.store / ".partial"
    findings.count("unfinished writes left for the sweep", len(list(partial.iterdir())) if partial.is_dir() else 0)


def _final_folders(store: Path) -> Iterator[Path]:
    yield from store.glob("*/jobs/*/training/*/checkpoints/*")
    yield from store.glob("*/jobs/*/preflight/*/shards/*")


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _gaps(sequences: Sequence[int]) -> str:
    wanted = set(range(1, max(sequences, default=0) + 1))
    return f"missing {sorted(wanted - set(sequences))}"
