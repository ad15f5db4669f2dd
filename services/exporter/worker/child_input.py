"""Input of the exporter's child, which reads it from `input.json`."""

from pathlib import Path
from typing import Annotated, Any

from google.protobuf import json_format
from google.protobuf.message import Message
from pydantic import Field, GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from engine.config.job import JobConfig, StartMode, default_display_name
from finetuneflow.package_signature import Statement
from finetuneflow.v1.stage_result_pb2 import EvaluationResult, PreflightResult, TrainingResult
from finetuneflow.v1.work_pb2 import MetricSeries
from services.child_input import ChildInput, ModelFiles, Strict


class ProtoJson:
    """Lets a pydantic field hold a proto message, written as proto JSON: NaN and infinity survive, unlike in JSON."""

    def __init__(self, kind: type[Message]) -> None:
        self._kind = kind

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        def read(value: Any) -> Message:
            if isinstance(value, self._kind):
                return value
            try:
                return json_format.ParseDict(value, self._kind())
            except json_format.ParseError as error:
                raise ValueError(str(error)) from error

        def write(message: Message) -> dict[str, Any]:
            return json_format.MessageToDict(message, preserving_proto_field_name=True)

        return core_schema.no_info_plain_validator_function(
            read, serialization=core_schema.plain_serializer_function_ser_schema(write)
        )


class DatasetFile(Strict):
    """A file of training or evaluation rows."""

    id: str
    filename: str
    sha256: str


class AdapterBelow(Strict):
    """An adapter that the training builds upon."""

    start_from: str
    """`ft:<job_id>@<step>`, or the id of an uploaded adapter."""
    start_mode: StartMode
    manifest_sha256: str


class JobOrigin(Strict):
    """Facts about the job, or the export of a base model, that the package states."""

    id: str
    create_time: str
    """RFC 3339."""
    datasets: list[DatasetFile] = Field(default=[])
    lineage: list[AdapterBelow] = Field(default=[])
    """The adapters that the training builds upon, the newest first. The last one was trained from the base model, or
    uploaded."""

    def lineage_text(self) -> str:
        """Returns the lineage as words; empty for a training that started from the base model."""
        if not self.lineage:
            return ""
        told = {"continue": "further training of", "new": "a new adapter on top of"}
        chain = ", itself ".join(f"{told[each.start_mode]} `{each.start_from}`" for each in self.lineage)
        uploaded = self.lineage[-1].start_from.startswith("ds_")
        return f"{chain}, which was {'made elsewhere and uploaded' if uploaded else 'trained from the base model'}"


class ExportKey(Strict):
    """The key that signs the package of one export, and the operator's certification of it. Bytes are base64."""

    private_key: str
    """Signs packages of this job and step only."""
    statement: Statement
    operator_signature: str
    """Signature of the statement."""
    operator_key: str
    """Fingerprint of the operator's key."""


class ExportInput(ChildInput):
    """One export. Paths are absolute."""

    config: JobConfig
    """The resolved configuration."""
    model: ModelFiles
    adapter_dir: Path
    """The checkpoint that is packed; for a base model its folder, as if a training with method full had left it."""
    of_base: bool = False
    """True for a base model, which no job has trained: `job` has the export's own id and time, and `preflight`,
    `training` and `evaluation` are empty."""
    step: int | None = None
    """Its step, if that is another one than the job's best. Then `evaluation` and `evaluation_rows` are empty: they are
    about the best one."""
    job: JobOrigin
    preflight: Annotated[PreflightResult, ProtoJson(PreflightResult)]
    training: Annotated[TrainingResult, ProtoJson(TrainingResult)]
    evaluation: Annotated[EvaluationResult, ProtoJson(EvaluationResult)]
    held_out: Path | None = None
    """Token shard of the held-out rows, which a merged model is compared on. None: there are none, or they are not
    needed."""
    held_out_texts: Path | None = None
    """eval_rows.jsonl, with the conversations of these rows. None: there are none."""
    evaluation_rows: Path | None = None
    """evaluation_rows.jsonl, as the evaluator wrote it."""
    libllama: Path | None = None
    """Folder of the library that makes k-quants. None: there are none to make."""
    signing: ExportKey | None = None
    """None: the package is not signed."""
    metrics: list[Annotated[MetricSeries, ProtoJson(MetricSeries)]] = Field(default=[])
    """Whole curves; `loss` and `eval_loss` are drawn."""

    @property
    def packed_step(self) -> int:
        """The step of the checkpoint that is packed; 0 for a base model."""
        return self.training.best_step if self.step is None else self.step

    @property
    def given_name(self) -> str:
        """The job's display name, or one of its base model if nobody gave it one, so that the name of a dataset does
        not make names of files and models long."""
        named = self.config.display_name
        if not self.of_base and named == default_display_name(self.config):
            return f"{self.model.id.rpartition('/')[2]}-tuned"
        return named

    @property
    def original(self) -> str:
        """The words in messages for the model that the forms are compared with."""
        return "the base model" if self.of_base else "the checkpoint"
