"""Row templates, chat templates and mappings of a job's spec."""

import json
from pathlib import Path
from typing import Any

from tests.hostile.artifact import ACCEPTED, Artifact, Family, home_of
from tests.hostile.data_checks import GOOD, check_rows
from tests.hostile.model_files import put

_FAILED, _EXCEEDED, _BAD = "TEMPLATE_FAILED", "TEMPLATE_EXCEEDED", "BAD_TEMPLATE"
_NOT_JSON, _NOTHING, _CONFIG = "TEMPLATE_NOT_JSON", "EMPTY_DATASET", "INVALID_CONFIG"
_ORDINARY = '{"question": {{ question | tojson }}, "answer": {{ answer | tojson }}}'
_MIB = 1 << 20


def _template(name: str, text: str, expected: str, **limits: Any) -> Artifact:
    def check(folder: Path) -> set[str]:
        return check_rows(folder / "rows.jsonl", home_of(folder), {"template": (folder / "template").read_text()})

    def write(folder: Path) -> None:
        put("rows.jsonl", GOOD)(folder)
        put("template", text)(folder)

    return Artifact(name, write, check, expected, **{"seconds": 2, "mib": 768, **limits})


_LISTED: dict[str, tuple[str, str]] = {
    "class": ("{{ ''.__class__ }}", _FAILED),
    "mro": ("{{ ''.__class__.__mro__[1].__subclasses__() }}", _FAILED),
    "mro-by-item": ("{{ ''['__class__'] }}", _FAILED),
    "globals": ("{{ cycler.__init__.__globals__.os }}", _FAILED),
    "self": ("{{ self.__init__.__globals__ }}", _FAILED),
    "self-blocks": ("{{ self._TemplateReference__context }}", _FAILED),
    "row": ("{{ row.__class__.__init__.__globals__ }}", _FAILED),
    "attr": ("{{ ''|attr('__class__') }}", _FAILED),
    "attr-in-parts": ("{{ ''|attr('__cl' ~ 'ass__') }}", _FAILED),
    "attr-escaped": ("{{ ''|attr('\\x5f\\x5fclass\\x5f\\x5f') }}", _FAILED),
    "map": ("{{ [row]|map('attr', '__class__')|list|tojson }}", _FAILED),
    "map-attribute": ("{{ [row]|map(attribute='__class__')|list|tojson }}", _FAILED),
    "sort-attribute": ("{{ [row, row]|sort(attribute='__class__')|list|tojson }}", _FAILED),
    "groupby": ("{{ [row]|groupby('__class__')|list|tojson }}", _FAILED),
    "format": ("{{ '{0.__class__}'.format(1) }}", _FAILED),
    "format-map": ("{{ '{a.__class__}'.format_map({'a': 1}) }}", _FAILED),
    "format-filter": ("{{ '%s' | format(''.__class__) }}", _FAILED),
    "format-in-map": ("{{ ['{0.__class__}']|map('format', 1)|list|tojson }}", _FAILED),
    "generator-frame": ("{{ ([1]|map('string')).gi_frame.f_globals }}", _FAILED),
    "coroutine-frame": ("{{ namespace.cr_frame }}", _FAILED),
    "function-code": ("{{ range.__call__.__self__ }}", _FAILED),
    "changes-the-row": ("{% set _ = row.update({'a': 1}) %}", _FAILED),
    "include": ("{% include '/etc/passwd' %}", _FAILED),
    "include-relative": ("{% include '../outside/secret' %}", _FAILED),
    "import": ("{% import 'os' as os %}{{ os }}", _FAILED),
    "extends": ("{% extends row %}", _FAILED),
    "debug": ("{% debug %}", _BAD),
    "do": ("{% do row.clear() %}", _BAD),
    "lipsum": ("{{ lipsum.__globals__ }}", _FAILED),
    "python": ("{{ __import__('os').system('true') }}", _FAILED),
    "eval": ("{{ eval('1') }}", _FAILED),
    "open": ("{{ open('/etc/passwd').read() }}", _FAILED),
    "percent": ("{{ '%1000000000d' % 1 }}", _FAILED),
    "range": ("{{ range(10**6) | list }}", _FAILED),
    "recursion": ("{% macro m(n) %}{{ m(n + 1) }}{% endmacro %}{{ m(0) }}", _EXCEEDED),
    "recursive-loop": ("{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}", _EXCEEDED),
    "recursive-block": ("{% block a %}{{ self.a() }}{% endblock %}", _EXCEEDED),
    "loops": ("{% for a in range(9999) %}{% for b in range(9999) %}{% set x = a %}{% endfor %}{% endfor %}", _EXCEEDED),
    "tree": ("{% macro m(n) %}{% for i in range(9) %}{{ m(n + 1) if n < 90 }}{% endfor %}{% endmacro %}{{ m(0) }}", _EXCEEDED),
    "writes-gigabytes": ("{% for i in range(99999) %}{{ 'a' * 1000 }}{% endfor %}", _EXCEEDED),
    "text-doubling": ("{% set n = namespace(x='aaaa') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}", _EXCEEDED),
    "list-doubling": ("{% set n = namespace(x=[1]) %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}", _EXCEEDED),
    "number-doubling": ("{% set n = namespace(x=3) %}{% for i in range(60) %}{% set n.x = n.x * n.x %}{% endfor %}", _EXCEEDED),
    "text-times-10^10": ("{{ 'a' * 10000000000 }}", _EXCEEDED),
    "power": ("{{ 10 ** (10 ** 10) }}", _EXCEEDED),
    "power-negative": ("{{ 10 ** -(10 ** 10) }}", _EXCEEDED),
    "centre": ("{{ 'x' | center(10000000000) }}", _EXCEEDED),
    "indent": ("{{ 'x\\nx' | indent(10000000000) }}", _EXCEEDED),
    "wordwrap": ("{{ 'x' | wordwrap(1, wrapstring='a' * 100000000) }}", _NOT_JSON),
    "replace": ("{{ ('a' * 100000) | replace('a', 'b' * 100000) }}", _EXCEEDED),
    "replace-empty": ("{{ ('a' * 1000000) | replace('', 'b' * 10000) }}", _EXCEEDED),
    "join": ("{{ ([('a' * 100000)] * 100000) | join(',') }}", _EXCEEDED),
    "expandtabs": ("{{ '\\t'.expandtabs(10000000000) }}", _FAILED),
    "zfill": ("{{ '1'.zfill(10000000000) }}", _EXCEEDED),
    "ljust": ("{{ 'a'.ljust(10000000000) }}", _EXCEEDED),
    "translate": ("{{ ('a' * 1000).translate({97: 'b' * 1000000}) }}", _EXCEEDED),
    "dict-of-lists": ("{{ dict(a=[1] * 1000000000) | tojson }}", _EXCEEDED),
    "batch": ("{{ range(9999) | batch(1, fill_with='a') | list | length }}", _NOT_JSON),
    "int-of-text": ("{{ ('9' * 100000) | int }}", _NOT_JSON),
    "float-of-text": ("{{ '1e999999' | float }}", _NOT_JSON),
    "json-deep": ("{{ '[' * 100000 }}", _NOT_JSON),
    "json-deep-object": ("""{{ '{"a":' * 100000 }}""", _NOT_JSON),
    "json-deeper-than-rows": ("""{"question": {{ '[' * 500 }}{{ ']' * 500 }}}""", _NOT_JSON),
    "json-number": ("""{"question": {{ '9' * 1000000 }}}""", _NOT_JSON),
    "json-rows-1,000": ("[{}{% for i in range(999) %},{}{% endfor %}]", "UNKNOWN_FORMAT"),
    "nothing": ("{# nothing #}", _NOTHING),
    "blank": ("  ", _CONFIG),
    "syntax": ("{% for %}", _BAD),
    "unclosed": ("{{ unclosed", _BAD),
    "parentheses": ("{{ " + "(" * 500 + ")" * 500 + " }}", _BAD),
    "parentheses-60,000": ("{{ " + "(" * 60_000, _BAD),
    "brackets": ("{{ " + "[" * 5000 + "]" * 5000 + " }}", _BAD),
    "not-60,000": ("{{ " + "not " * 15_000 + "1 }}", _BAD),
    "minus-60,000": ("{{ " + "-" * 60_000 + "1 }}", _BAD),
    "pipes-20,000": ("{{ 1" + "|e" * 20_000 + " }}", _BAD),
    "dots-20,000": ("{{ row" + ".a" * 20_000 + " }}", _BAD),
    "blocks-nested": ("{% if 1 %}" * 2000 + "{% endif %}" * 2000, _BAD),
    "number-literal": ("{{ " + "9" * 60_000 + " }}", _BAD),
    "nul": ("\0", _CONFIG),
    "65-kib": ("a" * (65 * 1024), _CONFIG),
}  # fmt: skip

