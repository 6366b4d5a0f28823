"""From an `EngineConfig` to a runner that is ready: what "auto" means, what fits, and how long each phase took."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch

from ..kernels.attention.interface import AttentionBackend, AttentionSpec
from ..kernels.interface import Ops
from ..kernels.sampling.interface import SamplingParameters
from ..kernels.select import select_attention
from ..scheduler.groups import KVGroup
from ..scheduler.messages import EngineConfig, EngineInfo
from ..scheduler.scheduler import SchedulerConfig
from . import kv_pool
from .choices import Choices, choose, dtype_name
from .device_thread import DeviceThread
from .draft_models.config import EagleConfig, MTPConfig, mtp_prefixes, read_draft_config
from .draft_models.load import load_draft
from .drafters import LoadedDraft, open_speculation
from .errors import ConfigurationError
from .grammar.masks import MaskThread
from .kv_pool import LayerGroups
from .kv_sizing import (
    allocate_draft_pages,
    allocate_kv_cache,
    measure_memory,
    size_kv_cache,
    start_prefaults,
)
from .layers.decoder import Decoder
from .layers.parts import Weights
from .layers.rope import rope_table
from .loading import leave_cores_to_kernels, load_ops, load_weights
from .model_config import context_length, parse_model_config, read_raw_config
from .models.config import ModelConfig
from .models.registry import FAMILIES
from .parallel.grid import local_config
from .parallel.place import recorder_of, take_place
from .parallel.ranks import Ranks
from .parallel.shard import Shard
from .pooling import Pooler
from .pooling_config import Purpose, decide_purpose, max_seq_length
from .runner import WARM_UP_TOKENS, ModelRunner
from .step_runner import StepRunner
from .streams import open_stream
from .weights import Names

__all__ = ["Built", "ConfigurationError", "create_runner"]

log = logging.getLogger(__name__)

Progress = Callable[[str, float], None]  # phase, share done (0..1)


@dataclass(frozen=True, slots=True)
class Built:
    """A warm runner, the scheduler configuration that fits it, and what was chosen."""

    runner: StepRunner
    scheduler_config: SchedulerConfig
    info: EngineInfo


def create_runner(
    config: EngineConfig,
    progress: Progress = lambda phase, fraction: None,
    ranks: Ranks | None = None,
) -> Built:
    """Load the model, size and allocate its KV cache, warm up.

    A model for several ranks is led from here, unless this process has its place in `ranks` already.

    `progress` is called with a phase and the share of it that is done. Raises ConfigurationError when options,
    checkpoint and machine do not go together; its message is one line for the user.
    """
    seconds: dict[str, float] = {}

    @contextmanager
    def phase(name: str, said: str) -> Iterator[None]:
        begin = time.perf_counter()
        progress(said, 0.0)
        yield
        progress(said, 1.0)
        seconds[name] = round(time.perf_counter() - begin, 3)

    with phase("config", "reading config"):
        raw, where = read_raw_config(config.model_dir, config.hf_overrides)
        model_config = parse_model_config(raw, where)
        purpose = decide_purpose(config, raw, where, model_config)
        model_config = replace(model_config, head=purpose.head)
        choices = choose(config, model_config)
        max_model_len = prompt_length(config, model_config, purpose)
        draft = read_draft_config(config, raw, where, model_config)
        ranks, choices = take_place(config, model_config, choices, ranks)
        leads = ranks is None or ranks.leads
        # What attention and the KV cache see of the model, and the layers that memory is counted for.
        local, counted = model_config, kv_pool.group_layers(model_config, max_model_len)
        shard, groups = None, counted
        if ranks is not None:
            local = local_config(model_config, ranks.grid.tensor)
            shard = ranks.shard(model_config, choices.dtype, choices.device)
            groups = kv_pool.own_layers(counted, shard.layers)
            counted = kv_pool.largest_stage(counted, ranks.grid.stages)
    # All work on tensors is done by the thread that will run the steps: what is per thread (inference mode, OpenMP
    # teams) exists once.
    thread = DeviceThread()
    try:
        if ranks is not None and choices.device.type == "cuda":
            torch.cuda.set_device(choices.device)  # which is each thread's own
            thread.submit(torch.cuda.set_device, choices.device).result()
        with phase("kernels", "loading kernels"):
            ops = thread.submit(load_ops, config.attention_backend, choices, progress).result()
        with phase("weights", "loading weights"):
            attention = [
                select_attention(
                    config.attention_backend,
                    choices.device,
                    attention_spec(config, local, choices, window),
                )
                for window in groups.windows
            ]
            model, weight_bytes = thread.submit(
                load_model,
                config,
                model_config,
                choices,
                ops,
                attention,
                groups,
                max_model_len,
                lambda fraction: progress("loading weights", fraction),
                shard,
                mtp_prefixes(raw, model_config.num_layers),
            ).result()
            if draft is not None:
                draft_attention = [
                    select_attention(
                        config.attention_backend,
                        choices.device,
                        draft_attention_spec(config, draft, choices, groups, number),
                    )
                    for number in range(draft.num_modules)
                ]
                draft_model, draft_bytes = thread.submit(
                    load_draft,
                    draft,
                    config,
                    choices,
                    ops,
                    model,
                    draft_attention,
                    max_model_len,
                    max(choices.max_num_batched_tokens, WARM_UP_TOKENS),
                ).result()
                weight_bytes += draft_bytes
            if ranks is not None:
                ranks.connect(choices.device)
        account = None
        if has_own_memory(choices.device):
            with phase("memory", "measuring memory"):
                account = thread.submit(
                    measure_memory,
                    config,
                    local,
                    choices,
                    groups,
                    model,
                    ops,
                    attention,
                    max_model_len,
                    weight_bytes,
                    ranks,
                ).result()
        with phase("kv_cache", "allocating KV cache"):
            max_model_len, pages, _ = size_kv_cache(
                config,
                local,
                choices,
                counted,
                max_model_len,
                account,
                ranks,
                draft.shape if draft is not None else None,
            )
            # The last page of each group is the scratch page of padding rows.
            scratch = tuple(count + 1 for count in pages)
            kv = thread.submit(allocate_kv_cache, config, local, choices, groups, scratch).result()
            pools = [tensor for pair in kv for tensor in pair]
            loaded_draft = None
            if draft is not None:
                draft_pages = thread.submit(
                    allocate_draft_pages, config, choices, draft, scratch[groups.of_draft]
                ).result()
                pools += draft_pages.tensors()
                loaded_draft = LoadedDraft(
                    draft_model,
                    draft_pages,
                    groups.of_draft,
                    config.page_size,
                    (lambda: None) if config.enforce_eager or choices.capture_sizes else ops.recorder,
                )
            # Keys that are their own values are one pool.
            kv_cache_bytes = sum({pool.data_ptr(): pool[:-1].nbytes for pool in pools}.values())
            if ranks is not None:
                weight_bytes, kv_cache_bytes = ranks.total(weight_bytes), ranks.total(kv_cache_bytes)
            stream = open_stream(choices.device)
            runner = ModelRunner(
                model,
                attention,
                kv,
                # A running request's slot may wait for steps that still name its predecessor.
                num_slots=2 * config.max_num_seqs,
                max_model_len=max_model_len,
                page_size=config.page_size,
                device=choices.device,
                thread=thread,
                prefaults=start_prefaults(config, choices, groups, kv, loaded_draft),
                pooler=Pooler(purpose, model.logits, causal=True),
                grammars=MaskThread(
                    2 * config.max_num_seqs,
                    model_config.vocab_size,
                    ops,
                    # A CPU has the forward pass to compute meanwhile.
                    num_threads=1 if choices.device.type == "cpu" else max(1, choices.num_threads // 2),
                    stream=stream,
                    max_rows=config.max_num_seqs * (1 + max(1, max_draft_tokens(config))),
                ),
                recorder=recorder_of(config, choices, ops, ranks),
                speculation=open_speculation(config.speculative, 2 * config.max_num_seqs, loaded_draft)
                if leads
                else None,
                stream=stream,
                capture_sizes=choices.capture_sizes,
                scratch_pages=pages,
                ranks=ranks,
            )
        thread.submit(leave_cores_to_kernels, ops, choices).result()
        if choices.capture_sizes:
            with phase("graphs", "capturing graphs"):
                runner.capture(lambda fraction: progress("capturing graphs", fraction))
        with phase("warm_up", "warming up"):
            if leads:
                runner.warm_up()
                thread.submit(warm_up_sampling, ops, model_config.vocab_size, choices).result()
    except BaseException:
        if ranks is not None:
            ranks.close(at_once=True)
        thread.close()
        raise
    kv_groups = kv_pool.kv_groups(groups, pages)
    info = EngineInfo(
        max_model_len=max_model_len,
        vocab_size=model_config.vocab_size,
        page_size=config.page_size,
        num_pages=min(pages),
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=choices.max_num_batched_tokens,
        max_num_queued_reqs=choices.max_num_queued_reqs,
        dtype=dtype_name(choices.dtype),
        kv_cache_dtype=dtype_name(choices.kv_dtype),
        device=str(choices.device),
        attention_backend=attention[0].name,
        weight_bytes=weight_bytes,
        quantization=config.quantization,
        kv_cache_bytes=kv_cache_bytes,
        startup_seconds=seconds,
        memory_bytes=account.as_bytes() if account is not None else {},
        num_speculative_tokens=max_draft_tokens(config),
        tasks=purpose.tasks,
        pooling=purpose.info,
    )
    return Built(runner, scheduler_config(config, choices, info, kv_groups), info)


def max_draft_tokens(config: EngineConfig) -> int:
    return config.speculative.num_speculative_tokens if config.speculative is not None else 0


def scheduler_config(
    config: EngineConfig, choices: Choices, info: EngineInfo, groups: tuple[KVGroup, ...]
) -> SchedulerConfig:
    return SchedulerConfig(
        max_num_seqs=info.max_num_seqs,
        max_num_batched_tokens=info.max_num_batched_tokens,
        max_model_len=info.max_model_len,
        page_size=info.page_size,
        groups=groups,
        policy=config.scheduling_policy,
        enable_prefix_caching=config.enable_prefix_caching,
        max_num_queued_reqs=info.max_num_queued_reqs,
        target_itl_ms=choices.target_itl_ms,
        max_draft_tokens=max_draft_tokens(config),
        num_stages=config.pipeline_parallel_size,
    )


# -------------------------------------------------------------------------------------------------------- decisions


def prompt_length(config: EngineConfig, model_config: ModelConfig, purpose: Purpose) -> int:
    """The context to serve; a checkpoint made for embeddings may say how far it reads."""
    longest = context_length(model_config, config.max_model_len)
    if config.max_model_len is None and "generate" not in purpose.tasks:
        return min(longest, max_seq_length(config.model_dir) or longest)
    return longest


def attention_spec(
    config: EngineConfig, model_config: ModelConfig, choices: Choices, window: int | None
) -> AttentionSpec:
    return AttentionSpec(
        num_heads=model_config.num_heads,
        num_kv_heads=model_config.num_kv_heads,
        head_dim=model_config.head_dim,
        page_size=config.page_size,
        scale=model_config.attention_scale or model_config.head_dim**-0.5,
        window=window,
        dtype=choices.dtype,
        kv_dtype=choices.kv_dtype,
    )


def draft_attention_spec(
    config: EngineConfig, draft: EagleConfig | MTPConfig, choices: Choices, groups: LayerGroups, number: int
) -> AttentionSpec:
    """Of module `number` of a drafter."""
    spec = attention_spec(config, draft.layer, choices, groups.windows[groups.of_draft])
    return replace(spec, first=number + 1)


def has_own_memory(device: torch.device) -> bool:
    """Whether all of its memory is the engine's to divide."""
    return device.type == "cuda"


