"""Tokenizers and chat templates of models."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.hostile.artifact import ACCEPTED, Artifact, Family, Write
from tests.hostile.model_checks import check_tokenizer
from tests.hostile.model_files import Content, change, put, remove, spoiled, write_ordinary

_MIB = 1 << 20
_BAD, _CODE = "BAD_TOKENIZER", "REMOTE_CODE_REFUSED"
_CONFIG, _TOKENIZER = "tokenizer_config.json", "tokenizer.json"


def _changed(edit: Callable[[dict[str, Any]], Any]) -> Write:
    """Returns a function that writes a model whose tokenizer.json an edit changes."""

    def spoil(folder: Path) -> None:
        path = folder / _TOKENIZER
        values = json.loads(path.read_text())
        edit(values)
        path.write_text(json.dumps(values))

    return spoiled(spoil)


def _part(name: str, value: Any) -> Write:
    return _changed(lambda values: values.update({name: value}))


def _model(**values: Any) -> Write:
    return _changed(lambda found: found["model"].update(values))


def _split(pattern: str) -> Write:
    """A pre-tokenizer with a regular expression of the model's."""
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return _part("pre_tokenizer", {"type": "Sequence", "pretokenizers": [split, level]})


def _token(content: str, number: int = 384, **values: Any) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    return {"id": number, "content": content, **flags, **values}


def _tokens(tokens: Callable[[], list[dict[str, Any]]]) -> Write:
    return _changed(lambda values: values["added_tokens"].extend(tokens()))


def _file(content: Content, name: str = _TOKENIZER) -> Write:
    return spoiled(put(name, content))


