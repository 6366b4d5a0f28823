"""Where a model's parameters come from: safetensors files, a declaration of what is needed, or seeded noise.

A model asks for its tensors by name while it is built (`layers.parts.Weights`), so they stream one by one from the
mapped files into their final place, fused and converted on the way; nothing is held twice but the tensor in transit.
On a CPU a tensor that needs neither stays mapped (privately): its pages are the page cache's own.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from .errors import ConfigurationError
from .parallel.shard import Part

Shape = tuple[int, ...]
Progress = Callable[[float], None]

# Left in some checkpoints though no model reads them.
IGNORED_SUFFIXES = (".rotary_emb.inv_freq", ".masked_bias", ".attn.bias", ".embeddings.position_ids")
LISTED = 6  # names per kind in an error


class DeclaredWeights:
    """Hands out shapes without memory and remembers what was asked for: the list of tensors a model needs."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.shapes: dict[str, Shape] = {}  # as they are stored
        self.num_elements = 0  # of the parts

    def tensor(
        self, name: str, shape: Shape, part: Part | None = None, dtype: torch.dtype | None = None
    ) -> torch.Tensor:
        declared = self.stacked([name], [shape], [part])
        return declared if dtype is None else torch.empty(declared.shape, dtype=dtype, device="meta")

    def stacked(
        self, names: Sequence[str], shapes: Sequence[Shape], parts: Sequence[Part | None] | None = None
    ) -> torch.Tensor:
        self.shapes.update(zip(names, shapes, strict=True))
        # Not torch.cat: the first operation on meta tensors imports two seconds' worth of torch.
        own = part_shapes(shapes, parts)
        self.num_elements += sum(map(math.prod, own))
        return torch.empty((sum(shape[0] for shape in own), *own[0][1:]), dtype=self.dtype, device="meta")

    @property
    def num_bytes(self) -> int:
        return self.num_elements * self.dtype.itemsize


def part_shapes(shapes: Sequence[Shape], parts: Sequence[Part | None] | None) -> list[Shape]:
    """The shapes of `parts` of stored tensors; None for all of them."""
    return [
        shape if part is None else (*shape[: part.dim], part.end - part.first, *shape[part.dim + 1 :])
        for shape, part in zip(shapes, parts or [None] * len(shapes), strict=True)
    ]


@dataclass(frozen=True, slots=True)
class Names:
    """How tensors are named in checkpoints of a family.

    A body saved without its head lacks the `prefix` that all its names else begin with. What begins with one of
    `unused` may be there and is not read. `renames` are beginnings, as they are stored and as they are asked for.
    """

    prefix: str = ""
    unused: tuple[str, ...] = ()
    renames: tuple[tuple[str, str], ...] = ()

    def expected(self, stored: Iterable[str]) -> dict[str, str]:
        """The name under which a model asks for a tensor -> the name it is stored by."""
        stored = list(stored)
        lacking = self.prefix and not any(name.startswith(self.prefix) for name in stored)
        prefix = self.prefix if lacking else ""
        return {prefix + self._renamed(modern(name)): name for name in stored}

    def _renamed(self, name: str) -> str:
        for stored, asked in self.renames:
            if name.startswith(stored):
                name = asked + name[len(stored) :]
        return name


def modern(name: str) -> str:
    """Checkpoints converted from TensorFlow call the weight and bias of a layer norm gamma and beta."""
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")