# ------------------------------------------------------------------------------------------- on the device thread


def load_model(
    config: EngineConfig,
    model_config: ModelConfig,
    choices: Choices,
    ops: Ops,
    attention: list[AttentionBackend],
    groups: LayerGroups,
    max_model_len: int,
    progress: Callable[[float], None],
    shard: Shard | None = None,
    unused: tuple[str, ...] = (),  # what names of the checkpoint begin with that this does not read
) -> tuple[Decoder, int]:
    """The model, or a shard of it, with its weights in place, and their size in bytes."""
    family = FAMILIES[model_config.architecture]
    cos_sin = rope_table(model_config, max_model_len, choices.device)

    def make(weights: Weights, ops: Ops) -> Decoder:
        return family.model(model_config, weights, ops, attention, groups.of_layer, cos_sin, shard)

    def make_whole(weights: Weights, ops: Ops) -> Decoder:
        layers = [0] * model_config.num_layers
        return family.model(model_config, weights, ops, attention, layers, cos_sin)

    names = Names("model.", unused=("score.", *unused))
    return load_weights(
        config, choices, make, ops, names, progress, make_whole if shard is not None else None
    )


def warm_up_sampling(ops: Ops, vocab_size: int, choices: Choices) -> None:
    """Draw from logits as they come and as penalties leave them, and mask some: what compiles at first use has been."""
    one = torch.ones(1, device=choices.device)
    how = SamplingParameters(
        temperature=one,
        top_k=one.int(),
        top_p=one * 0.5,
        min_p=one * 0,
        greedy=np.zeros(1, np.bool_),
        truncated=np.ones(1, np.bool_),
    )
    slot = np.zeros(1, np.int32)
    allowed = torch.full((1, -(-vocab_size // 32)), -1, dtype=torch.int32, device=choices.device)
    for dtype in dict.fromkeys((choices.dtype, torch.float32)):
        logits = torch.zeros((1, vocab_size), dtype=dtype, device=choices.device)
        ops.mask_logits(logits, allowed, torch.zeros(1, dtype=torch.int32, device=choices.device))
        ops.sampling.sample(logits, how, slot, np.zeros(1))
