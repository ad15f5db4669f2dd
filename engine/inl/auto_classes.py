"""Makes transformers' Auto classes know INL models."""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from engine.inl.configuration import InlConfig
from engine.inl.model import InlForCausalLM, InlModel


def register_inl() -> None:
    """Lets AutoConfig, AutoModel and AutoModelForCausalLM load models of type `inl`. May be called repeatedly."""
    AutoConfig.register(InlConfig.model_type, InlConfig, exist_ok=True)
    AutoModel.register(InlConfig, InlModel, exist_ok=True)
    AutoModelForCausalLM.register(InlConfig, InlForCausalLM, exist_ok=True)
