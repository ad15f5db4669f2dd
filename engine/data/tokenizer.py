"""Loads a base model's tokenizer and chat template, without torch."""

import bisect
import json
import re
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
from numpy.typing import NDArray

from engine.data.conversations import THOUGHT_NAMES, Message
from engine.data.rows import json_type
from engine.data.template_limits import (
    TEMPLATE_EXCEEDED,
    TemplateExceeded,
    failure_text,
    limit_of,
    limited_memory,
    limited_time,
)
from engine.data.tokenizer_limit import bad_tokenizer, limited_tokenizer
from engine.errors import JobError, Violation

PLAIN_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] + '\\n\\n' }}"
    "{% elif message['role'] == 'user' %}{{ '### Question:\\n' + message['content'] + '\\n\\n### Answer:\\n' }}"
    "{% else %}{{ message['content'] + eos_token + '\\n\\n' }}{% endif %}"
    "{% endfor %}"
)
"""For models without a chat template, mostly base models: headings, and the model's end-of-text token after each
answer. A question already ends with the heading of its answer, so a generation prompt adds nothing."""

_MARK = re.compile(r"\{%-?\s*generation\b")
_MAX_TEMPLATE = 1 << 20
"""Characters of a chat template; those of models have some thousands. Compiling a huge one takes much memory."""


@dataclass(frozen=True)
class Encoding:
    """The token ids of a text, and for each token the characters [start, end) that it covers."""

    ids: list[int]
    offsets: list[tuple[int, int]]


Span = tuple[int, int]
"""Characters [start, end) of a text."""


@dataclass(frozen=True)
class EncodedTexts:
    """The token ids of several texts, and the mapping from tokens to characters."""

    ids: NDArray[numpy.int32]
    """Concatenated ids of all texts."""
    starts: list[int]
    """Index in `ids` at which each text starts, and the length of `ids` at the end."""
    _texts: Sequence[str]
    _bytes: NDArray[numpy.int64]
    """Number of bytes of all texts before each token, if tokens are runs of bytes; else empty."""
    _encodings: dict[int, Any]
    """Index of a text → its encoding with offsets, for texts whose offsets cannot be computed from bytes."""

    def within(self, spans: Sequence[Sequence[Span]]) -> NDArray[numpy.bool_]:
        """Returns, for each token, True if it covers a character in one of its text's spans. A token across the border
        of a span is included, because it covers characters on both sides."""
        edges = numpy.zeros(len(self.ids) + 1, numpy.int64)
        starts: list[int] = []
        ends: list[int] = []
        for index, (text, wanted) in enumerate(zip(self._texts, spans, strict=True)):
            if encoding := self._encodings.get(index):
                for start, end in wanted:
                    first, last = _covering(encoding, start, end)
                    if first < last:
                        edges[self.starts[index] + first] += 1
                        edges[self.starts[index] + last] -= 1
                continue
            before = int(self._bytes[self.starts[index]])
            ascii_only = text.isascii()
            for start, end in wanted:
                starts.append(before + (start if ascii_only else len(text[:start].encode())))
                ends.append(before + (end if ascii_only else len(text[:end].encode())))
        if starts:
            # _bytes[token + 1] is the end of a token.
            firsts = self._bytes[1:].searchsorted(starts, "right")
            lasts = self._bytes[:-1].searchsorted(ends, "left")
            some = firsts < lasts
            numpy.add.at(edges, firsts[some], 1)
            numpy.subtract.at(edges, lasts[some], 1)
        inside: NDArray[numpy.bool_] = edges[:-1].cumsum() > 0
        return inside


def _covering(encoding: Any, start: int, end: int) -> Span:
    tokens = range(len(encoding))
    # The starts and ends of tokens never decrease, so they can be bisected.
    first = bisect.bisect_right(tokens, start, key=lambda token: encoding.token_to_chars(token)[1])
    return first, bisect.bisect_left(tokens, end, lo=first, key=lambda token: encoding.token_to_chars(token)[0])


