"""Types of GGUF files that the running exporters can make.

An early refusal, so that no job is trained before it fails: the exporter that takes the work checks its own types.
"""

from collections.abc import Awaitable, Callable

from chassis.errors import InvalidArgument, Violation
from engine.config.job import CONVERTED_TYPES, LIBLLAMA_PACKAGE
from finetuneflow.v1.fine_tuning_job_spec_pb2 import EXPORT_FORMAT_GGUF, ExportSpec
from finetuneflow.v1.work_pb2 import Node


async def check_gguf_types(spec: ExportSpec, path: str, nodes: Callable[[], Awaitable[list[Node]]]) -> None:
    """Checks the types that an export asks for; `path` is that of the section.

    Raises InvalidArgument("GGUF_TYPE_UNAVAILABLE") if no single running exporter can make them all, and Unavailable
    while the broker is unavailable.
    """
    asked = [type_ for type_ in spec.gguf_types if type_ not in CONVERTED_TYPES]
    if not asked or EXPORT_FORMAT_GGUF not in spec.formats:
        return
    made = [set(node.gguf_types) for node in await nodes() if node.service == "exporter"]
    if any(types.issuperset(asked) for types in made):
        return
    found = [
        Violation(f"{path}.gguf_types[{index}]", _problem(type_))
        for index, type_ in enumerate(spec.gguf_types)
        if type_ in asked
    ]
    raise InvalidArgument("GGUF_TYPE_UNAVAILABLE", f"{found[0].field}: {found[0].description}", found)


def _problem(type_: str) -> str:
    return (
        f"no running exporter can make GGUF files of type {type_}; use {', '.join(CONVERTED_TYPES)}. For other types "
        f"the operator sets FTF_EXPORTER_LIBLLAMA to the folder of llama.cpp's library from the npm package "
        f"{LIBLLAMA_PACKAGE}."
    )
