"""Checkpoints load whatever way they are stored, and what is wrong with one is said in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from penstock.engine.errors import ConfigurationError
from penstock.engine.weights import DummyWeights, SafetensorsWeights
from safetensors.torch import save_file

CPU = torch.device("cpu")
TENSORS = {
    "a.weight": torch.arange(12, dtype=torch.float32).view(3, 4),
    "b.weight": -torch.arange(8, dtype=torch.float32).view(2, 4),
    "norm.weight": torch.ones(4),
}
NEEDED = {name: tuple(tensor.shape) for name, tensor in TENSORS.items()}


def load(
    path: Path, needed: dict = NEEDED, dtype: torch.dtype = torch.float32, **more: object
) -> SafetensorsWeights:
    return SafetensorsWeights(path, needed, device=CPU, dtype=dtype, **more)


def save_sharded(path: Path) -> None:
    weight_map = {}
    for i, (name, tensor) in enumerate(TENSORS.items()):
        save_file({name: tensor}, path / f"model-{i}.safetensors")
        weight_map[name] = f"model-{i}.safetensors"
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_tensors_come_as_stored_converted_and_stacked(
    tmp_path: Path, sharded: bool, dtype: torch.dtype
) -> None:
    if sharded:
        save_sharded(tmp_path)
    else:
        save_file(TENSORS, tmp_path / "model.safetensors")
    weights = load(tmp_path, dtype=dtype)
    assert torch.equal(weights.tensor("norm.weight", (4,)), TENSORS["norm.weight"].to(dtype))
    stacked = weights.stacked(["b.weight", "a.weight"], [(2, 4), (3, 4)])
    assert torch.equal(stacked, torch.cat((TENSORS["b.weight"], TENSORS["a.weight"])).to(dtype))
    assert stacked.dtype == dtype


def test_stored_half_precision_is_widened_exactly(tmp_path: Path) -> None:
    for stored in (torch.bfloat16, torch.float16):
        halves = {name: (tensor / 7).to(stored) for name, tensor in TENSORS.items()}
        save_file(halves, tmp_path / "model.safetensors")
        got = load(tmp_path).tensor("a.weight", (3, 4))
        assert torch.equal(got, halves["a.weight"].float())


def test_tensors_outlive_the_files_they_were_mapped_from(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "model.safetensors")
    weights = load(tmp_path)
    tensor = weights.tensor("a.weight", (3, 4))
    weights.close()
    (tmp_path / "model.safetensors").unlink()
    assert torch.equal(tensor, TENSORS["a.weight"])


def test_progress_runs_to_one(tmp_path: Path) -> None:
    save_sharded(tmp_path)
    shares: list[float] = []
    weights = load(tmp_path, progress=shares.append)
    weights.tensor("norm.weight", (4,))
    weights.stacked(["a.weight", "b.weight"], [(3, 4), (2, 4)])
    assert shares == pytest.approx([4 / 24, 16 / 24, 1.0])


def test_everything_that_does_not_fit_is_one_error(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "model.safetensors")
    needed = {"a.weight": (3, 5), "norm.weight": (4,), "c.weight": (1,)}
    with pytest.raises(ConfigurationError) as error:
        load(tmp_path, needed)
    message = str(error.value)
    assert "1 missing: c.weight" in message
    assert "1 mis-shaped: a.weight is [3, 4], config.json says [3, 5]" in message
    assert "1 unexpected: b.weight" in message
    assert "\n" not in message


def test_many_wrong_names_are_counted_not_all_listed(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "model.safetensors")
    needed = NEEDED | {f"layers.{i}.weight": (1,) for i in range(50)}
    with pytest.raises(ConfigurationError, match=r"50 missing: .* and 44 more"):
        load(tmp_path, needed)


def test_leftovers_that_no_model_reads_are_ignored(tmp_path: Path) -> None:
    extra = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(2), "lm_head.weight": torch.ones(2)}
    save_file(TENSORS | extra, tmp_path / "model.safetensors")
    load(tmp_path)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    save_sharded(tmp_path)
    (tmp_path / "model-1.safetensors").unlink()
    with pytest.raises(ConfigurationError, match=r"1 of 3 shards that are not there: model-1\.safetensors"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, "neither model.safetensors nor model.safetensors.index.json"),
        ({"pytorch_model.bin": b"x"}, "pytorch_model.bin cannot be loaded"),
        ({"model.safetensors": b"not safetensors at all"}, "model.safetensors cannot be read"),
        ({"model.safetensors.index.json": b"[]"}, "is not an index of safetensors shards"),
    ],
)
def test_unusable_directories_say_why(tmp_path: Path, files: dict[str, bytes], said: str) -> None:
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigurationError, match=said):
        load(tmp_path)


def test_dummy_weights_are_seeded_scaled_and_unlike_each_other() -> None:
    shapes = {
        "x.weight": (2_000, 900),
        "y.weight": (700, 900),
        "input_layernorm.weight": (900,),
        "q.bias": (70,),
    }

    def make(seed: int) -> dict[str, torch.Tensor]:
        weights = DummyWeights(shapes, seed=seed, device=CPU, dtype=torch.float32)
        return {name: weights.tensor(name, shape) for name, shape in shapes.items()}

    first, same, other = make(0), make(0), make(1)
    x = first["x.weight"]
    assert all(torch.equal(first[name], same[name]) for name in shapes)
    assert not torch.equal(x, other["x.weight"])
    assert abs(float(x.std()) * 30 - 1) < 0.01  # 1 / sqrt(fan in)
    assert len(torch.unique(x, dim=0)) == 2_000
    assert not torch.equal(x[:700], first["y.weight"])
    assert (first["input_layernorm.weight"] == 1).all()
    assert (first["q.bias"] == 0).all()
