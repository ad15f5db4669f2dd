"""Resources: the frozen dataclasses that the client returns. Each keeps the message it was read from as `.proto`."""

from finetuneflow.resources.access import ApiKey, AuditEntry, Caller, CreatedKey, Role, Tenant, TenantLimits
from finetuneflow.resources.answer import AnswerPart, GenerationUsage, TokenLogprob
from finetuneflow.resources.artifact import Artifact
from finetuneflow.resources.convert import Resource
from finetuneflow.resources.dataset import Dataset
from finetuneflow.resources.estimate import (
    Adjustment,
    DecisionCell,
    DiskEstimate,
    FitVerdict,
    MemoryComponent,
    Recommendation,
    ResourceEstimate,
    SeedRecommendation,
    TrainingMethod,
)
from finetuneflow.resources.evaluation import Evaluation
from finetuneflow.resources.event import Event, Severity
from finetuneflow.resources.export import Export, ExportFormat
from finetuneflow.resources.hardware import Gpu, Hardware
from finetuneflow.resources.job import (
    AdapterStart,
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
    StartMode,
)
from finetuneflow.resources.model import Model, ModelKind
from finetuneflow.resources.preflight import Finding, Improvement, Preflight, PreflightReport
from finetuneflow.resources.recipe import Recipe
from finetuneflow.resources.secret import Secret
from finetuneflow.resources.stage_result import (
    BaseModelIdentity,
    DataStatistics,
    EvaluationResult,
    ExportResult,
    InferenceSample,
    LanguageCount,
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
    "AdapterStart",
    "Adjustment",
    "AnswerPart",
    "ApiKey",
    "Artifact",
    "AttemptSummary",
    "AuditEntry",
    "BaseModelIdentity",
    "Caller",
    "Checkpoint",
    "CreatedKey",
    "DataStatistics",
    "Dataset",
    "DecisionCell",
    "DiskEstimate",
    "Evaluation",
    "EvaluationResult",
    "Event",
    "Export",
    "ExportFormat",
    "ExportResult",
    "Fault",
    "Finding",
    "FitVerdict",
    "GenerationUsage",
    "Gpu",
    "Hardware",
    "Improvement",
    "InferenceSample",
    "Job",
    "JobFigures",
    "JobState",
    "LanguageCount",
    "MemoryComponent",
    "MetricPoint",
    "MetricSeries",
    "Model",
    "ModelKind",
    "Preflight",
    "PreflightReport",
    "PreflightResult",
    "ProblemCount",
    "ProblemSeverity",
    "Progress",
    "Recipe",
    "Recommendation",
    "Resolution",
    "Resource",
    "ResourceEstimate",
    "Role",
    "RowPreview",
    "RowProblem",
    "Secret",
    "SeedRecommendation",
    "Severity",
    "Stage",
    "StartMode",
    "Tenant",
    "TenantLimits",
    "TokenLogprob",
    "TokenSpan",
    "TrainingMethod",
    "TrainingResult",
    "ValidationReport",
    "Verdict",
]
