"""What the client returns: frozen dataclasses that keep the message they were read from as `.proto`."""

from finetuneflow.resources.artifact import Artifact
from finetuneflow.resources.convert import Resource
from finetuneflow.resources.dataset import Dataset
from finetuneflow.resources.evaluation import Evaluation
from finetuneflow.resources.event import Event, Severity
from finetuneflow.resources.export import Export, ExportFormat
from finetuneflow.resources.hardware import Gpu, Hardware
from finetuneflow.resources.job import (
    AttemptSummary,
    Checkpoint,
    Fault,
    Job,
    JobState,
    MetricPoint,
    MetricSeries,
    Progress,
    Resolution,
    Stage,
)
from finetuneflow.resources.model import Model, ModelKind
from finetuneflow.resources.recipe import Recipe
from finetuneflow.resources.stage_result import (
    BaseModelIdentity,
    DataStatistics,
    EvaluationResult,
    ExportResult,
    InferenceSample,
    PreflightResult,
    TrainingResult,
)
from finetuneflow.resources.validation import (
    JobFigures,
    ProblemCount,
    ProblemSeverity,
    RowPreview,
    RowProblem,
    TokenSpan,
    ValidationReport,
    Verdict,
)

__all__ = [
    "Artifact",
    "AttemptSummary",
    "BaseModelIdentity",
    "Checkpoint",
    "DataStatistics",
    "Dataset",
    "Evaluation",
    "EvaluationResult",
    "Event",
    "Export",
    "ExportFormat",
    "ExportResult",
    "Fault",
    "Gpu",
    "Hardware",
    "InferenceSample",
    "Job",
    "JobFigures",
    "JobState",
    "MetricPoint",
    "MetricSeries",
    "Model",
    "ModelKind",
    "PreflightResult",
    "ProblemCount",
    "ProblemSeverity",
    "Progress",
    "Recipe",
    "Resolution",
    "Resource",
    "RowPreview",
    "RowProblem",
    "Severity",
    "Stage",
    "TokenSpan",
    "TrainingResult",
    "ValidationReport",
    "Verdict",
]
