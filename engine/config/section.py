"""Base class of the sections of a configuration, a limit for their texts, and the names of secrets."""

from typing import Final

from pydantic import AfterValidator, BaseModel, ConfigDict

NAME_PATTERN: Final = r"^[a-z][a-z0-9_-]{0,62}$"
"""Names that a tenant's secret can have."""


class Section(BaseModel):
    """A group of fields that refuses unknown names and values of another type."""

    # Strict: "3" for a number is a mistake of the caller that would otherwise surface hours later, as a wrong value.
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, validate_default=False)


def kib(limit: int) -> AfterValidator:
    """Refuses a text of more than `limit` KiB in UTF-8."""

    def check(text: str) -> str:
        size = len(text.encode())
        if size > limit * 1024:
            raise ValueError(f"it has {size:,} bytes; at most {limit} KiB are allowed")
        return text

    return AfterValidator(check)
