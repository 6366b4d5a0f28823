"""The tokenizer: byte-level BPE with single digits, trained on the generated text.

Run as `python -m tools.demo_model.tokenizer OUT_FOLDER`; writes tokenizer.json and tokenizer_config.json.
"""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from .render import TEMPLATE_PATH, render
from .text import training_dialogues

VOCAB_SIZE = 2560
DIALOGUES = 40_000
END_OF_TEXT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPECIAL = (END_OF_TEXT, TURN_START, TURN_END)
# Ordinary added tokens: they stay in the text when special tokens are skipped, so that tool calls are seen.
PLAIN_ADDED = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
MODEL_MAX_LENGTH = 2048


def train(seed: int = 0) -> Tokenizer:
    """A tokenizer of `VOCAB_SIZE` tokens; ids 0..6 are the added ones, every byte has a token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    added = [AddedToken(token, special=True) for token in SPECIAL]
    added += [AddedToken(token, special=False) for token in PLAIN_ADDED]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=added,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    dialogues = itertools.islice(training_dialogues(f"tokenizer {seed}"), DIALOGUES)
    texts = (render(dialogue.last.messages, dialogue.last.tools) for dialogue in dialogues)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in PLAIN_ADDED])
    return tokenizer


def config() -> dict[str, object]:
    """The content of tokenizer_config.json, chat template included."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": TURN_END,
        "pad_token": END_OF_TEXT,
        "bos_token": None,
        "unk_token": None,
        "add_bos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": MODEL_MAX_LENGTH,
        "chat_template": TEMPLATE_PATH.read_text(encoding="utf-8"),
    }


def write(folder: Path, seed: int = 0) -> None:
    """Train and write both tokenizer files into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    train(seed).save(str(folder / "tokenizer.json"))
    text = json.dumps(config(), indent=2, ensure_ascii=False)
    (folder / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
