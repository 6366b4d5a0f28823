"""From an `EngineConfig` to the runner of an encoder: no KV cache, a step holds whole prompts."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ..kernels.attention.bidirectional import BidirectionalAttention
from ..kernels.interface import Ops
from ..kernels.select import select_bidirectional
from ..scheduler.messages import EngineConfig, EngineInfo
from ..scheduler.scheduler import SchedulerConfig
from .build import Built, Progress
from .choices import Choices, choose, dtype_name
from .device_thread import DeviceThread
from .encoder_config import parse_encoder_config
from .encoder_runner import EncoderRunner
from .errors import ConfigurationError
from .layers.encoder import Encoder
from .layers.parts import Weights
from .loading import leave_cores_to_kernels, load_ops, load_weights
from .models.config import EncoderConfig
from .models.registry import ENCODER_FAMILIES
from .pooling import Pooler
from .pooling_config import decide_purpose, max_seq_length
from .weights import Names

# What checkpoints hold beside the body: the pooler that only a classifier reads, and heads that are not loaded.
UNUSED = ("cls.", "lm_head.", "classifier.")


def create_encoder_runner(
    config: EngineConfig,
    raw: Mapping[str, Any],
    where: str,
    progress: Progress = lambda phase, fraction: None,
) -> Built:
    """Load the encoder that `raw`, the content of the file `where`, describes, and warm up.

    Raises ConfigurationError when options, checkpoint and machine do not go together.
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
        model_config = parse_encoder_config(raw, where)
        purpose = decide_purpose(config, raw, where, model_config)
        model_config = dataclasses.replace(model_config, head=purpose.head)
        max_model_len = prompt_length(config, model_config)
        choices = choose_step(config, choose(config, model_config), max_model_len)
    thread = DeviceThread()
    try:
        with phase("kernels", "loading kernels"):
            ops = thread.submit(load_ops, config.attention_backend, choices, progress).result()
            attention = select_bidirectional(config.attention_backend, choices.device)
        with phase("weights", "loading weights"):
            model, weight_bytes = thread.submit(
                load_encoder,
                config,
                model_config,
                choices,
                ops,
                attention,
                lambda fraction: progress("loading weights", fraction),
            ).result()
        runner = EncoderRunner(
            model,
            attention,
            Pooler(purpose, model.logits, causal=False),
            num_slots=2 * config.max_num_seqs,
            device=choices.device,
            thread=thread,
        )
        thread.submit(leave_cores_to_kernels, ops, choices).result()
        with phase("warm_up", "warming up"):
            runner.warm_up(max_model_len, purpose.tasks[0])
    except BaseException:
        thread.close()
        raise
    info = EngineInfo(
        max_model_len=max_model_len,
        vocab_size=model_config.vocab_size,
        page_size=config.page_size,
        num_pages=0,
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=choices.max_num_batched_tokens,
        max_num_queued_reqs=choices.max_num_queued_reqs,
        dtype=dtype_name(choices.dtype),
        kv_cache_dtype=dtype_name(choices.dtype),
        device=str(choices.device),
        attention_backend=attention.name,
        weight_bytes=weight_bytes,
        quantization=config.quantization,
        kv_cache_bytes=0,
        startup_seconds=seconds,
        tasks=purpose.tasks,
        pooling=purpose.info,
    )
    scheduler_config = SchedulerConfig(
        max_num_seqs=info.max_num_seqs,
        max_num_batched_tokens=info.max_num_batched_tokens,
        max_model_len=info.max_model_len,
        page_size=info.page_size,
        groups=(),
        policy=config.scheduling_policy,
        enable_prefix_caching=False,
        max_num_queued_reqs=info.max_num_queued_reqs,
    )
    return Built(runner, scheduler_config, info)


def prompt_length(config: EngineConfig, model_config: EncoderConfig) -> int:
    """The longest prompt in tokens: `--max-model-len`, else what the checkpoint was made to read."""
    positions, asked = model_config.derived_max_model_len, config.max_model_len
    if asked is None:
        return min(positions, max_seq_length(config.model_dir) or positions)
    if asked > positions:
        raise ConfigurationError(
            f"--max-model-len {asked} is more than the {positions} positions this encoder has: lower it"
        )
    return asked


def choose_step(config: EngineConfig, choices: Choices, max_model_len: int) -> Choices:
    """A step must hold the longest prompt: attention in both directions cannot be computed in chunks."""
    if choices.max_num_batched_tokens >= max_model_len:
        return choices
    if config.max_num_batched_tokens is not None:
        raise ConfigurationError(
            f"--max-num-batched-tokens {config.max_num_batched_tokens} is below the prompt length {max_model_len}, "
            "and an encoder reads a prompt in one step: raise the first or lower --max-model-len"
        )
    return dataclasses.replace(choices, max_num_batched_tokens=max_model_len)


def load_encoder(
    config: EngineConfig,
    model_config: EncoderConfig,
    choices: Choices,
    ops: Ops,
    attention: BidirectionalAttention,
    progress: Callable[[float], None],
) -> tuple[Encoder, int]:
    """The model with its weights in place, and their size in bytes."""
    family = ENCODER_FAMILIES[model_config.architecture]

    def make(weights: Weights, ops: Ops) -> Encoder:
        return family(model_config, weights, ops, attention)

    names = Names(f"{family.body}.", unused=(f"{family.body}.pooler.", *UNUSED))
    return load_weights(config, choices, make, ops, names, progress)