_TEXT_GROWS = {"type": "Replace", "pattern": {"String": "o"}, "content": "a" * _MIB}
_LISTED: dict[str, tuple[Write, str]] = {
    "missing": (spoiled(remove(_TOKENIZER)), "NO_TOKENIZER"),
    "empty": (_file(""), _BAD),
    "cut": (_file('{"version": "1.0", "truncation": nu'), _BAD),
    "list": (_file("[]"), _BAD),
    "empty-object": (_file("{}"), _BAD),
    "deep": (_file('{"a": ' * 100_000), _BAD),
    "not-utf8": (_file(b"\xff\xfe" * 100), _BAD),
    "pickle": (_file(b"\x80\x04K\x01."), _BAD),
    "hundred-megabytes": (_file(lambda: b'{"a": "' + b"a" * (100 * _MIB) + b'"}'), _BAD),
    "model-unknown": (_model(type="Custom"), _BAD),
    "model-null": (_part("model", None), _BAD),
    "vocabulary-empty": (_model(vocab={}, merges=[]), ACCEPTED),
    "vocabulary-negative": (_model(vocab={"a": -1}), _BAD),
    "vocabulary-2^40": (_model(vocab={"a": 1 << 40}), _BAD),
    "merges-unknown": (_model(merges=["x y"]), _BAD),
    "merges-numbers": (_model(merges=[1, 2]), _BAD),
    "dropout": (_model(dropout=2.0), _BAD),
    "unknown-token-missing": (_model(unk_token="<none>"), ACCEPTED),
    "pre-tokenizer-code": (_part("pre_tokenizer", {"type": "Custom", "code": "import os"}), _BAD),
    "normalizer-code": (_part("normalizer", {"type": "PyNormalizer", "module": "os"}), _BAD),
    "processor-code": (_part("post_processor", {"type": "Custom"}), _BAD),
    "decoder-code": (_part("decoder", {"type": "Custom", "auto_map": "a.B"}), _BAD),
    "decoder-null": (_part("decoder", None), ACCEPTED),
    "charsmap-garbage": (_part("normalizer", {"type": "Precompiled", "precompiled_charsmap": "////"}), _BAD),
    "charsmap-long": (_part("normalizer", {"type": "Precompiled", "precompiled_charsmap": "A" * _MIB}), _BAD),
    "regex-invalid": (_split("("), _BAD),
    "regex-nested": (_split("(" * 100_000 + ")" * 100_000), _BAD),
    "regex-repeats": (_split("(a{1000}){1000}"), ACCEPTED),
    "regex-backtracks": (_split(r"(\S+\s?)*$(?<!\s)"), _BAD),
    "regex-empty": (_split(""), ACCEPTED),
    "replace-endless": (_part("normalizer", {"type": "Replace", "pattern": {"Regex": ""}, "content": "a" * 1000}), _BAD),
    "replace-grows": (_part("normalizer", {"type": "Replace", "pattern": {"Regex": "."}, "content": "a" * 10_000}), _BAD),
    "truncation": (_part("truncation", {"max_length": 0, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}), ACCEPTED),
    "truncation-huge": (_part("truncation", {"max_length": 1 << 63, "strategy": "LongestFirst", "stride": 1 << 63, "direction": "Right"}), ACCEPTED),
    "padding-huge": (_part("padding", {"strategy": {"Fixed": 1 << 40}, "direction": "Left", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0, "pad_token": "a"}), ACCEPTED),
    "added-token-of-a-megabyte": (_tokens(lambda: [_token("a" * _MIB)]), ACCEPTED),
    "added-token-empty": (_tokens(lambda: [_token("")]), ACCEPTED),
    "added-token-2^32": (_tokens(lambda: [_token("<x>", (1 << 32) - 1)]), ACCEPTED),
    "added-token-2^40": (_tokens(lambda: [_token("<x>", 1 << 40)]), _BAD),
    "added-token-negative": (_tokens(lambda: [_token("<x>", -1)]), _BAD),
    "added-token-like-a-regex": (_tokens(lambda: [_token("(a+)+$", special=True)]), ACCEPTED),
    "added-tokens-100,000": (_tokens(lambda: [_token(f"<{n}>", 384 + n) for n in range(100_000)]), ACCEPTED),
    "special-tokens-20,000": (_tokens(lambda: [_token(f"<{n}>", 384 + n, special=True) for n in range(20_000)]), ACCEPTED),
    "code-of-its-own": (spoiled(change(_CONFIG, auto_map={"AutoTokenizer": ["a.B", None]})), _CODE),
    "class-of-its-own": (spoiled(change(_CONFIG, tokenizer_class="os.system")), ACCEPTED),
    "object": (spoiled(change(_CONFIG, tokenizer_object="a")), _BAD),
    "inputs": (spoiled(change(_CONFIG, init_inputs=["a", "b"])), ACCEPTED),
    "file-outside": (spoiled(change(_CONFIG, tokenizer_file="../outside/secret", vocab_file="/etc/passwd")), ACCEPTED),
    "templates-outside": (spoiled(change(_CONFIG, chat_template_file="../outside/secret")), ACCEPTED),
    "gguf-outside": (spoiled(change(_CONFIG, gguf_file="../outside/secret")), ACCEPTED),
    "special-tokens-list": (spoiled(change(_CONFIG, eos_token=["a"])), _BAD),
    "special-tokens-number": (spoiled(change(_CONFIG, eos_token=5)), _BAD),
    "special-tokens-object": (spoiled(change(_CONFIG, eos_token={"__type": "AddedToken", "content": 5})), _BAD),
    "special-tokens-missing": (spoiled(change(_CONFIG, eos_token=None)), "NO_EOS_TOKEN"),
    "special-token-of-a-megabyte": (spoiled(change(_CONFIG, eos_token="a" * _MIB)), ACCEPTED),
    "decoder-of-added-tokens": (spoiled(change(_CONFIG, added_tokens_decoder={"x": 1})), _BAD),
    "decoder-of-huge-tokens": (spoiled(change(_CONFIG, added_tokens_decoder={str(10**30): _token("<x>")})), ACCEPTED),
    "length-huge": (spoiled(change(_CONFIG, model_max_length=10**4000)), ACCEPTED),
    "length-text": (spoiled(change(_CONFIG, model_max_length="long")), _BAD),
    "length-list": (spoiled(change(_CONFIG, model_max_length=[1])), _BAD),
    "length-object": (spoiled(change(_CONFIG, model_max_length={"a": 1})), _BAD),
    "map-list": (_file("[]", "special_tokens_map.json"), _BAD),
    "map-deep": (_file('{"a": ' * 100_000, "special_tokens_map.json"), _BAD),
    "added-tokens-list": (_file("[1]", "added_tokens.json"), _BAD),
    "added-tokens-text": (_file('{"a": "b"}', "added_tokens.json"), _BAD),
}  # fmt: skip
_LIMITS: dict[str, dict[str, Any]] = {
    "hundred-megabytes": {"mib": 768},
    "added-tokens-100,000": {"seconds": 8, "mib": 768},
    "special-token-of-a-megabyte": {"seconds": 6, "mib": 512},
    "special-tokens-20,000": {"seconds": 8, "mib": 768},
    "replace-grows": {"mib": 2560, "seconds": 4},
    "regex-nested": {"mib": 512},
}

