"""How much KV cache there is: layers grouped by what they see, pages counted from a memory budget, pools allocated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from ..scheduler.groups import KVGroup
from .draft_models.model import DraftShape
from .errors import ConfigurationError
from .host_memory import lazy_zeros
from .models.config import ModelConfig
from .parallel.grid import layers_of

GIB = 1 << 30
DEFAULT_CPU_BYTES = 4 * GIB
DEFAULT_CPU_SHARE = 0.25  # of the memory available once the weights are loaded


@dataclass(frozen=True, slots=True)
class LayerGroups:
    """Which KV group each layer belongs to; `windows[g]` is what the layers of group g see, None for everything."""

    windows: tuple[int | None, ...]
    of_layer: tuple[int, ...]

    def num_layers(self, group: int) -> int:
        return self.of_layer.count(group)

    @property
    def of_draft(self) -> int:
        """The group whose pages hold a drafter's keys as well: the one that keeps all positions, if there is one."""
        return self.windows.index(None) if None in self.windows else 0


def own_layers(groups: LayerGroups, layers: range) -> LayerGroups:
    """The same groups in a process that has only these layers."""
    return LayerGroups(groups.windows, groups.of_layer[layers.start : layers.stop])


def largest_stage(groups: LayerGroups, stages: int) -> LayerGroups:
    """As many layers of each group as any stage of a pipeline has: what fits them fits every stage."""
    own = [own_layers(groups, layers_of(s, stages, len(groups.of_layer))) for s in range(stages)]
    most = [max(each.num_layers(group) for each in own) for group in range(len(groups.windows))]
    return LayerGroups(groups.windows, tuple(group for group, count in enumerate(most) for _ in range(count)))


@dataclass(frozen=True, slots=True)
class Footprint:
    """What one sequence of `max_model_len` takes in each KV group."""

    page_bytes: tuple[int, ...]  # one page, keys and values, of all layers of the group
    sequence_pages: tuple[int, ...]

    @property
    def sequence_bytes(self) -> int:
        return sum(size * pages for size, pages in zip(self.page_bytes, self.sequence_pages, strict=True))


def group_layers(config: ModelConfig, max_model_len: int) -> LayerGroups:
    """Layers with the same window share a group; a window that covers the whole context is none."""
    seen = [None if window is None or window >= max_model_len else window for window in config.windows]
    windows = tuple(dict.fromkeys(seen))
    return LayerGroups(windows, tuple(windows.index(window) for window in seen))


