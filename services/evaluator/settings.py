"""Settings of an evaluator process: `FTF_EVALUATOR_<KEY>`, or else `FTF_<KEY>`."""

from typing import ClassVar

from services.settings import ServiceSettings


class EvaluatorSettings(ServiceSettings):
    """The settings of every service, with the evaluator's own port."""

    service: ClassVar[str] = "evaluator"

    listen: str = "127.0.0.1:7463"