TOKENIZERS = Family(
    "tokenizers",
    (
        Artifact("ordinary", write_ordinary, check_tokenizer, ACCEPTED),
        *(
            Artifact(name, write, check_tokenizer, expected, **_LIMITS.get(name, {}))
            for name, (write, expected) in _LISTED.items()
        ),
        Artifact("regex-without-end", _split(r"(?:.|[\w\W]){22}(?<=\0)"), check_tokenizer, _BAD, seconds=30, long=True, alone=True),
        # No regular expression is involved, so the library ends the process when it gets no more memory.
        Artifact("replace-text-grows", _part("normalizer", _TEXT_GROWS), check_tokenizer, _BAD, alone=True),
    ),
)  # fmt: skip


def _template(text: str, name: str = "chat_template.jinja") -> Write:
    return spoiled(put(name, text))


_FAILED, _EXCEEDED = "TEMPLATE_FAILED", "TEMPLATE_EXCEEDED"
_TEMPLATES: dict[str, tuple[str, str]] = {
    "syntax": ("{% for %}", _FAILED),
    "parentheses": ("{{ " + "(" * 500 + ")" * 500 + " }}", _FAILED),
    "parentheses-100,000": ("{{ " + "(" * 100_000, _FAILED),
    "class": ("{{ ''.__class__ }}", ACCEPTED),
    "subclasses": ("{{ ''.__class__.__mro__[1].__subclasses__() }}", _FAILED),
    "globals": ("{{ cycler.__init__.__globals__.os.popen('true').read() }}", _FAILED),
    "globals-of-self": ("{{ self.__init__.__globals__ }}", _FAILED),
    "builtins": ("{{ joiner.__init__.__globals__['__builtins__'] }}", _FAILED),
    "namespace": ("{{ namespace.__init__.__globals__ }}", _FAILED),
    "attr": ("{{ ''|attr('__class__')|attr('__mro__') }}", ACCEPTED),
    "map-attr": ("{{ ['']|map(attribute='__class__')|list }}", ACCEPTED),
    "format": ("{{ '{0.__class__}'.format('') }}", ACCEPTED),
    "format-map": ("{{ '{a.__class__}'.format_map({'a': ''}) }}", ACCEPTED),
    "raise": ("{{ raise_exception('no') }}", _FAILED),
    "strftime": ("{{ strftime_now('%Y' * 100000) | length }}", ACCEPTED),
    "include": ("{% include '/etc/passwd' %}", _FAILED),
    "import": ("{% import 'os' as os %}", _FAILED),
    "extends": ("{% extends '../outside/secret' %}", _FAILED),
    "changes-messages": ("{% set _ = messages.append({}) %}{{ messages }}", _FAILED),
    "changes-list": ("{% set _ = messages.clear() %}", _FAILED),
    "recursion": ("{% macro m(n) %}{{ m(n + 1) }}{% endmacro %}{{ m(0) }}", _FAILED),
    "memory": ("{{ 'a' * 10000000000 }}", _EXCEEDED),
    "memory-doubling": ("{% set n = namespace(x='aaaa') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}", _EXCEEDED),
    "memory-list": ("{% set n = namespace(x=[1]) %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}", _EXCEEDED),
    "memory-centre": ("{{ 'x' | center(10000000000) }}", _EXCEEDED),
    "range": ("{{ range(10**9) | list | length }}", _FAILED),
    "undefined": ("{{ nothing.of.that }}", _FAILED),
    "divides": ("{{ 1 / 0 }}", _FAILED),
    "control-tokens": ("{{ '<|im_end|>' * 1000 }}", ACCEPTED),
    "empty": ("", ACCEPTED),
    "nul": ("\0{{ messages }}", ACCEPTED),
    "surrogates": ("{{ '\\ud800' }}", _FAILED),
    "surrogates-marked": ("{% generation %}{{ '\\ud800' }}{% endgeneration %}", _FAILED),
    "surrogates-raised": ("{{ raise_exception('\\ud800') }}", _FAILED),
    "surrogates-formatted": ("{{ '%c' | format(55296) }}", _FAILED),
    "format-date": ("{{ strftime_now('\\ud800') }}", _FAILED),
    "stops": ("{{ [].__iter__().__next__() }}", _FAILED),
    "next": ("{% set c = cycler('a') %}{{ c.reset(1) }}", _FAILED),
    "integer": ("{{ ('9' * 5000) | int + ('9' * 5000) | int }}", ACCEPTED),
    "float": ("{{ 1e308 * 10 | int }}", ACCEPTED),
    "number-literal": ("{{ " + "9" * 10_000 + " }}", _FAILED),
    "names-2,000": ("{{ f(" + ", ".join(f"a{n}=1" for n in range(2000)) + ") }}", _FAILED),
    "arguments-twice": ("{{ dict(a=1, a=2) }}", _FAILED),
    "break-outside": ("{% break %}", _FAILED),
    "blocks-the-same": ("{% block a %}{% endblock %}{% block a %}{% endblock %}", _FAILED),
    "keyword": ("{% set None = 1 %}{% set class = 2 %}{{ class }}", _FAILED),
    "name-beyond-ascii": ("{% set \u2118\u00b7 = 1 %}{{ \u2118 }}", ACCEPTED),
    "filters-nested": ("{{ 1" + "|string" * 5000 + " }}", _FAILED),
    "calls-nested": ("{{ " + "dict(" * 1000 + ")" * 1000 + " }}", _FAILED),
    "generation-across": ("{% generation %}{% for a in [1] %}{% endgeneration %}{% endfor %}", _FAILED),
    "comment-without-end": ("{# " + "a" * (_MIB - 3), _FAILED),
    "more-than-a-megabyte": ("a" * (_MIB + 1), _EXCEEDED),
    "half-a-megabyte": ("a" * (_MIB // 2), ACCEPTED),
    "blocks-10,000": ("{% if true %}" * 10_000 + "{% endif %}" * 10_000, _FAILED),
    "loops-nested": ("{% for a in [1] %}" * 200 + "{% endfor %}" * 200, _FAILED),
    "generation-nested": ("{% generation %}{% generation %}a{% endgeneration %}{% endgeneration %}", ACCEPTED),
    "code-in-python": ("{% import os %}{{ __import__('os').system('true') }}", _FAILED),
}  # fmt: skip
_SLOW: dict[str, str] = {
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% set x = a %}{% endfor %}{% endfor %}",
    "power": "{{ 10 ** (10 ** 10) }}",
    "squares": "{% set n = namespace(x=3) %}{% for i in range(60) %}{% set n.x = n.x * n.x %}{% endfor %}",
    "slices": "{{ [1] | slice(10 ** 9) | list }}",
}

CHAT_TEMPLATES = Family(
    "chat templates",
    (
        Artifact("ordinary", write_ordinary, check_tokenizer, ACCEPTED),
        *(
            Artifact(name, _template(text), check_tokenizer, expected, seconds=2, mib=768)
            for name, (text, expected) in _TEMPLATES.items()
        ),
        *(
            Artifact(name, _template(text), check_tokenizer, _EXCEEDED, seconds=15, mib=768, alone=True, long=name != "power")
            for name, text in _SLOW.items()
        ),
        Artifact("list", spoiled(remove("chat_template.jinja"), change(_CONFIG, chat_template=["a"])), check_tokenizer, _BAD),
        Artifact("number", spoiled(remove("chat_template.jinja"), change(_CONFIG, chat_template=5)), check_tokenizer, _BAD),
        *(
            Artifact(f"of-type-{type(value).__name__}", spoiled(remove("chat_template.jinja"), change(_CONFIG, chat_template=value)), check_tokenizer, _BAD)
            for value in (5.5, True, {"default": 5})
        ),
        Artifact("named", spoiled(remove("chat_template.jinja"), change(_CONFIG, chat_template=[{"name": "default", "template": "{{ 1 / 0 }}"}])), check_tokenizer, _FAILED),
        Artifact("named-without-template", spoiled(remove("chat_template.jinja"), change(_CONFIG, chat_template=[{"name": "default"}])), check_tokenizer, _BAD),
        Artifact("additional", _template("{{ 1 / 0 }}", "additional_chat_templates/default.jinja"), check_tokenizer, _FAILED),
        Artifact("not-utf8", spoiled(put("chat_template.jinja", b"\xff")), check_tokenizer, _BAD),
        Artifact("hundred-megabytes", spoiled(put("chat_template.jinja", lambda: b"a" * (100 * _MIB))), check_tokenizer, _EXCEEDED, seconds=15, mib=768, long=True),
    ),
)  # fmt: skip
