"""Sampling parameters of requests that do not name them, and the tokens that end an answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from .text.tokenizer import TokenizerError, read_json


class GenerationDefaults(Struct, frozen=True, kw_only=True):
    """The part of generation_config.json that concerns serving; None = the API's own default."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    max_new_tokens: int | None = None


def load_defaults(path: Path | None, override: dict[str, Any]) -> GenerationDefaults:
    """From the file (None = neutral), `override` winning. Raises `TokenizerError` naming what is wrong."""
    values = read_json(path) if path is not None else {}
    names = GenerationDefaults.__struct_fields__
    merged = {name: value for name, value in {**values, **override}.items() if name in names}
    if not merged.get("top_k", 0) or merged["top_k"] < 0:
        merged["top_k"] = None
    try:
        return msgspec.convert(merged, GenerationDefaults)
    except msgspec.ValidationError as error:
        raise TokenizerError(f"default sampling parameters {merged}: {error}") from None


def eos_token_ids(model_dir: Path, tokenizer_eos: int | None) -> list[int]:
    """Every token that ends an answer: generation_config.json's, config.json's and the tokenizer's."""
    found: set[int] = set() if tokenizer_eos is None else {tokenizer_eos}
    for name in ("generation_config.json", "config.json"):
        value = read_json(model_dir / name).get("eos_token_id")
        for token in value if isinstance(value, list) else [value]:
            if isinstance(token, int) and not isinstance(token, bool):
                found.add(token)
    return sorted(found)