class Tokenizer:
    """Renders conversations and encodes text; never adds a token to the vocabulary."""

    def __init__(self, directory: Path, chat_template: str | None = None) -> None:
        """Reads the tokenizer of a model's folder; `chat_template` replaces its own.

        Raises JobError: NO_TOKENIZER (no tokenizer.json), BAD_TOKENIZER (it cannot be loaded), NO_EOS_TOKEN (no token
        that ends an answer).
        """
        # The import takes seconds, which a serving process must never spend.
        from transformers import PreTrainedTokenizerFast
        from transformers.utils.chat_template_utils import _compile_jinja_template

        if not (directory / "tokenizer.json").is_file():
            raise JobError(
                "NO_TOKENIZER",
                "The base model has no tokenizer.json.",
                "Choose a base model that ships a fast tokenizer.",
            )
        try:
            with limited_tokenizer(0):
                self._fast: Any = PreTrainedTokenizerFast.from_pretrained(str(directory))
                self._read(self._fast, chat_template)
        except (JobError, OSError):
            raise
        except Exception as error:
            # Any value in the model's files may have a wrong type, and the library finds it anywhere.
            raise bad_tokenizer(f"cannot be loaded: {str(error)[:200]}") from error
        self._limited_memory = limited_memory(measure=False)
        self._limited_time = limited_time()
        self._compile = _compile_jinja_template
        self._compiled: Any = None
        self._known: dict[str, Any] = {}
        """Variables of every rendering except the conversation."""

    def _read(self, fast: Any, chat_template: str | None) -> None:
        from tokenizers import processors

        if fast.eos_token_id is None:
            raise JobError(
                "NO_EOS_TOKEN",
                "The base model's tokenizer has no end-of-text token; a model trained with it would never stop.",
                "Choose a base model whose tokenizer_config.json has an eos_token.",
            )
        # Post-processors add special tokens that the template already wrote, and remove spaces from the offsets.
        self._bare = type(fast.backend_tokenizer).from_str(fast.backend_tokenizer.to_str())
        self._bare.post_processor = processors.Sequence([])
        self._bare.no_truncation()
        self._bare.no_padding()
        own = _own_template(fast.chat_template) if chat_template is None else None
        self.has_own_template = own is not None
        self.template: str = chat_template or own or PLAIN_TEMPLATE
        self.marks_answers = _MARK.search(self.template) is not None
        """True if the template marks the text that the model generates with {% generation %}."""
        self._thought_key = next((name for name in THOUGHT_NAMES if _reads(self.template, name)), THOUGHT_NAMES[0])
        self._token_texts = {name: str(token) for name, token in fast.special_tokens_map.items()}
        self._token_bytes = _token_bytes(self._bare)
        self._normalises = self._bare.normalizer is not None
        self.eos_id: int = fast.eos_token_id
        self.eos_token: str = fast.eos_token
        added = list(fast.added_tokens_decoder.items())
        self.special_ids = frozenset({token_id for token_id, token in added if token.special} | {self.eos_id})
        self.vocabulary: dict[str, int] = self._bare.get_vocab(with_added_tokens=True)
        """Token → id, with the tokens that were added."""
        self.num_ids: int = max(self.vocabulary.values()) + 1
        """One more than the largest id."""
        # Longest first: if two tokens start with the same text, the longer one is meant.
        specials = sorted({str(token) for _, token in added if token.special} | {self.eos_token}, key=len, reverse=True)
        self.control = re.compile("|".join(map(re.escape, specials)))
        """Matches text that is encoded as a control token."""
        self.special_texts = tuple(specials)
        """Texts of the control tokens, longest first."""
        empty = fast("", add_special_tokens=True)["input_ids"]
        self.leading_ids: list[int] = [token_id for token_id in empty if token_id == fast.bos_token_id][:1]
        """Ids that the tokenizer adds before plain text: its begin-of-text token, or none."""

    def render(
        self, messages: Sequence[Message], *, generation_prompt: bool = False, tools: Sequence[dict[str, Any]] = ()
    ) -> str:
        """Returns the conversation rendered by the chat template, in the sandbox of transformers. `tools` are the JSON
        schemas of the tools that the conversation may call.

        Raises JobError: TEMPLATE_FAILED if the template cannot be parsed or refuses the conversation,
        TEMPLATE_EXCEEDED if it exceeds a limit.
        """
        return self._rendered(messages, tools, generation_prompt, None)

    def render_marked(
        self, messages: Sequence[Message], tools: Sequence[dict[str, Any]] = ()
    ) -> tuple[str, list[Span]]:
        """Returns the rendered conversation, and the spans that {% generation %} marks. Raises as `render` does."""
        spans: list[Span] = []
        return self._rendered(messages, tools, False, spans), spans

    def _rendered(
        self,
        messages: Sequence[Message],
        tools: Sequence[dict[str, Any]],
        generation_prompt: bool,
        spans: list[Span] | None,
    ) -> str:
        try:
            try:
                with self._limited_memory, self._limited_time:
                    return self._written(messages, tools, generation_prompt, spans)
            except MemoryError:
                # The size of the process was perhaps measured before it grew.
                if spans:
                    spans.clear()
                with limited_memory(), self._limited_time:
                    return self._written(messages, tools, generation_prompt, spans)
        except (TemplateExceeded, MemoryError) as error:
            said = f"The chat template exceeds a limit: {limit_of(error)}."
            raise bad_chat_template(TEMPLATE_EXCEEDED, said) from error
        except JobError:
            raise
        except Exception as error:
            # A template can make Jinja, Python's compiler and the methods of values raise any error.
            raise bad_chat_template("TEMPLATE_FAILED", f"The chat template failed: {failure_text(error)}.") from error

    def _written(
        self,
        messages: Sequence[Message],
        tools: Sequence[dict[str, Any]],
        generation_prompt: bool,
        spans: list[Span] | None,
    ) -> str:
        # Same as apply_chat_template, without the copies that it makes for every conversation.
        if self._compiled is None:
            if len(self.template) > _MAX_TEMPLATE:
                said = f"it has {len(self.template):,} characters, and {_MAX_TEMPLATE:,} are allowed"
                raise bad_chat_template(TEMPLATE_EXCEEDED, f"The chat template exceeds a limit: {said}.")
            self._compiled = self._compile(self.template)
            self._known = {**self._compiled.globals, **self._token_texts, "documents": None}
        values = {
            **self._known,
            "messages": [self.named(message) for message in messages],
            "tools": list(tools) or None,
            "add_generation_prompt": generation_prompt,
        }
        written = self._compiled.root_render_func(self._compiled.new_context(values, shared=True))
        if spans is None:
            return _checked("".join(written))
        blocks: list[str] = []
        # The tracker measures the text written before a mark, so it must see each block as it is written.
        with self._compiled.environment.activate_tracker(blocks, spans):
            for block in written:
                blocks.append(block)
        return _checked("".join(blocks))

    def named(self, message: Message) -> Message:
        """Returns the turn with its reasoning under the key that the template reads."""
        if self._thought_key == THOUGHT_NAMES[0] or THOUGHT_NAMES[0] not in message:
            return message
        named = {name: value for name, value in message.items() if name != THOUGHT_NAMES[0]}
        return {**named, self._thought_key: message[THOUGHT_NAMES[0]]}

    def encode(self, text: str) -> Encoding:
        """Returns the ids and offsets of exactly this text; no special tokens are added."""
        with limited_tokenizer(len(text)):
            encoding = self._bare.encode(text, add_special_tokens=False)
        return Encoding(encoding.ids, encoding.offsets)

    def encode_all(self, texts: Sequence[str]) -> EncodedTexts:
        """Returns the ids and offsets of several texts; the ids are those of `encode`.

        Raises JobError("BAD_TOKENIZER") if the tokenizer fails; one that does not end is ended with its process.
        """
        # Some texts are encoded twice.
        with limited_tokenizer(2 * sum(map(len, texts))):
            return self._encoded(texts)

    def _encoded(self, texts: Sequence[str]) -> EncodedTexts:
        lengths = self._token_bytes
        if lengths is None:
            found = self._bare.encode_batch(texts, add_special_tokens=False)
        else:
            # A fifth faster without offsets; if tokens are runs of bytes, their lengths give the offsets.
            found = self._bare.encode_batch_fast(texts, add_special_tokens=False)
        flat = array("i")
        starts = [0]
        for encoding in found:
            flat.fromlist(encoding.ids)
            starts.append(len(flat))
        ids = numpy.array(flat, numpy.int32)
        if lengths is None:
            return EncodedTexts(ids, starts, texts, numpy.empty(0, numpy.int64), dict(enumerate(found)))
        before = numpy.zeros(len(ids) + 1, numpy.int64)
        numpy.cumsum(lengths[ids], out=before[1:])
        others = {}
        for index, text in enumerate(texts):
            counted = before[starts[index + 1]] - before[starts[index]]
            # A normaliser, or a token that absorbs spaces, shifts the offsets after it.
            if (counted != len(text)) if text.isascii() else (self._normalises or counted != len(text.encode())):
                others[index] = self._bare.encode(text, add_special_tokens=False)
        return EncodedTexts(ids, starts, texts, before, others)

    def ends_special(self, text: str) -> bool:
        """Returns True if the last token that is not whitespace is a control token."""
        stripped = text.rstrip()
        if not stripped:
            return False
        return stripped.endswith(self.special_texts) or self.encode(stripped).ids[-1] in self.special_ids

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of the ids, including special tokens."""
        return str(self._bare.decode(list(ids), skip_special_tokens=False))


def bad_chat_template(reason: str, message: str) -> JobError:
    """Returns the error for a chat template that fails with a conversation."""
    advice = "Correct spec.chat_template, or change the conversation so that the model's own template accepts it."
    return JobError(reason, message, advice, [Violation("spec.chat_template", message)])


def _own_template(own: Any) -> str | None:
    """Returns a model's own chat template: the one named default if there are several."""
    template = own.get("default") if isinstance(own, dict) else own
    if template is None or isinstance(template, str):
        return template
    message = f"chat_template in tokenizer_config.json of the base model is a JSON {json_type(template)}, not a string."
    advice = "Set spec.chat_template, or use another base model."
    raise JobError("BAD_TOKENIZER", message, advice, [Violation("spec.base_model", message)])


def _checked(text: str) -> str:
    """Raises ValueError for half of a surrogate pair, which no tokenizer can encode."""
    if not text.isascii():
        text.encode()
    return text


def _reads(template: str, name: str) -> bool:
    return re.search(rf"""(\.|\[\s*["'])\s*{name}\b""", template) is not None


def _token_bytes(tokenizer: Any) -> NDArray[numpy.int64] | None:
    """Returns the number of bytes of text of each id; None if tokens are not runs of bytes."""
    described = json.loads(tokenizer.to_str())
    if (described["decoder"] or {}).get("type") != "ByteLevel" or described["model"]["type"] != "BPE":
        return None
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    lengths = numpy.zeros(max(vocabulary.values()) + 1, numpy.int64)
    for token, index in vocabulary.items():
        # Each character of a token represents one byte of the text.
        lengths[index] = len(token)
    for index, token in tokenizer.get_added_tokens_decoder().items():
        lengths[index] = len(token.content.encode())
    unknown = described["model"].get("unk_token")
    if unknown in vocabulary:
        # The unknown token covers any number of bytes; a huge length makes the sum differ from the text's length.
        lengths[vocabulary[unknown]] = 1 << 40
    return lengths
