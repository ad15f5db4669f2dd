"""All artifacts, by family, and the errors that refuse them."""

from functools import cache

from tests.hostile.artifact import Artifact, Family
from tests.hostile.child_outputs import CHILD_OUTPUTS
from tests.hostile.loading import LOADING
from tests.hostile.manifests import MANIFESTS
from tests.hostile.model_configs import MODEL_CONFIGS
from tests.hostile.model_folders import MODEL_FOLDERS
from tests.hostile.names import NAMES
from tests.hostile.packed_files import PACKED_FILES
from tests.hostile.parquet_files import PARQUET_FILES
from tests.hostile.row_templates import MAPPINGS, ROW_TEMPLATES
from tests.hostile.text_files import TEXT_FILES
from tests.hostile.tokenizers import CHAT_TEMPLATES, TOKENIZERS
from tests.hostile.weight_headers import WEIGHT_HEADERS

FAMILIES: tuple[Family, ...] = (
    MODEL_FOLDERS,
    MODEL_CONFIGS,
    WEIGHT_HEADERS,
    TEXT_FILES,
    PACKED_FILES,
    PARQUET_FILES,
    TOKENIZERS,
    CHAT_TEMPLATES,
    ROW_TEMPLATES,
    MAPPINGS,
    NAMES,
    CHILD_OUTPUTS,
    MANIFESTS,
    LOADING,
)


@cache
def all_artifacts() -> dict[str, tuple[Family, Artifact]]:
    """Returns family and artifact by full name."""
    return {
        f"{family.name.replace(' ', '-')}/{artifact.name}": (family, artifact)
        for family in FAMILIES
        for artifact in family.artifacts
    }


def family_of(name: str) -> Family:
    """Returns the family of the artifact with this full name."""
    return all_artifacts()[name][0]


def artifact_of(name: str) -> Artifact:
    """Returns the artifact with this full name."""
    return all_artifacts()[name][1]


def refusals() -> tuple[type[Exception], ...]:
    """Returns the errors that tell somebody what is wrong with an artifact."""
    from chassis.attempt.uploads import BadOutput
    from chassis.errors import InvalidArgument
    from chassis.store.artifact_store import ArtifactCorrupt
    from engine.errors import JobError

    return (JobError, InvalidArgument, BadOutput, ArtifactCorrupt, ValueError)
