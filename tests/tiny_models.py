"""The smallest real model and tokenizer that a test can train."""

import json
from pathlib import Path
from typing import Any

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_TEXT = [
    "What does this function do? It returns a new list with the items in order.",
    "The answer is 42, and the question was: how many apples does Ann have left?",
    "system user assistant question answer instruction input output",
    "Return True if the path exists, else False. Raise ValueError for a bad name.",
]


def make_tiny_tokenizer(directory: Path, *, chat_template: str | None = CHATML) -> Path:
    """Writes a byte-level BPE tokenizer of a few hundred tokens to `directory`, in the files of a Hugging Face model.

    Every text can be encoded; <|im_end|> is the end-of-text token, <|im_start|> the begin-of-text one.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=384, initial_alphabet=alphabet, special_tokens=specials, show_progress=False
    )
    tokenizer.train_from_iterator(_TEXT * 4, trainer)
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "model_max_length": 512,
        "clean_up_tokenization_spaces": False,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=2))
    if chat_template is not None:
        (directory / "chat_template.jinja").write_text(chat_template)
    return directory


def make_tiny_model(directory: Path, *, num_layers: int = 2, seed: int = 0, biases: bool = False) -> Path:
    """Writes a random Llama of 64 dimensions (float32 safetensors) with `make_tiny_tokenizer`'s tokenizer.

    With `biases` its linear layers have biases, as those of Qwen 2 and GPT-2.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    make_tiny_tokenizer(directory)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(str(directory))
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        attention_bias=biases,
        mlp_bias=biases,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        LlamaForCausalLM(config).save_pretrained(directory)
    return directory


def make_tiny_llama_tokenizer(directory: Path) -> Path:
    """Writes a tokenizer of the kind of Llama 2 to `directory`: BPE whose words begin with ▁, and a token for each byte
    that no other token has. llama.cpp converts it, which of other BPE tokenizers it only does with those that it knows.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, trainers

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    specials = ["<unk>", "<|im_start|>", "<|im_end|>"]
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=specials + fallback, show_progress=False)
    tokenizer.train_from_iterator(_TEXT * 4, trainer)
    saved = json.loads(tokenizer.to_str())
    saved["added_tokens"] = [token for token in saved["added_tokens"] if token["content"] in specials]
    # As those that are converted from SentencePiece: all pairs that make a token, in the order of the tokens.
    vocabulary = saved["model"]["vocab"]
    saved["model"]["merges"] = [
        [token[:cut], token[cut:]]
        for token in sorted(vocabulary, key=vocabulary.__getitem__)
        for cut in range(1, len(token))
        if token[:cut] in vocabulary and token[cut:] in vocabulary
    ]
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "tokenizer.json").write_text(json.dumps(saved))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": True,
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "unk_token": "<unk>",
        "clean_up_tokenization_spaces": False,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=2))
    (directory / "chat_template.jinja").write_text(CHATML)
    return directory


def make_tiny_llama(directory: Path, **settings: Any) -> Path:
    """Writes a random Llama of 64 dimensions (float32 safetensors) that llama.cpp can convert, tokenizer included.
    `settings` are those of its config.json."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    make_tiny_llama_tokenizer(directory)
    values = {
        "vocab_size": len(json.loads((directory / "tokenizer.json").read_text())["model"]["vocab"]),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(LlamaConfig(**{**values, **settings})).save_pretrained(directory)
    return directory
