"""The trained head as files that engines read: an EAGLE-3 checkpoint, or the target with its next-token layer.

Every file is replaced in one piece. What the tensors mean is in `eagle3.py` and `mtp.py`.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from ..choices import dtype_name
from ..model_config import read_raw_config
from ..weights import checkpoint_files
from .eagle3 import Eagle3Head
from .heads import DraftHead
from .job import TrainJob
from .mtp import MTPHead
from .target import FrozenTarget

MTP_PREFIX = "model.mtp_layers.0."
MTP_FILE = "model-mtp.safetensors"
INDEX = "model.safetensors.index.json"
# Keys of the target's config.json that mean the same in the head's.
SHARED_KEYS = (
    "vocab_size",
    "max_position_embeddings",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "partial_rotary_factor",
    "original_max_position_embeddings",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
)


def export(job: TrainJob, head: DraftHead, target: FrozenTarget) -> list[Path]:
    """Write what `job` asks for; the files with tensors."""
    out = Path(job.output_dir)
    out.mkdir(parents=True, exist_ok=True)
    if isinstance(head, Eagle3Head):
        return [write_eagle3(out, head, target, job.model_dir)]
    assert isinstance(head, MTPHead)
    tensors = {
        MTP_PREFIX + name: stored(parameter, target.choices.dtype)
        for name, parameter in head.named_parameters()
    }
    if job.head_only:
        raw = {**read_raw_config(job.model_dir)[0], "num_nextn_predict_layers": 1}
        put_json(out / "config.json", raw)
        put_tensors(out / "model.safetensors", tensors)
        return [out / "model.safetensors"]
    return write_with_mtp(out, Path(job.model_dir), tensors)


def stored(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return tensor.detach().to(device="cpu", dtype=dtype).contiguous()


# ------------------------------------------------------------------------------------------------------- EAGLE-3


def write_eagle3(out: Path, head: Eagle3Head, target: FrozenTarget, model_dir: str) -> Path:
    """`d2t` (draft vocabulary,) int64 is what to add to a draft id to get the target's; `t2d` (vocab_size,) bool says
    which of the target's ids can be drafted. The embedding is the target's own and left out."""
    dtype = target.choices.dtype
    tensors = {name: stored(parameter, dtype) for name, parameter in head.named_parameters()}
    ids = head.target_ids.cpu()
    tensors["d2t"] = ids - torch.arange(len(ids))
    tensors["t2d"] = torch.zeros(target.config.vocab_size, dtype=torch.bool).index_fill_(0, ids, True)
    put_json(out / "config.json", eagle3_config(head, target, read_raw_config(model_dir)[0]))
    put_tensors(out / "model.safetensors", tensors)
    return out / "model.safetensors"


def eagle3_config(head: Eagle3Head, target: FrozenTarget, raw: Mapping[str, Any]) -> dict[str, Any]:
    """The layers are named twice, because engines count them in two ways.

    vLLM reads `eagle_aux_hidden_state_layer_ids` at the top, the layers whose inputs are wanted. SGLang reads it below
    `eagle_config`, the layers whose outputs are wanted: one less for the same state.
    """
    shape = head.midlayer.self_attn.shape
    return {
        "architectures": ["LlamaForCausalLMEagle3"],
        "model_type": "llama",
        "hidden_size": shape.hidden_size,
        "target_hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": 1,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": shape.eps,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "norm_before_residual": False,
        "draft_vocab_size": len(head.target_ids),
        "eagle_aux_hidden_state_layer_ids": list(head.aux_layers),
        "eagle_config": {
            "use_aux_hidden_state": True,
            "eagle_aux_hidden_state_layer_ids": [index - 1 for index in head.aux_layers],
        },
        **{key: raw[key] for key in SHARED_KEYS if key in raw},
        "torch_dtype": dtype_name(target.choices.dtype),
    }


# ----------------------------------------------------------------------------------------------------------- MTP


def write_with_mtp(out: Path, model_dir: Path, tensors: dict[str, torch.Tensor]) -> list[Path]:
    """A copy of the checkpoint with the layer's tensors: in its one file, or as one more shard beside its shards."""
    raw, _ = read_raw_config(model_dir)
    shards = checkpoint_files(model_dir)
    weights = {path.name for path in model_dir.glob("*.safetensors")} | {INDEX, "config.json"}
    for path in model_dir.iterdir():
        if path.is_file() and path.name not in weights:
            put_copy(path, out / path.name)
    if [path.name for path in shards] == ["model.safetensors"]:
        with safe_open(shards[0], framework="pt") as file:
            own = {name: file.get_tensor(name) for name in file.keys() if not name.startswith(MTP_PREFIX)}  # noqa: SIM118
        put_tensors(out / "model.safetensors", own | tensors)
        written = [out / "model.safetensors"]
    else:
        index = json.loads((model_dir / INDEX).read_text(encoding="utf-8"))
        for path in shards:
            put_copy(path, out / path.name)
        put_tensors(out / MTP_FILE, tensors)
        index["weight_map"] |= dict.fromkeys(tensors, MTP_FILE)
        put_json(out / INDEX, index)
        written = [*(out / path.name for path in shards), out / MTP_FILE]
    put_json(out / "config.json", {**raw, "num_nextn_predict_layers": 1})
    return written


# --------------------------------------------------------------------------------------------------------- files


def put_json(path: Path, content: Mapping[str, Any]) -> None:
    part = path.with_name(f".{path.name}.part")
    part.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    os.replace(part, path)


def put_tensors(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    part = path.with_name(f".{path.name}.part")
    save_file(tensors, part, metadata={"format": "pt"})
    part.chmod(0o644)
    os.replace(part, path)


def put_copy(source: Path, path: Path) -> None:
    part = path.with_name(f".{path.name}.part")
    shutil.copyfile(source, part)
    os.replace(part, path)
