"""Converts a row of a table to examples with a row template: sandboxed Jinja that writes JSON.

The columns of the row are variables; `row` holds all of them. The template writes one JSON object, which is a row of
one of the formats, or an array of several; if it writes nothing, or an empty array, the row is dropped. `tojson` quotes
a value:

    {% set about %}{{ age }} years old, {{ goal }}{% endset %}
    [{"question": {{ ("Which workout? " ~ about) | tojson }}, "answer": {{ workout | tojson }}},
     {"question": {{ ("What to eat? " ~ about) | tojson }}, "answer": {{ nutrition | tojson }}}]
"""

import difflib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from engine.data.json_files import json_error
from engine.data.json_shapes import printable
from engine.data.rows import Row, RowProblem, is_too_deep, json_type
from engine.data.template_limits import TEMPLATE_EXCEEDED, TemplateExceeded, failure_text, limit_of, limited_steps
from engine.errors import JobError, Violation

MAX_OUTPUT_CHARACTERS = 4 * 1024 * 1024
_MAX_BITS = 4096
_SHOWN_COLUMNS = 10


class RowTemplate:
    """A compiled row template."""

    def __init__(self, source: str, field: str) -> None:
        """`field` is its path in the spec. Raises JobError("BAD_TEMPLATE") when it cannot be parsed."""
        import jinja2

        self._field = field
        try:
            with limited_steps():
                self._template = _environment().from_string(source)
        except JobError:
            raise
        except (Exception, TemplateExceeded) as error:
            # Jinja and Python's compiler raise many errors for what they cannot parse.
            line = f"line {error.lineno}: " if isinstance(error, jinja2.TemplateSyntaxError) else ""
            raise self._bad(f"The row template cannot be read: {line}{failure_text(error)}.") from error

    def apply(self, row: Row) -> Iterator[Row | RowProblem]:
        """Yields the rows that the template makes of one row. Raises JobError("TEMPLATE_EXCEEDED") if it exceeds a
        limit: it would exceed it for every other row."""
        import jinja2

        names = {name: value for name, value in row.values.items() if name != "row"}
        try:
            with limited_steps():
                text = self._rendered({**names, "row": row.values})
        except (TemplateExceeded, MemoryError, RecursionError) as error:
            said = limit_of(error)
            raise JobError(
                TEMPLATE_EXCEEDED,
                f"The row template exceeds a limit for row {row.number}: {said}.",
                "Correct the template.",
                [Violation(self._field, f"row {row.number}: {said}")],
            ) from error
        except jinja2.UndefinedError as error:
            yield self._problem(row, f"{failure_text(error)}{_nearest(str(error), row.values)}")
            return
        except JobError:
            raise
        except Exception as error:  # noqa: BLE001 - a template can make Jinja and the methods of values raise any error
            yield self._problem(row, failure_text(error))
            return
        yield from self._parsed(row, text)

    def _rendered(self, values: Mapping[str, Any]) -> str:
        parts: list[str] = []
        left = MAX_OUTPUT_CHARACTERS
        for part in self._template.generate(values):
            left -= len(part)
            if left < 0:
                raise TemplateExceeded(f"it writes more than {MAX_OUTPUT_CHARACTERS:,} characters")
            parts.append(part)
        return "".join(parts)

    def _parsed(self, row: Row, text: str) -> Iterator[Row | RowProblem]:
        if not text.strip():
            return
        try:
            found = json.loads(text)
        except (ValueError, RecursionError) as error:
            yield RowProblem(
                row.number,
                "template",
                "TEMPLATE_NOT_JSON",
                f"the template does not write JSON: {json_error(error)}{_where(error)}; write values with | tojson",
            )
            return
        for item in found if isinstance(found, list) else [found]:
            if isinstance(item, dict) and not is_too_deep(item):
                yield Row(row.number, item, is_padded=row.is_padded)
            else:
                message = f"the template writes a JSON {json_type(item)}; it must write an object of columns"
                yield RowProblem(row.number, "template", "TEMPLATE_NOT_JSON", message)

    def _problem(self, row: Row, said: str) -> RowProblem:
        return RowProblem(row.number, "template", "TEMPLATE_FAILED", f"the template failed: {said}")

    def _bad(self, message: str) -> JobError:
        return JobError("BAD_TEMPLATE", message, "Correct the template.", [Violation(self._field, message)])


def _where(error: Exception) -> str:
    return f" on line {error.lineno}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""


def _environment() -> Any:
    import jinja2
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Environment(ImmutableSandboxedEnvironment):
        # A power or product of large numbers is one step that can take hours.
        intercepted_binops = frozenset({"*", "**", "%"})

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            if operator == "%" and isinstance(left, str):
                raise TypeError("text % values is not available; use ~ to join")
            bits = [abs(side).bit_length() for side in (left, right) if isinstance(side, int)]
            if operator == "**" and isinstance(right, int) and bits:
                bits = [bits[0] * abs(right)] if isinstance(left, int) else [abs(right).bit_length()]
            if sum(bits) > _MAX_BITS:
                raise TemplateExceeded("it computes with numbers that are too large")
            return super().call_binop(context, operator, left, right)

    # Constant folding would run expressions before the limits apply.
    environment = Environment(undefined=jinja2.StrictUndefined, autoescape=False, optimized=False)
    environment.policies["json.dumps_kwargs"] = {**environment.policies["json.dumps_kwargs"], "default": _no_json}
    for name in ("pprint", "random", "urlize", "xmlattr"):
        environment.filters.pop(name, None)
    environment.globals.pop("lipsum", None)
    return environment


def _no_json(value: Any) -> Any:
    """Converts a value that is not a JSON type for `tojson`. Raises TypeError for all but undefined values."""
    import jinja2

    if isinstance(value, jinja2.Undefined):
        # Strict undefined values raise an error that has their name.
        return str(value)
    raise TypeError(f"tojson cannot write a value of type {type(value).__name__}; put | string before it")


def _nearest(said: str, values: Mapping[str, Any]) -> str:
    parts = said.split("'")
    close = difflib.get_close_matches(parts[-2], list(values), n=1) if len(parts) > 2 else []
    if close:
        return f"; did you mean {printable(close[0])}?"
    shown = [printable(name) for name in list(values)[:_SHOWN_COLUMNS]]
    return f"; the row has {', '.join(shown)}{', ...' * (len(values) > len(shown))}" if shown else ""
