"""What an engine decides before memory is looked at: device, dtype, threads, and the bounds of a step and of the queue."""

from __future__ import annotations

import logging
import math
import os
from dataclasses import dataclass

import torch

from ..kernels.quantization import Quantization
from ..scheduler.messages import EngineConfig
from .errors import ConfigurationError
from .graphs import MAX_TOKENS, default_sizes
from .models.config import EncoderConfig, ModelConfig
from .parallel.grid import grid_of

log = logging.getLogger(__name__)

DEFAULT_BATCHED_TOKENS = 2048
# A target costs a machine kept busy by prompts: each step reads the weights anew, and requests that came together end
# apart. On two cores with 0.6B parameters (30 to 40 ms to read them), 16 requests at once: 100 ms lost 10 % of the
# throughput, 200 ms 5 %, 350 ms nothing (docs/performance.md). GPUs take a fraction of that for a step.
DEFAULT_TARGET_ITL_MS = {"cpu": 250.0, "cuda": 50.0}
QUEUED_PER_SEQUENCE = 8


@dataclass(frozen=True, slots=True)
class Choices:
    """`EngineConfig` with every "choose for me" decided that does not depend on memory."""

    device: torch.device
    dtype: torch.dtype
    kv_dtype: torch.dtype  # of keys and values
    quantization: Quantization | None
    num_threads: int
    max_num_batched_tokens: int
    max_num_queued_reqs: int
    target_itl_ms: float
    capture_sizes: tuple[
        int, ...
    ] = ()  # batch sizes of decodes to record at start; () = whatever comes, as it comes


def choose(config: EngineConfig, model_config: ModelConfig | EncoderConfig) -> Choices:
    device = choose_device(config)
    dtype = choose_dtype(config, model_config, device)
    for name in ("max_num_seqs", "page_size"):
        if getattr(config, name) < 1:
            raise ConfigurationError(f"{name} is {getattr(config, name)}, it must be at least 1")
    batched = config.max_num_batched_tokens
    if batched is None:
        batched = max(DEFAULT_BATCHED_TOKENS, config.max_num_seqs)
    if batched < config.max_num_seqs:
        raise ConfigurationError(
            f"--max-num-batched-tokens {batched} is below --max-num-seqs {config.max_num_seqs}, and every running "
            "request takes a token of each step: raise the first or lower the second"
        )
    queued, target = config.max_num_queued_reqs, config.target_itl_ms
    if target is not None and not (target >= 0 and math.isfinite(target)):
        raise ConfigurationError(
            f"--target-itl-ms {target}: give a number of milliseconds, or 0 for no target"
        )
    return Choices(
        device=device,
        dtype=dtype,
        kv_dtype=choose_kv_dtype(config, device, dtype),
        quantization=choose_quantization(config, device, dtype),
        num_threads=config.num_threads or max(1, len(os.sched_getaffinity(0)) // grid_of(config).size),
        max_num_batched_tokens=batched,
        max_num_queued_reqs=QUEUED_PER_SEQUENCE * config.max_num_seqs if queued is None else queued,
        target_itl_ms=DEFAULT_TARGET_ITL_MS[device.type] if target is None else target,
        capture_sizes=choose_capture_sizes(config, device),
    )


def choose_capture_sizes(config: EngineConfig, device: torch.device) -> tuple[int, ...]:
    """What was asked for as far as it can occur; else enough sizes on CUDA, and none on a CPU."""
    if config.enforce_eager:
        return ()
    asked, most = config.cudagraph_capture_sizes, config.max_num_seqs
    if asked:
        return tuple(sorted({min(size, most) for size in asked}))
    if device.type == "cpu" and config.max_cudagraph_capture_size is None:
        return ()
    return default_sizes(most, config.max_cudagraph_capture_size or MAX_TOKENS)


def choose_device(config: EngineConfig) -> torch.device:
    if config.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ConfigurationError("--device cuda: torch sees no CUDA device here: use --device cpu or auto")
    return torch.device(config.device)


def choose_dtype(
    config: EngineConfig, model_config: ModelConfig | EncoderConfig, device: torch.device
) -> torch.dtype:
    """`auto` is the checkpoint's own (float32 where it does not say), with one exception.

    float16 checkpoints run in bfloat16 on CPUs: x86 has bfloat16 products, float16 ones are emulated and several
    times slower, and float32 would double the bytes every decode step reads. It is logged; --dtype decides otherwise.
    """
    if config.dtype != "auto":
        return torch_dtype(config.dtype)
    own = model_config.dtype or "float32"
    if own == "float16" and device.type == "cpu":
        log.warning(
            "the float16 checkpoint runs in bfloat16 on a CPU: --dtype float16 or float32 to have it otherwise"
        )
        own = "bfloat16"
    return torch_dtype(own)


def choose_kv_dtype(config: EngineConfig, device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """The model's own, or 8 bits where there are kernels for them."""
    asked = f"--kv-cache-dtype {config.kv_cache_dtype}"
    if config.kv_cache_dtype not in ("fp8", "fp8_e4m3"):
        if config.kv_cache_dtype not in ("auto", dtype_name(dtype)):
            raise ConfigurationError(
                f"{asked} differs from the model's {dtype_name(dtype)}, which is not supported: leave it at auto, or "
                "set --dtype as well"
            )
        return dtype
    if device.type == "cpu" and config.attention_backend != "torch":
        raise ConfigurationError(
            f"{asked}: the kernels for CPUs read keys and values of the model's dtype alone: leave it at auto, or use "
            "--attention-backend torch"
        )
    return torch.float8_e4m3fn


def choose_quantization(
    config: EngineConfig, device: torch.device, dtype: torch.dtype
) -> Quantization | None:
    """What becomes of the linear layers' weights, if anything."""
    if config.quantization is None:
        return None
    asked = f"--quantization {config.quantization}"
    if device.type != "cpu":
        raise ConfigurationError(f"{asked} works on CPUs alone so far: leave it out, or use --device cpu")
    if dtype == torch.float16:
        raise ConfigurationError(
            f"{asked} computes in bfloat16 or float32, not in float16: set --dtype to one of them"
        )
    return Quantization(config.quantization)


def torch_dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, name)
    assert isinstance(dtype, torch.dtype)
    return dtype


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
