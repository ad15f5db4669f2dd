"""Strategies of hypothesis for any message of the contract, made from its descriptor."""

from __future__ import annotations

from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import strategies as st

_MAX_DEPTH = 4
_KIND = FieldDescriptor

_INTEGERS: dict[int, tuple[int, int]] = {
    _KIND.TYPE_INT32: (-(1 << 31), (1 << 31) - 1),
    _KIND.TYPE_INT64: (-(1 << 63), (1 << 63) - 1),
    _KIND.TYPE_UINT32: (0, (1 << 32) - 1),
    _KIND.TYPE_UINT64: (0, (1 << 64) - 1),
}
_TEXTS = [
    "",
    "a",
    "smollm2-135m",
    "org/name",
    "hf://org/name",
    "ft:x",
    "ft:../../x@1",
    "../../etc/passwd",
    "/etc/passwd",
    "a\x00b",
    "\n",
    "{{ 1/0 }}",
    "{% for x in range(10**9) %}{% endfor %}",
    "%s%n",
    "'; DROP TABLE work; --",
    "١٢٣",
    "\u202egnp.exe",
    "x" * 5000,
    "-1",
    "NaN",
    "default",
    "cpu-demo",
]
_NUMBERS = [0.0, -0.0, 1.0, -1.0, 1e308, -1e308, 1e-308, float("inf"), float("-inf"), float("nan")]


def message(descriptor: Descriptor, known: tuple[str, ...] = (), depth: int = 0) -> st.SearchStrategy[Message]:
    """A message with any of its fields set. `known` are ids that exist."""
    texts = st.sampled_from([*_TEXTS, *known]) | st.text(st.characters(exclude_categories=["Cs"]), max_size=20)

    def scalar(field: FieldDescriptor) -> st.SearchStrategy[Any]:
        if field.type in _INTEGERS:
            least, most = _INTEGERS[field.type]
            return st.sampled_from([least, most, 0, 1]) | st.integers(least, most) | st.integers(0, 100)
        if field.type in (_KIND.TYPE_DOUBLE, _KIND.TYPE_FLOAT):
            return st.sampled_from(_NUMBERS) | st.floats()
        if field.type == _KIND.TYPE_BOOL:
            return st.booleans()
        if field.type == _KIND.TYPE_ENUM:
            return st.sampled_from([value.number for value in field.enum_type.values] + [99, -1])
        if field.type == _KIND.TYPE_BYTES:
            return st.binary(max_size=64)
        if field.type == _KIND.TYPE_STRING:
            return texts
        return message(field.message_type, known, depth + 1)

    @st.composite
    def build(draw: st.DrawFn) -> Message:
        out = GetMessageClass(descriptor)()
        fields = [field for field in descriptor.fields if depth < _MAX_DEPTH or field.message_type is None]
        if not fields:
            return out
        chosen = draw(st.lists(st.sampled_from(fields), unique_by=lambda field: field.name, max_size=len(fields)))
        for field in chosen:
            _fill(draw, out, field, scalar)
        return out

    return build()


def _fill(draw: st.DrawFn, out: Message, field: FieldDescriptor, scalar: Any) -> None:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        key, value = field.message_type.fields_by_name["key"], field.message_type.fields_by_name["value"]
        target = getattr(out, field.name)
        for _ in range(draw(st.integers(0, 3))):
            if value.message_type is not None:
                target[draw(scalar(key))].CopyFrom(draw(scalar(value)))
            else:
                target[draw(scalar(key))] = draw(scalar(value))
    elif field.is_repeated:
        getattr(out, field.name).extend(draw(st.lists(scalar(field), max_size=3)))
    elif field.message_type is not None:
        getattr(out, field.name).CopyFrom(draw(scalar(field)))
    else:
        setattr(out, field.name, draw(scalar(field)))