class SafetensorsWeights:
    """The tensors of a checkpoint directory: model.safetensors, or the shards of model.safetensors.index.json.

    The constructor checks names and shapes of all that is `needed` and raises one ConfigurationError for whatever
    does not fit. `progress` gets the share of what is to be loaded, 0..1: of `num_elements`, by default all that is
    needed. Of a part nothing else is read.
    """

    def __init__(
        self,
        model_dir: str | Path,
        needed: Mapping[str, Shape],
        *,
        device: torch.device,
        dtype: torch.dtype,
        names: Names | None = None,
        num_elements: int | None = None,
        progress: Progress = lambda fraction: None,
    ) -> None:
        names = names or Names()
        self._device = device
        self._dtype = dtype
        self._progress = progress
        self._files = ExitStack()
        self._where: dict[str, Any] = {}
        for path in checkpoint_files(Path(model_dir)):
            try:
                file = self._files.enter_context(safe_open(path, framework="pt", device="cpu"))
            except (OSError, SafetensorError) as error:
                raise ConfigurationError(f"{path} cannot be read: {error}") from None
            self._where.update(dict.fromkeys(file.keys(), file))
        self._stored = names.expected(self._where)
        shapes = {
            name: tuple(self._where[stored].get_slice(stored).get_shape())
            for name, stored in self._stored.items()
        }
        check_shapes(needed, shapes, str(model_dir), names.unused)
        self._total = num_elements or sum(math.prod(shape) for shape in needed.values())
        self._done = 0

    def tensor(
        self, name: str, shape: Shape, part: Part | None = None, dtype: torch.dtype | None = None
    ) -> torch.Tensor:
        if part is not None and part.end > shape[part.dim]:
            return self._stacked([name], [shape], [part]).to(dtype or self._dtype)
        mapped = self._mapped(name, part)
        self._count(mapped.numel())
        return mapped.to(device=self._device, dtype=dtype or self._dtype)

    def stacked(
        self, names: Sequence[str], shapes: Sequence[Shape], parts: Sequence[Part | None] | None = None
    ) -> torch.Tensor:
        return self._stacked(names, shapes, parts or [None] * len(names))

    def _stacked(
        self, names: Sequence[str], shapes: Sequence[Shape], parts: Sequence[Part | None]
    ) -> torch.Tensor:
        own = part_shapes(shapes, parts)
        heights = [shape[0] for shape in own]
        out = torch.empty((sum(heights), *own[0][1:]), dtype=self._dtype, device=self._device)
        for name, place, part in zip(names, out.split_with_sizes(heights), parts, strict=True):
            mapped = self._mapped(name, part)
            if mapped.shape != place.shape:
                place.zero_()
                place = place[tuple(map(slice, mapped.shape))]
            place.copy_(mapped)
            self._count(mapped.numel())
        return out

    def _mapped(self, name: str, part: Part | None) -> torch.Tensor:
        """A stored tensor, or what there is of its part."""
        stored = self._stored[name]
        tensor: torch.Tensor
        if part is None:
            tensor = self._where[stored].get_tensor(stored)
        else:
            view = self._where[stored].get_slice(stored)
            size = view.get_shape()[part.dim]
            first, end = min(part.first, size), min(part.end, size)
            tensor = view[(slice(None),) * part.dim + (slice(first, end),)]
        return tensor

    def _count(self, numel: int) -> None:
        self._done += numel
        self._progress(self._done / self._total)

    def close(self) -> None:
        self._files.close()


def checkpoint_files(model_dir: Path) -> list[Path]:
    """The safetensors files of a checkpoint; every file of a sharded one must be there."""
    single, index = model_dir / "model.safetensors", model_dir / "model.safetensors.index.json"
    if single.is_file():
        return [single]
    if not index.is_file():
        others = sorted(
            path.name for pattern in ("*.bin", "*.pt", "*.gguf") for path in model_dir.glob(pattern)
        )
        hint = f" ({', '.join(others[:LISTED])} cannot be loaded)" if others else ""
        raise ConfigurationError(
            f"{model_dir} has neither model.safetensors nor model.safetensors.index.json{hint}: convert the "
            "checkpoint to safetensors, or use --load-format dummy for random weights"
        )
    try:
        shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ConfigurationError(f"{index} is not an index of safetensors shards: {error!r}") from None
    missing = [shard for shard in shards if not (model_dir / shard).is_file()]
    if missing:
        raise ConfigurationError(
            f"{index} names {len(missing)} of {len(shards)} shards that are not there: {listing(missing)}; "
            "download the checkpoint again"
        )
    return [model_dir / shard for shard in shards]


