"""A base model's tokenizer and chat template, without torch."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.data.conversations import Message
from engine.errors import JobError, Violation

PLAIN_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] + '\\n\\n' }}"
    "{% elif message['role'] == 'user' %}{{ '### Question:\\n' + message['content'] + '\\n\\n### Answer:\\n' }}"
    "{% else %}{{ message['content'] + eos_token + '\\n\\n' }}{% endif %}"
    "{% endfor %}"
)
"""For models that bring no chat template (base models, mostly): headings, and the model's own end-of-text token after
each answer. A question already ends with the heading of its answer, so a generation prompt adds nothing."""


@dataclass(frozen=True)
class Encoding:
    """Token ids of a text, and for each the characters [start, end) of the text it stands for."""

    ids: list[int]
    offsets: list[tuple[int, int]]


class Tokenizer:
    """Renders conversations and turns text into ids; never adds a token to the vocabulary."""

    def __init__(self, directory: Path, chat_template: str | None = None) -> None:
        """Reads the tokenizer of a model's folder; `chat_template` replaces its own.

        Raises JobError: NO_TOKENIZER (no tokenizer.json), NO_EOS_TOKEN (nothing to end an answer with).
        """
        # Seconds of import that a serving process must never pay.
        from tokenizers import processors
        from transformers import PreTrainedTokenizerFast

        if not (directory / "tokenizer.json").is_file():
            raise JobError(
                "NO_TOKENIZER",
                "The base model has no tokenizer.json.",
                "Choose a base model that ships a fast tokenizer.",
            )
        self._fast: Any = PreTrainedTokenizerFast.from_pretrained(str(directory))
        if self._fast.eos_token_id is None:
            raise JobError(
                "NO_EOS_TOKEN",
                "The base model's tokenizer names no end-of-text token: a model trained with it would never stop.",
                "Choose a base model whose tokenizer_config.json has an eos_token.",
            )
        # Post-processors add special tokens, which a template already wrote, and cut spaces off the offsets.
        self._bare = type(self._fast.backend_tokenizer).from_str(self._fast.backend_tokenizer.to_str())
        self._bare.post_processor = processors.Sequence([])
        self._bare.no_truncation()
        self._bare.no_padding()
        own = self._fast.chat_template
        if isinstance(own, dict):
            own = own.get("default")
        self.has_own_template = chat_template is None and own is not None
        self.template: str = chat_template or own or PLAIN_TEMPLATE
        self.eos_id: int = self._fast.eos_token_id
        self.eos_token: str = self._fast.eos_token
        added = list(self._fast.added_tokens_decoder.items())
        self.special_ids = frozenset({token_id for token_id, token in added if token.special} | {self.eos_id})
        self.num_ids: int = max(self._bare.get_vocab(with_added_tokens=True).values()) + 1
        """One above the largest id."""
        # Longest first: of two that begin alike the longer one is meant.
        specials = sorted({str(token) for _, token in added if token.special} | {self.eos_token}, key=len, reverse=True)
        self.control = re.compile("|".join(map(re.escape, specials)))
        """Finds text that becomes a control token."""
        empty = self._fast("", add_special_tokens=True)["input_ids"]
        self.leading_ids: list[int] = [token_id for token_id in empty if token_id == self._fast.bos_token_id][:1]
        """What the tokenizer puts before a plain text: its begin-of-text token, where it has that habit."""

    def render(
        self, messages: Sequence[Message], *, generation_prompt: bool = False, tools: Sequence[dict[str, Any]] = ()
    ) -> str:
        """The conversation as the template writes it, run in the sandbox of transformers. `tools` are the JSON schemas
        of what the conversation may call.

        Raises JobError("TEMPLATE_FAILED") when the template cannot be parsed or refuses the conversation.
        """
        import jinja2

        try:
            return str(
                self._fast.apply_chat_template(
                    list(messages),
                    tools=list(tools) or None,
                    chat_template=self.template,
                    tokenize=False,
                    add_generation_prompt=generation_prompt,
                )
            )
        except (
            jinja2.TemplateError,
            ArithmeticError,
            AttributeError,
            LookupError,
            RecursionError,
            TypeError,
            ValueError,
        ) as error:
            message = f"The chat template failed: {error}"
            raise JobError(
                "TEMPLATE_FAILED",
                message,
                "Correct spec.chat_template, or make the conversation one that the model's own template accepts.",
                [Violation("spec.chat_template", message)],
            ) from error

    def encode(self, text: str) -> Encoding:
        """Ids and characters of exactly this text; nothing is put before or after it."""
        encoding = self._bare.encode(text, add_special_tokens=False)
        return Encoding(encoding.ids, encoding.offsets)

    def decode(self, ids: Sequence[int]) -> str:
        """Back to text, special tokens included."""
        return str(self._bare.decode(list(ids), skip_special_tokens=False))

    def fingerprint(self) -> str:
        """SHA-256 over the vocabulary, the template and the special tokens: all that decides ids."""
        digest = hashlib.sha256(self._bare.to_str().encode())
        digest.update(repr((self.template, self.eos_id, self.leading_ids)).encode())
        return digest.hexdigest()