def footprint(
    config: ModelConfig,
    groups: LayerGroups,
    *,
    max_model_len: int,
    page_size: int,
    max_num_batched_tokens: int,
    dtype: torch.dtype,
    draft: DraftShape | None = None,
    feature_dtype: torch.dtype | None = None,  # of what a drafter keeps beside keys and values; None = theirs
) -> Footprint:
    """Pages and bytes of one sequence; a sliding group holds its window and the chunk being computed."""
    vector_bytes = config.cached_per_token * dtype.itemsize
    pages = []
    for window in groups.windows:
        whole = -(-max_model_len // page_size)
        if window is None:
            pages.append(whole)
            continue
        behind = (window + page_size - 2) // page_size + 1
        pages.append(min(whole, behind + -(-max_num_batched_tokens // page_size)))
    page_bytes = [vector_bytes * page_size * groups.num_layers(g) for g in range(len(groups.windows))]
    if draft is not None:
        page_bytes[groups.of_draft] += draft.page_bytes(page_size, dtype, feature_dtype or dtype)
    return Footprint(page_bytes=tuple(page_bytes), sequence_pages=tuple(pages))


def default_cpu_budget(available: int, need: Footprint) -> int:
    """4 GiB, or more where one full sequence takes more, but never beyond a quarter of what is available (bytes)."""
    return min(int(DEFAULT_CPU_SHARE * available), max(DEFAULT_CPU_BYTES, need.sequence_bytes))


def count_pages(need: Footprint, budget: int, max_num_seqs: int) -> tuple[int, ...] | None:
    """Pages of each group within `budget` bytes; None when not even one sequence of full length fits.

    Every group first gets what one such sequence needs; what is left goes to all groups page for page (sequences
    shorter than a window hold as many pages in each), none getting more than `max_num_seqs` full sequences can hold.
    """
    left = budget - need.sequence_bytes
    if left < 0:
        return None
    pages = list(need.sequence_pages)
    growing = [g for g in range(len(pages)) if max_num_seqs > 1]
    while growing:
        room = [need.sequence_pages[g] * max_num_seqs - pages[g] for g in growing]
        more = min(left // sum(need.page_bytes[g] for g in growing), min(room))
        for g in growing:
            pages[g] += more
            left -= more * need.page_bytes[g]
        full = [g for g, free in zip(growing, room, strict=True) if free == more]
        if not full:
            break
        growing = [g for g in growing if g not in full]
    return tuple(pages)


def longest_context(need_of: Callable[[int], Footprint], budget: int, max_model_len: int) -> int:
    """The longest context up to `max_model_len` of which one sequence fits `budget` bytes; 0 if none does."""
    low, high = 0, max_model_len
    while low < high:
        middle = (low + high + 1) // 2
        if need_of(middle).sequence_bytes <= budget:
            low = middle
        else:
            high = middle - 1
    return low


def does_not_fit(
    need: Footprint, budget: int, max_model_len: int, longest: int, budget_name: str
) -> ConfigurationError:
    """The arithmetic of a context that is too long for its memory, and the two ways out."""
    arithmetic = " + ".join(
        f"{pages} pages of {size / 1024:.4g} KiB"
        for pages, size in zip(need.sequence_pages, need.page_bytes, strict=True)
    )
    lower = f"lower --max-model-len to {longest} or " if longest else ""
    return ConfigurationError(
        f"the KV cache needs {gib(need.sequence_bytes)} for one sequence of max_model_len {max_model_len} "
        f"({arithmetic}), {gib(budget)} are available ({budget_name}): {lower}"
        f"raise --kv-cache-memory-bytes to {need.sequence_bytes} or more"
    )


def gib(num_bytes: int) -> str:
    return f"{num_bytes / GIB:.2f} GiB" if num_bytes >= GIB // 10 else f"{num_bytes / (1 << 20):.2f} MiB"


def kv_groups(groups: LayerGroups, pages: Sequence[int]) -> tuple[KVGroup, ...]:
    """The scheduler's view of the groups."""
    return tuple(
        KVGroup("full", count) if window is None else KVGroup("sliding", count, window)
        for window, count in zip(groups.windows, pages, strict=True)
    )


def allocate(
    config: ModelConfig,
    groups: LayerGroups,
    pages: Sequence[int],
    *,
    page_size: int,
    dtype: torch.dtype,
    device: torch.device,
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """k_pages and v_pages of each layer: (num_pages, page_size, num_kv_heads, head_dim), zeroed.

    On a CPU they are committed as they are touched, or a little before (`prefault.py`): an idle server does not occupy
    its budget.
    """

    def pool(group: int) -> torch.Tensor:
        shape = (pages[group], page_size, config.num_kv_heads, config.head_dim)
        return zeros(shape, dtype, device)

    keys = [pool(group) for group in groups.of_layer]
    if config.latent is not None:
        return [(each, each) for each in keys]
    return [(each, pool(group)) for each, group in zip(keys, groups.of_layer, strict=True)]


@dataclass(frozen=True, slots=True)
class DraftPages:
    """What a drafter keeps in pages, for each of its modules: k_pages and v_pages as a layer's, and the features of
    each page's last position (num_pages, feature_size)."""

    kv: list[tuple[torch.Tensor, torch.Tensor]]
    page_ends: list[torch.Tensor]

    def tensors(self) -> list[torch.Tensor]:
        return [tensor for pair in self.kv for tensor in pair] + self.page_ends


def allocate_draft(
    draft: DraftShape,
    num_pages: int,
    *,
    page_size: int,
    dtype: torch.dtype,
    feature_dtype: torch.dtype,
    device: torch.device,
) -> DraftPages:
    shape = (num_pages, page_size, draft.num_kv_heads, draft.head_dim)
    keys = [zeros(shape, dtype, device) for _ in range(draft.num_modules)]
    kv = [(each, zeros(shape, dtype, device) if draft.has_values else each) for each in keys]
    ends = [zeros((num_pages, draft.feature_size), feature_dtype, device) for _ in range(draft.num_modules)]
    return DraftPages(kv, ends)


def zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """On a CPU committed as it is used."""
    return (
        lazy_zeros(shape, dtype) if device.type == "cpu" else torch.zeros(shape, dtype=dtype, device=device)
    )
