"""Write the model folder that ships: bf16 weights with Hugging Face names, config, tokenizer.

Run as `python -m tools.demo_model.export WORK_FOLDER OUT_FOLDER`; each file is replaced in one piece.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from . import tokenizer as tokenizer_file
from .model import Shape, hf_config


def export(work: Path, out: Path) -> None:
    """From the checkpoint and tokenizer of `work` to the model folder `out`; the model card is left alone."""
    state: dict[str, Any] = torch.load(work / "checkpoint.pt", weights_only=True)
    weights = {name: tensor.to(torch.bfloat16).contiguous() for name, tensor in state["model"].items()}
    shape = Shape(vocab_size=weights["model.embed_tokens.weight"].shape[0])
    out.mkdir(parents=True, exist_ok=True)
    _put(out / "config.json", json.dumps(hf_config(shape), indent=2) + "\n")
    # No sampling values here: the server's own defaults hold, and only the two end tokens are the model's.
    generation = {"eos_token_id": [2, 0], "pad_token_id": 0}
    _put(out / "generation_config.json", json.dumps(generation, indent=2) + "\n")
    _put(
        out / "tokenizer_config.json",
        json.dumps(tokenizer_file.config(), indent=2, ensure_ascii=False) + "\n",
    )
    part = out / ".tokenizer.part"
    shutil.copyfile(work / "tokenizer.json", part)
    os.replace(part, out / "tokenizer.json")
    part = out / ".model.part"
    save_file(weights, part, metadata={"format": "pt"})
    part.chmod(0o644)
    os.replace(part, out / "model.safetensors")


def _put(path: Path, text: str) -> None:
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


if __name__ == "__main__":
    export(Path(sys.argv[1]), Path(sys.argv[2]))
