"""How much memory the KV cache gets on this machine, and the cache itself."""

from __future__ import annotations

import logging

import torch

from ..kernels.attention.interface import AttentionBackend
from ..kernels.interface import Ops
from ..scheduler.messages import EngineConfig
from . import kv_pool
from .choices import Choices
from .draft_models.config import EagleConfig, MTPConfig
from .draft_models.model import DraftShape
from .drafters import LoadedDraft
from .errors import ConfigurationError
from .host_memory import available_bytes
from .kv_pool import Footprint, LayerGroups
from .layers.decoder import Decoder
from .memory import CudaMeter, MemoryAccount, take_account
from .models.config import ModelConfig
from .parallel.grid import grid_of
from .parallel.ranks import Ranks
from .prefault import Prefault
from .trial import Trial

log = logging.getLogger(__name__)


def size_kv_cache(
    config: EngineConfig,
    model_config: ModelConfig,
    choices: Choices,
    groups: LayerGroups,
    max_model_len: int,
    account: MemoryAccount | None = None,  # of a device that has memory of its own
    ranks: Ranks | None = None,
    draft: DraftShape | None = None,
) -> tuple[int, tuple[int, ...], Footprint]:
    """(max_model_len, pages of each group, footprint of one sequence), the same on all `ranks`.

    Context or budget that the user set are kept: if they contradict each other that is an error. Where both are left
    to us the context is cut to what fits, with a warning.
    """

    def footprint(length: int) -> Footprint:
        return kv_pool.footprint(
            model_config,
            groups,
            max_model_len=length,
            page_size=config.page_size,
            max_num_batched_tokens=choices.max_num_batched_tokens,
            dtype=choices.kv_dtype,
            draft=draft,
            feature_dtype=choices.dtype,
        )

    need = footprint(max_model_len)
    if config.num_pages is not None:
        pages = (config.num_pages,) * len(groups.windows)
        if any(config.num_pages < wanted for wanted in need.sequence_pages):
            raise ConfigurationError(
                f"{config.num_pages} pages of {config.page_size} tokens hold {config.num_pages * config.page_size} "
                f"tokens, one sequence of max_model_len {max_model_len} needs {max(need.sequence_pages)} pages: lower "
                f"--max-model-len to {config.num_pages * config.page_size} or raise --num-pages"
            )
        return max_model_len, pages, need
    if config.kv_cache_memory_bytes is not None:
        budget, name = config.kv_cache_memory_bytes, "--kv-cache-memory-bytes"
    elif account is not None:
        budget, name = account.kv_cache, account.described()
    else:
        budget = kv_pool.default_cpu_budget(available_bytes() // grid_of(config).size, need)
        name = "a quarter of the free memory"
    if ranks is not None:
        budget = ranks.least(budget)
    fitting = kv_pool.count_pages(need, budget, config.max_num_seqs)
    if fitting is not None:
        return max_model_len, fitting, need
    longest = kv_pool.longest_context(footprint, budget, max_model_len)
    complaint = kv_pool.does_not_fit(need, budget, max_model_len, longest, name)
    if longest == 0 or config.max_model_len is not None or config.kv_cache_memory_bytes is not None:
        raise complaint
    log.warning("max_model_len is %d instead of %d: %s", longest, max_model_len, complaint)
    need = footprint(longest)
    fitting = kv_pool.count_pages(need, budget, config.max_num_seqs)
    assert fitting is not None, "the longest context that fits does fit"
    return longest, fitting, need


def start_prefaults(
    config: EngineConfig,
    choices: Choices,
    groups: LayerGroups,
    kv: list[tuple[torch.Tensor, torch.Tensor]],
    draft: LoadedDraft | None = None,
) -> list[Prefault]:
    """One per KV group; none on devices whose memory is committed when it is allocated."""
    if choices.device.type != "cpu":
        return []
    tensors: list[list[torch.Tensor]] = [[] for _ in groups.windows]
    for group, pair in zip(groups.of_layer, kv, strict=True):
        tensors[group] += pair
    if draft is not None:
        tensors[draft.group] += draft.pages.tensors()
    return [Prefault(of_group, config.page_size) for of_group in tensors]


# ------------------------------------------------------------------------------------------- on the device thread


def measure_memory(
    config: EngineConfig,
    model_config: ModelConfig,
    choices: Choices,
    groups: LayerGroups,
    model: Decoder,
    ops: Ops,
    attention: list[AttentionBackend],
    max_model_len: int,
    weight_bytes: int,
    ranks: Ranks | None,
) -> MemoryAccount:
    """What is left for KV pages on a CUDA device; all ranks find it out together."""
    trial = Trial(
        model,
        attention,
        allocate_kv_cache(config, model_config, choices, groups, (1,) * len(groups.windows)),
        max_model_len=max_model_len,
        page_size=config.page_size,
        max_num_batched_tokens=choices.max_num_batched_tokens,
        max_num_seqs=config.max_num_seqs,
        recorder=ops.recorder() if choices.capture_sizes else None,
        sizes=choices.capture_sizes,
        device=choices.device,
        ranks=ranks,
    )
    return take_account(
        CudaMeter(choices.device),
        weights=weight_bytes,
        utilization=config.gpu_memory_utilization,
        largest_step=trial.largest_step,
        capture=trial.capture,
        sizes=choices.capture_sizes,
        release=trial.release,
    )


def allocate_draft_pages(
    config: EngineConfig, choices: Choices, draft: EagleConfig | MTPConfig, num_pages: int
) -> kv_pool.DraftPages:
    return kv_pool.allocate_draft(
        draft.shape,
        num_pages,
        page_size=config.page_size,
        dtype=choices.kv_dtype,
        feature_dtype=choices.dtype,
        device=choices.device,
    )


def allocate_kv_cache(
    config: EngineConfig,
    model_config: ModelConfig,
    choices: Choices,
    groups: LayerGroups,
    pages: tuple[int, ...],
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return kv_pool.allocate(
        model_config, groups, pages, page_size=config.page_size, dtype=choices.kv_dtype, device=choices.device
    )
