"""Which texts a run has: read from files or made up, some kept away for the measurement, kept in one folder.

`engine/train_draft/token_sets.py` says what lies there. The folder is named after all that it depends on, so that a
resumed run, and a run for another kind of head, find their texts as they were.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..limits import LimitOptions
from ..model_files import ModelFiles
from ..text.template import TemplateSyntaxError, load_template
from ..text.tokenizer import Tokenizer
from .texts import Text, TextReader, Tokens, read_lines

COMPLETE = "complete"
LARGEST_HELD_OUT_SHARE = 0.1
SAMPLED_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Sources:
    """What the user named. `prompts` None: the model makes no text; an empty list: prompts are made up."""

    texts: Sequence[Path]
    prompts: Sequence[Path] | None
    held_out: Sequence[Path]
    num_prompts: int  # to make up
    num_held_out: int  # where no file holds them
    max_length: int
    max_new_tokens: int
    temperature: float
    seed: int


def gather(sources: Sources, files: ModelFiles, work: Path) -> Path:
    """The folder with the sets `texts`, `prompts` and `eval`. Raises ValueError naming the file and what is wrong."""
    folder = work / f"texts-{digest(sources, files)[:12]}"
    if (folder / COMPLETE).is_file():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    reader = open_reader(files, sources.max_length)
    rng = np.random.default_rng(sources.seed)
    named = [("--text", path) for path in sources.texts] + [
        ("--from-model", path) for path in sources.prompts or ()
    ]
    lines = [
        (option, path, number, line)
        for option, path in named
        for number, line in enumerate(read_lines(path), 1)
    ]
    made: list[Tokens] = []
    if sources.prompts is not None and not sources.prompts:
        made = [reader.random_prompt(rng) for _ in range(sources.num_prompts)]
    count = len(lines) + len(made)
    kept_away: set[int] = set()
    if not sources.held_out:
        most = min(sources.num_held_out, int(count * LARGEST_HELD_OUT_SHARE))
        kept_away = set(rng.choice(count, most, replace=False).tolist())

    texts: list[Text] = []
    prompts: list[Tokens] = []
    held_out: list[Tokens] = []
    for index, (option, path, number, line) in enumerate(lines):
        try:
            if index in kept_away:
                held_out.append(reader.prompt(line))
            elif option == "--text":
                texts += reader.texts(line)
            else:
                prompts.append(reader.prompt(line))
        except ValueError as error:
            raise ValueError(f"{option} {path}, text {number}: {error}") from None
    for index, prompt in enumerate(made, len(lines)):
        (held_out if index in kept_away else prompts).append(prompt)
    for path in sources.held_out:
        for number, line in enumerate(read_lines(path), 1):
            try:
                held_out.append(reader.prompt(line))
            except ValueError as error:
                raise ValueError(f"--eval {path}, text {number}: {error}") from None
    write(folder, "texts", texts)
    write(folder, "prompts", [unwanted(prompt) for prompt in prompts])
    write(folder, "eval", [unwanted(prompt) for prompt in held_out])
    (folder / COMPLETE).touch()
    return folder


def open_reader(files: ModelFiles, max_length: int) -> TextReader:
    tokenizer = Tokenizer.load(files.tokenizer_dir)
    limits = LimitOptions()
    try:
        template = load_template(
            files.chat_template,
            [files.tokenizer_dir, files.model_dir],
            tokenizer,
            seconds=limits.template_timeout,
            max_bytes=limits.max_template_bytes,
        )
    except TemplateSyntaxError as error:
        raise ValueError(f"the chat template of {files.model} cannot be read: {error}") from None
    return TextReader(tokenizer, template, max_length)


def unwanted(prompt: Tokens) -> Text:
    return Text(prompt, np.zeros(len(prompt), np.uint8))


def write(folder: Path, name: str, texts: Sequence[Text]) -> None:
    arrays = {
        "tokens": np.concatenate([np.zeros(0, np.int32), *(text.tokens for text in texts)]),
        "wanted": np.concatenate([np.zeros(0, np.uint8), *(text.wanted for text in texts)]),
        "lengths": np.array([len(text.tokens) for text in texts], np.int32),
    }
    for part, array in arrays.items():
        array.astype(array.dtype.newbyteorder("<")).tofile(folder / f"{name}.{part}")


def digest(sources: Sources, files: ModelFiles) -> str:
    """Changes with the options, the files' contents, and the model and tokenizer that they are for."""
    found = hashlib.sha256()
    options = [
        sources.prompts is None,
        *(sources.num_prompts, sources.num_held_out, sources.max_length),
        *(sources.max_new_tokens, sources.temperature, sources.seed),
    ]
    found.update(json.dumps(options).encode())
    for kind in (sources.texts, sources.prompts or (), sources.held_out):
        found.update(b"files")
        for path in kind:
            try:
                found.update(hashlib.sha256(path.read_bytes()).digest() + path.suffix.encode())
            except OSError as error:
                raise ValueError(f"{path}: {error.strerror}: name a file that can be read") from None
    for path in sorted([*files.model_dir.glob("*.safetensors"), *files.tokenizer_dir.glob("*.json")]):
        found.update(f"{path.name} {path.stat().st_size}".encode())
        found.update(sample(path))
    return found.hexdigest()


def sample(path: Path) -> bytes:
    """The first and the last megabyte of a file: weights that were trained further differ there too."""
    with path.open("rb") as file:
        begin = file.read(SAMPLED_BYTES)
        file.seek(max(0, path.stat().st_size - SAMPLED_BYTES))
        return begin + file.read()
