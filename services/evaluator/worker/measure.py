"""Losses and answers of one model, as far as earlier evaluations have not measured them."""

from collections.abc import Sequence
from dataclasses import dataclass

from chassis.child.phases import Phases
from engine.model.generate import generate
from engine.model.score import Row, score
from services.evaluator.worker.child_input import Side
from services.evaluator.worker.measurements import Measurements, RowLoss, key_of, row_hash
from services.evaluator.worker.models import Form, Models


@dataclass
class Measuring:
    """Measures losses and answers that are not known yet."""

    models: Models
    kept: Measurements
    phases: Phases
    num_reused: int = 0
    """Losses and answers that were not measured again."""

    def losses(self, phase: str, side: Side, form: Form, rows: Sequence[Row]) -> list[RowLoss]:
        """Returns the loss of each row."""
        if not rows:
            return []
        key = key_of(**_identity(side, form))
        hashes = [row_hash(row["input_ids"], row["labels"]) for row in rows]
        missing = [index for index, row in enumerate(hashes) if self.kept.loss(key, row) is None]
        self.num_reused += len(rows) - len(missing)
        self.phases.enter(phase, self._detail(len(rows), len(missing), "row"))
        if missing:

            def add(index: int, loss_sum: float, num_trained: int) -> None:
                self.kept.add_loss(key, hashes[missing[index]], RowLoss(loss_sum, num_trained))

            model = self.models.get(side, form)
            score(model, [rows[index] for index in missing], lambda done: self.phases.advance(phase, done), add)
            self.kept.save()
        self.phases.advance(phase, 1.0)
        return [found for row in hashes if (found := self.kept.loss(key, row)) is not None]

    def answers(
        self,
        phase: str,
        side: Side,
        form: Form,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        stop_ids: Sequence[int],
    ) -> list[list[int]]:
        """Returns the token ids of the answer to each prompt."""
        if not prompts:
            return []
        settings = {"max_new_tokens": max_new_tokens, "stop_ids": list(stop_ids), "own": _settings(side)}
        key = key_of(**_identity(side, form), **settings)
        hashes = [row_hash(prompt) for prompt in prompts]
        missing = [index for index, row in enumerate(hashes) if self.kept.answer(key, row) is None]
        self.num_reused += len(prompts) - len(missing)
        self.phases.enter(phase, self._detail(len(prompts), len(missing), "question"))
        made = 0

        def add(index: int, ids: list[int]) -> None:
            nonlocal made
            made += 1
            self.kept.add_answer(key, hashes[missing[index]], ids)

        if missing:
            generate(
                self.models.get(side, form),
                [prompts[index] for index in missing],
                max_new_tokens=max_new_tokens,
                stop_ids=stop_ids,
                on_tokens=lambda _: self.phases.advance(phase, made / len(missing)),
                on_answer=add,
            )
            self.kept.save()
        self.phases.advance(phase, 1.0)
        return [found for row in hashes if (found := self.kept.answer(key, row)) is not None]

    def _detail(self, number: int, missing: int, noun: str) -> str:
        known = f", {number - missing} known from an earlier evaluation" if missing < number else ""
        return f"{number} {noun}{'s' * (number != 1)}{known}"


def _identity(side: Side, form: Form) -> dict[str, object]:
    """Returns what decides the model's outputs."""
    return {
        "weights": side.model.weights_sha256,
        "checkpoint": side.checkpoint.manifest_sha256 if side.checkpoint else "",
        "full": side.is_full,
        **form.parts(),
    }


def _settings(side: Side) -> str:
    """Returns the model's own generation settings, of which the repetition penalty decides answers."""
    folder = side.checkpoint.path if side.checkpoint and side.is_full else side.model.path
    path = folder / "generation_config.json"
    return path.read_text("utf-8") if path.is_file() else ""
