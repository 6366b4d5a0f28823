"""Which options cannot be meant together, and what to do about each case."""

from __future__ import annotations

from collections.abc import Iterator, Set
from pathlib import Path

from ..config import ServeConfig
from ..speculative import SpeculativeError
from ..speculative_options import speculation


def contradictions(config: ServeConfig, given: Set[str]) -> Iterator[str]:
    """One line for each; `given` are the names of the options that the user set himself."""
    server, cache = config.server, config.cache
    if server.uds is not None:
        for name in ("host", "port"):
            if name in given:
                value = getattr(server, name)
                yield f"--uds {server.uds} and --{name} {value}: a server listens on one of them: leave one out"
    if (server.ssl_keyfile is None) != (server.ssl_certfile is None):
        have, lack = ("keyfile", "certfile") if server.ssl_keyfile else ("certfile", "keyfile")
        value = server.ssl_keyfile or server.ssl_certfile
        yield f"--ssl-{have} {value}: HTTPS needs a key and a certificate: add --ssl-{lack}"
    for name in ("ssl_keyfile", "ssl_certfile"):
        path = getattr(server, name)
        if path is not None and not Path(path).is_file():
            yield f"--{name.replace('_', '-')} {path}: no such file: give the path of a PEM file"
    if server.root_path and (not server.root_path.startswith("/") or server.root_path.endswith("/")):
        yield f"--root-path {server.root_path}: must begin with / and not end with one: try /{server.root_path.strip('/')}"
    if config.model.revision is not None and config.model.model is None:
        yield f"--revision {config.model.revision}: the embedded model has no revisions: name a MODEL or leave it out"
    budgets = [
        f"--{name.replace('_', '-')} {getattr(cache, name)}"
        for name in ("kv_cache_memory_bytes", "num_gpu_blocks_override", "max_total_tokens")
        if getattr(cache, name) is not None
    ]
    if "gpu_memory_utilization" in given:
        budgets.append(f"--gpu-memory-utilization {cache.gpu_memory_utilization:g}")
    if len(budgets) > 1:
        yield f"{' and '.join(budgets)}: each sets the size of the KV cache: keep one"
    if cache.max_total_tokens is not None and cache.max_total_tokens < cache.block_size:
        yield (
            f"--max-total-tokens {cache.max_total_tokens}: less than one page of {cache.block_size}: "
            "raise it or lower --block-size"
        )
    yield from capacity_contradictions(config)
    yield from speculative_contradictions(config)
    device = config.device
    quantization = config.model.quantization
    if quantization is not None and device.device == "cuda":
        yield f"--quantization {quantization}: does not run on --device cuda: leave one of them out"
    if quantization is not None and config.model.dtype == "float16":
        yield f"--quantization {quantization}: computes in bfloat16 or float32: leave --dtype float16 out"
    if device.device == "cuda" and device.attention_backend == "cpu":
        yield "--attention-backend cpu: does not run on --device cuda: leave one of them out"
    if device.device == "cpu" and device.attention_backend == "flashinfer":
        yield "--attention-backend flashinfer: does not run on --device cpu: leave one of them out"
    if device.device == "cpu" and "gpu_memory_utilization" in given:
        yield (
            f"--gpu-memory-utilization {cache.gpu_memory_utilization:g}: has no meaning on --device cpu: "
            "use --kv-cache-memory"
        )
    events = cache.kv_events_config
    if events is not None and events.replay_endpoint == events.endpoint:
        yield f"--kv-events-config: endpoint and replay_endpoint are both {events.endpoint}: give them different ports"


def capacity_contradictions(config: ServeConfig) -> Iterator[str]:
    cache, scheduler, longest = config.cache, config.scheduler, config.model.max_model_len
    budget = scheduler.max_num_batched_tokens
    if budget is not None and budget < scheduler.max_num_seqs:
        yield (
            f"--max-num-batched-tokens {budget}: every running request needs one token of each step, "
            f"and --max-num-seqs is {scheduler.max_num_seqs}: raise the first or lower the second"
        )
    if scheduler.cudagraph_capture_sizes and scheduler.max_cudagraph_capture_size is not None:
        yield (
            f"--max-cudagraph-capture-size {scheduler.max_cudagraph_capture_size}: --cudagraph-capture-sizes names "
            "every size: leave one of them out"
        )
    if scheduler.target_itl_ms and config.model.runner == "pooling":
        yield (
            f"--target-itl-ms {scheduler.target_itl_ms:g}: nothing decodes with --runner pooling: leave one of them out"
        )
    pages = cache.num_gpu_blocks_override
    tokens = pages * cache.block_size if pages is not None else cache.max_total_tokens
    if tokens is not None and longest is not None and tokens < longest:
        yield (
            f"--max-model-len {longest}: the KV cache holds {tokens} tokens: lower it to {tokens} or raise "
            f"{'--num-gpu-blocks-override' if pages is not None else '--max-total-tokens'}"
        )


def speculative_contradictions(config: ServeConfig) -> Iterator[str]:
    try:
        speculative = speculation(config.speculative)
    except SpeculativeError as error:
        yield str(error)
        return
    if speculative is not None and config.model.runner == "pooling":
        yield (
            f"--speculative-config: method {speculative.method}: nothing decodes with --runner pooling: leave one of "
            "them out"
        )
    stages = config.parallel.pipeline_parallel_size
    if speculative is not None and stages > 1:
        yield (
            f"--speculative-config: method {speculative.method}: does not work with --pipeline-parallel-size {stages} "
            "yet: leave one of them out"
        )
    ranks = config.parallel.tensor_parallel_size
    if speculative is not None and speculative.method != "ngram" and ranks > 1 == stages:
        yield (
            f"--speculative-config: method {speculative.method}: does not work with --tensor-parallel-size {ranks} "
            "yet: leave one of them out, or use method ngram"
        )