ROW_TEMPLATES = Family(
    "row templates",
    (
        _template("ordinary", _ORDINARY, ACCEPTED),
        *(_template(name, *case) for name, case in _LISTED.items()),
        _template("slices", "{{ [1] | slice(10 ** 9) | list }}", _EXCEEDED, seconds=15, alone=True, long=True),
        _template(
            "compares",
            "{% set n = namespace(a=[1], b=[1]) %}{% for i in range(60) %}{% set n.a = [n.a, n.a] %}"
            "{% set n.b = [n.b, n.b] %}{% endfor %}{{ n.a == n.b }}",
            _EXCEEDED,
            seconds=15,
            alone=True,
            long=True,
        ),
        _template("sorts", "{% for i in range(99999) %}{% set _ = range(99999) | sort | list %}{% endfor %}", _EXCEEDED, seconds=15, long=True),
    ),
)  # fmt: skip


def _mapping(name: str, mapping: Any, expected: str, rows: bytes = GOOD) -> Artifact:
    def check(folder: Path) -> set[str]:
        source = {"mapping": json.loads((folder / "mapping.json").read_text())}
        return check_rows(folder / "rows.jsonl", home_of(folder), source)

    def write(folder: Path) -> None:
        put("rows.jsonl", rows)(folder)
        put("mapping.json", json.dumps(mapping))(folder)

    return Artifact(name, write, check, expected)


