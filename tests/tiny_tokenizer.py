"""Small tokenizers of the common kinds, made on the spot, and a model directory around one of them."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

SENTENCES = [
    "Hello there, how are you today? I am fine, thank you.",
    "The quick brown fox jumps over the lazy dog.",
    "one two three four five six seven eight nine ten",
    "Grüße aus München, naïve café, 中文字符 и немного текста 😀🎉",
    "def add(a, b):\n    return a + b\n",
]
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHATML = (
    "{% for message in messages %}"
    "{% if message.role not in ('system', 'user', 'assistant', 'tool') %}"
    "{{ raise_exception('unknown role ' ~ message.role) }}{% endif %}"
    "<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}"
    "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% if thinking %}<think>{% endif %}{% endif %}"
)


def byte_level() -> Tokenizer:
    """Byte-level BPE, as GPT-2, Llama 3 and Qwen have it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=SPECIAL,
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES * 3, trainer)
    return tokenizer


def pieces_with_bytes(*, strip: bool) -> Tokenizer:
    """SentencePiece BPE with byte fallback: as Llama 2 (which strips a leading space) and Gemma (which does not)."""
    words = ["▁", "▁Hello", "▁world", "ing", "▁▁", "a", "b", "▁a", "é", "中"]
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *words]
    tokenizer = Tokenizer(
        models.BPE(
            {name: number for number, name in enumerate(names)}, [], unk_token="<unk>", byte_fallback=True
        )
    )
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if strip else steps)
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in ("<s>", "</s>")])
    return tokenizer


def metaspace() -> Tokenizer:
    """Unigram pieces behind a space mark, as T5 has them."""
    names = ["<unk>", "▁", "▁Hello", "▁wor", "ld", "▁▁▁", "s", "é", "▁中"]
    tokenizer = Tokenizer(models.Unigram([(name, -1.0) for name in names], unk_id=0, byte_fallback=False))
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


def wordpiece() -> Tokenizer:
    """A decoder for which there is no table: the sliding window has to do."""
    names = ["[UNK]", "hello", "##ing", "world", "##s", "a"]
    tokenizer = Tokenizer(
        models.WordPiece({name: number for number, name in enumerate(names)}, unk_token="[UNK]")
    )
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    return tokenizer


def write_model(directory: Path, *, generation: dict | None = None) -> Tokenizer:
    """The files of a model that a front end reads."""
    tokenizer = byte_level()
    tokenizer.save(str(directory / "tokenizer.json"))
    end = tokenizer.token_to_id("<|im_end|>")
    (directory / "tokenizer_config.json").write_text(
        json.dumps({"eos_token": "<|im_end|>", "chat_template": CHATML, "bos_token": None})
    )
    (directory / "config.json").write_text(json.dumps({"model_type": "qwen3", "eos_token_id": end}))
    (directory / "generation_config.json").write_text(json.dumps(generation or {"eos_token_id": [end, 0]}))
    return tokenizer
