"""The seed formula: a rule of thumb by GPU memory and number of parameters, kept for comparison.

Where it differs from an estimate, the estimate is right; `matrix` lists the differences. The rule is stated in GB.
"""

from dataclasses import dataclass
from typing import Final, Literal

_FULL_OVERHEAD, _QUANTISED_OVERHEAD = 1.2, 1.3
_LORA_OVERHEAD, _QLORA_OVERHEAD = 1.15, 1.3
_MARGIN: Final = 0.85
_SMALLEST, _SMALL, _LARGE = 6.0, 12.0, 24.0


@dataclass(frozen=True)
class SeedRecommendation:
    """The formula's answer, with the field names of the seed."""

    method: Literal["lora", "qlora"] | None
    reason: str
    can_train: bool
    estimated_vram_usage_gb: float | None = None
    suggestions: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    alternative: str = ""


def recommend_method(
    vram_gb: float, model_params_b: float, cuda_available: bool, bnb_available: bool
) -> SeedRecommendation:
    """Recommends by bands of GPU memory: no method below 6 GB, QLoRA below 12, either below 24, LoRA from 24.

    LoRA is assumed to need 2 bytes a parameter × 1.2 × 1.15, QLoRA half a byte × 1.3 × 1.3.
    """
    if not cuda_available:
        return SeedRecommendation(None, "There is no CUDA GPU.", False, suggestions=("Use a GPU in the cloud.",))
    lora = model_params_b * 2 * _FULL_OVERHEAD * _LORA_OVERHEAD
    qlora = model_params_b * 0.5 * _QUANTISED_OVERHEAD * _QLORA_OVERHEAD
    size = f"{vram_gb:g} GB"
    if vram_gb < _SMALLEST:
        suggestions = ("Use a GPU with more memory.", "Try a model below 3B parameters.")
        return SeedRecommendation(
            None, f"{size} is less than the 6 GB that QLoRA needs.", False, suggestions=suggestions
        )
    if vram_gb < _SMALL:
        if qlora <= vram_gb * _MARGIN:
            suggestions = ("Lower the batch size if memory runs out.", "Lower the length if memory runs out.")
            return SeedRecommendation("qlora", f"QLoRA fits {size}.", True, round(qlora, 1), suggestions)
        warnings = ("Memory will likely run out: batch size 1, length 1024.",)
        reason = f"{size} may be tight for {model_params_b:g}B parameters."
        return SeedRecommendation("qlora", reason, True, round(qlora, 1), warnings=warnings)
    if vram_gb < _LARGE and bnb_available and lora > vram_gb * _MARGIN:
        return SeedRecommendation("qlora", f"LoRA in 16 bits is too large for {size}.", True, round(qlora, 1))
    alternative = "QLoRA, to save memory"
    return SeedRecommendation("lora", f"LoRA in 16 bits, for {size}.", True, round(lora, 1), alternative=alternative)