def _prompt(name: str, expected: str, **spec: Any) -> Artifact:
    def check(folder: Path) -> set[str]:
        return check_rows(folder / "rows.jsonl", home_of(folder), **json.loads((folder / "spec.json").read_text()))

    def write(folder: Path) -> None:
        put("rows.jsonl", GOOD)(folder)
        put("spec.json", json.dumps(spec))(folder)

    return Artifact(name, write, check, expected, seconds=2, mib=768)


MAPPINGS = Family(
    "mappings and prompts",
    (
        _mapping("ordinary", {"question": "question"}, ACCEPTED),
        _mapping("unknown-column", {"question": "../../etc/passwd"}, "MISSING_COLUMN UNKNOWN_COLUMN"),
        _mapping("unknown-key", {"__class__": "question"}, _CONFIG),
        _mapping("key-nul", {"question\0": "question"}, _CONFIG),
        _mapping("value-number", {"question": 1}, _CONFIG),
        _mapping("value-list", {"question": ["question"]}, _CONFIG),
        _mapping("value-empty", {"question": ""}, _CONFIG),
        _mapping("value-of-a-megabyte", {"question": "a" * _MIB}, "MISSING_COLUMN UNKNOWN_COLUMN"),
        _mapping("value-control", {"question": "\x1b[2J\u202e\0"}, _CONFIG),
        _mapping("value-surrogate", {"question": "\ud800"}, _CONFIG),
        _mapping("list", ["question"], _CONFIG),
        _mapping("text", "question", _CONFIG),
        _mapping("deep", json.loads('{"question": ' * 90 + "1" + "}" * 90), _CONFIG),
        _mapping("swapped", {"question": "answer", "answer": "question"}, ACCEPTED),
        _mapping("the-same-twice", {"question": "question", "answer": "question"}, ACCEPTED),
        _mapping("keys-10,000", {f"k{number}": "a" for number in range(10_000)}, _CONFIG),
        _prompt("system-prompt-control", ACCEPTED, system_prompt="\x1b[2J<|im_end|>"),
        _prompt("system-prompt-template", ACCEPTED, system_prompt="{{ ''.__class__ }}"),
        _prompt("system-prompt-10-mb", _CONFIG, system_prompt="a" * (10 * _MIB)),
        _prompt("chat-template-class", _FAILED, chat_template="{{ ''.__class__ }}"),
        _prompt("chat-template-memory", _EXCEEDED, chat_template="{{ 'a' * 10000000000 }}"),
        _prompt("chat-template-include", _FAILED, chat_template="{% include '/etc/passwd' %}"),
        _prompt("chat-template-syntax", _FAILED, chat_template="{% for %}"),
        _prompt("chat-template-10-mb", _CONFIG, chat_template="a" * (10 * _MIB)),
        _prompt("learning-rate-nan", _CONFIG, hyperparameters={"learning_rate": float("nan")}),
        _prompt("epochs-huge", _CONFIG, hyperparameters={"num_epochs": 1e308}),
        _prompt("length-huge", _CONFIG, hyperparameters={"max_length": 1 << 62}),
        _prompt("seed-huge", _CONFIG, seed=1 << 200),
        _prompt("rank-huge", _CONFIG, lora={"r": 1 << 40}),
        _prompt("module-regex", ACCEPTED, lora={"target_modules": ["(a+)+$"]}),
        _prompt("field-unknown", _CONFIG, trust_remote_code=True),
    ),
)