def check_shapes(
    needed: Mapping[str, Shape], found: Mapping[str, Shape], where: str, unused: tuple[str, ...] = ()
) -> None:
    """Raise one ConfigurationError that lists missing, mis-shaped and unexpected tensors."""
    missing = [name for name in needed if name not in found]
    wrong = [
        f"{name} is {list(found[name])}, config.json says {list(shape)}"
        for name, shape in needed.items()
        if name in found and found[name] != shape
    ]
    unexpected = [name for name in found if name not in needed and not ignorable(name, unused)]
    complaints = [
        f"{len(names)} {kind}: {listing(names)}"
        for kind, names in (("missing", missing), ("mis-shaped", wrong), ("unexpected", unexpected))
        if names
    ]
    if complaints:
        raise ConfigurationError(
            f"the tensors in {where} do not fit its config.json: {'; '.join(complaints)}; is it the config.json of "
            "another model?"
        )


def ignorable(name: str, unused: tuple[str, ...]) -> bool:
    # A tied head is often stored beside the embedding it equals.
    return name == "lm_head.weight" or name.endswith(IGNORED_SUFFIXES) or name.startswith(unused)


def listing(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more


class DummyWeights:
    """Seeded noise in place of a checkpoint, scaled so that activations and logits stay sane.

    Matrices are cut from one block of normal numbers whose length is prime, so no two rows are alike and filling
    costs a copy: a benchmark of a large model starts in the time its memory takes to be written.
    """

    BLOCK = 1_048_583

    def __init__(
        self,
        needed: Mapping[str, Shape],
        *,
        seed: int,
        device: torch.device,
        dtype: torch.dtype,
        num_elements: int | None = None,
        progress: Progress = lambda fraction: None,
    ) -> None:
        self._seed = seed
        self._device = device
        self._dtype = dtype
        self._progress = progress
        noise = torch.randn(self.BLOCK, generator=torch.Generator().manual_seed(seed))
        self._noise = noise.to(device=device, dtype=dtype)
        self._total = num_elements or sum(math.prod(shape) for shape in needed.values())
        self._done = 0

    def tensor(
        self, name: str, shape: Shape, part: Part | None = None, dtype: torch.dtype | None = None
    ) -> torch.Tensor:
        return self._stacked([name], [shape], [part]).to(dtype or self._dtype)

    def stacked(
        self, names: Sequence[str], shapes: Sequence[Shape], parts: Sequence[Part | None] | None = None
    ) -> torch.Tensor:
        return self._stacked(names, shapes, parts or [None] * len(names))

    def _stacked(
        self, names: Sequence[str], shapes: Sequence[Shape], parts: Sequence[Part | None]
    ) -> torch.Tensor:
        own = part_shapes(shapes, parts)
        heights = [shape[0] for shape in own]
        out = torch.empty((sum(heights), *own[0][1:]), dtype=self._dtype, device=self._device)
        for name, shape, place, part in zip(names, shapes, out.split_with_sizes(heights), parts, strict=True):
            self._fill(name, shape, place, part)
        return out

    def _fill(self, name: str, shape: Shape, out: torch.Tensor, part: Part | None) -> None:
        """`out` is `part` of the noise that the whole tensor would be."""
        if name.lower().endswith("norm.weight"):
            out.fill_(1.0)
        elif name.endswith(".bias"):
            out.zero_()
        elif part is None or part.dim == 0:
            first = part.first if part is not None else 0
            there = out[: max(0, min(out.shape[0], shape[0] - first))]
            out[len(there) :].zero_()
            self._fill_rows(name, shape, first, there)
        else:
            height = max(1, self.BLOCK // shape[1])
            for row in range(0, shape[0], height):
                rows = torch.empty(
                    (min(height, shape[0] - row), shape[1]), dtype=self._dtype, device=self._device
                )
                self._fill_rows(name, shape, row, rows)
                out[row : row + height] = rows[:, part.first : part.end]
        self._done += out.numel()
        self._progress(min(1.0, self._done / self._total))

    def _fill_rows(self, name: str, shape: Shape, first: int, out: torch.Tensor) -> None:
        """`out` are the rows of the tensor from `first` on."""
        begun = first * math.prod(shape[1:])
        noise = self._noise.roll(zlib.crc32(name.encode()) % self.BLOCK - begun % self.BLOCK)
        flat = out.view(-1)
        for begin in range(0, len(flat), self.BLOCK):
            part = flat[begin : begin + self.BLOCK]
            torch.mul(noise[: len(part)], 1 / math.sqrt(shape[-1]), out=part)

    def close(self) -> None:
        """Nothing is open."""
