"""`penstock serve`: from a configuration to a running family of processes, and everything gone at the end."""

from __future__ import annotations

import functools
import logging
import os
import secrets
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from .. import __version__
from ..scheduler.grammar_messages import GrammarConfig
from ..scheduler.messages import EngineConfig
from .config import ServeConfig
from .family.child import ChildSpec
from .family.listening import ListenError, listen, url
from .family.runtime_dir import runtime_dir
from .family.supervisor import EXIT_BAD_CONFIGURATION, EXIT_FAILED, Family, Limits, Supervisor
from .frontend_config import FrontEndConfig
from .logs import set_up_logging
from .model_files import DEMO_DIR, ModelError, ModelFiles, resolve
from .options.parse import HelpWanted, OptionError, Parsed, parse
from .speculative_options import speculation

log = logging.getLogger(__name__)

EVERY_INTERFACE = ("0.0.0.0", "::", "")
NVIDIA_DEVICE = Path("/dev/nvidiactl")


def serve(arguments: Sequence[str]) -> int:
    """Run `penstock serve <arguments>` to its end. The exit status: 0 stopped by a signal, 1 failed, 2 bad option."""
    try:
        parsed = parse(arguments)
        set_up_logging("supervisor", parsed.config.observability.log_level)
        drafter = speculation(parsed.config.speculative)
        files = resolve(parsed.config.model, drafter.model if drafter is not None else None)
        listener = listen(parsed.config.server)
    except HelpWanted:
        from .options.reference import help_text

        print(help_text(), end="")
        return 0
    except (OptionError, ModelError) as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_BAD_CONFIGURATION
    except ListenError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_FAILED
    try:
        announce(files)
        warn(parsed)
        return run(parsed.config, files, listener)
    finally:
        listener.close()
        if parsed.config.server.uds is not None:
            Path(parsed.config.server.uds).unlink(missing_ok=True)


def run(config: ServeConfig, files: ModelFiles, listener: socket.socket) -> int:
    """Start the family and watch over it until it ends."""
    address = url(listener, config.server)

    def on_serving() -> None:
        name = files.served_names[0]
        say(f"Penstock {__version__} ready: {address} (model {name}, ready in {seconds_since_start():.1f} s)")

    lifecycle = config.lifecycle
    limits = Limits(
        shutdown_timeout_s=lifecycle.shutdown_timeout,
        engine_restart_limit=lifecycle.engine_restart_limit,
        engine_restart_window_s=lifecycle.engine_restart_window,
    )
    with runtime_dir() as directory:
        family = describe_family(config, files, directory, listener.fileno())
        supervisor = Supervisor(family, limits, on_serving=on_serving, on_drain=listener.close)
        return supervisor.run()


# ------------------------------------------------------------------------------------- what each process is told


def describe_family(config: ServeConfig, files: ModelFiles, directory: Path, listen_fd: int) -> Family:
    """One engine, the front ends, and the grammar process; what they are told is written into `directory` at each start."""
    count = config.server.api_workers
    endpoints = [f"ipc://{directory}/frontend-{index}" for index in range(count)]
    multiprocess_dir = directory / "metrics"
    cache_salt_secret = secrets.token_hex(32)
    began_ns = time.time_ns() - int(seconds_since_start() * 1e9)
    if count > 1:
        multiprocess_dir.mkdir()

    def engine_command(incarnation: int) -> list[str]:
        told = engine_config(config, files, endpoints, incarnation, directory)
        return python_module("penstock.engine", write(directory / "engine-0.json", told))

    def frontend_command(index: int, incarnation: int) -> list[str]:
        path = directory / f"frontend-{index}.json"
        told = frontend_config(
            config,
            files,
            frontend_id=index,
            incarnation=incarnation,
            command_began_ns=None if path.exists() else began_ns,
            listen_fd=listen_fd,
            endpoint=endpoints[index],
            multiprocess_dir=str(multiprocess_dir) if count > 1 else None,
            responses_dir=str(directory / "responses"),
            cache_salt_secret=cache_salt_secret,
        )
        return python_module("penstock.server.frontend", write(path, told))

    def grammar_command(incarnation: int) -> list[str]:
        told = grammar_config(config, files, endpoints, incarnation)
        return python_module("penstock.engine.grammar", write(directory / "grammar.json", told))

    frontends = [
        ChildSpec(f"front end {index}", functools.partial(frontend_command, index), pass_fds=(listen_fd,))
        for index in range(count)
    ]
    return Family(
        engines=[ChildSpec("engine", engine_command)],
        frontends=frontends,
        endpoints=endpoints,
        background=[ChildSpec("grammar process", grammar_command)],
    )


def python_module(name: str, argument: Path) -> list[str]:
    """Run a module with this interpreter; -P: what lies in the current directory must not shadow a package."""
    return [sys.executable, "-P", "-m", name, str(argument)]


def write(path: Path, told: msgspec.Struct) -> Path:
    """Write a configuration for its owner alone: it may hold API keys."""
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(msgspec.json.encode(told))
    return path


def engine_config(
    config: ServeConfig, files: ModelFiles, endpoints: list[str], incarnation: int, directory: Path
) -> EngineConfig:
    model, scheduler, cache, device = config.model, config.scheduler, config.cache, config.device
    speculative = speculation(config.speculative)
    if speculative is not None and files.draft_dir is not None:
        speculative = msgspec.structs.replace(speculative, model=str(files.draft_dir))
    num_pages = cache.num_gpu_blocks_override
    if cache.max_total_tokens is not None:
        num_pages = cache.max_total_tokens // cache.block_size
    return EngineConfig(
        incarnation=incarnation,
        frontends=endpoints,
        model_dir=str(files.model_dir),
        tokenizer_dir=str(files.tokenizer_dir),
        grammar_cache_bytes=config.grammar.grammar_cache_memory,
        load_format=model.load_format,
        dtype=model.dtype,
        quantization=model.quantization,
        device=device.device,
        kv_cache_dtype=cache.kv_cache_dtype,
        max_model_len=model.max_model_len,
        hf_overrides=model.hf_overrides,
        runner=model.runner,
        convert=model.convert,
        pooler_config=model.pooler_config,
        page_size=cache.block_size,
        num_pages=num_pages,
        kv_cache_memory_bytes=cache.kv_cache_memory_bytes,
        gpu_memory_utilization=cache.gpu_memory_utilization,
        max_num_seqs=scheduler.max_num_seqs,
        max_num_batched_tokens=scheduler.max_num_batched_tokens,
        max_num_queued_reqs=scheduler.max_num_queued_reqs,
        target_itl_ms=scheduler.target_itl_ms,
        scheduling_policy=scheduler.scheduling_policy,
        enable_prefix_caching=cache.enable_prefix_caching,
        async_scheduling=scheduler.async_scheduling,
        enforce_eager=scheduler.enforce_eager,
        cudagraph_capture_sizes=scheduler.cudagraph_capture_sizes,
        max_cudagraph_capture_size=scheduler.max_cudagraph_capture_size,
        attention_backend=device.attention_backend,
        num_threads=device.num_threads,
        tensor_parallel_size=config.parallel.tensor_parallel_size,
        pipeline_parallel_size=config.parallel.pipeline_parallel_size,
        runtime_dir=str(directory),
        seed=model.seed or 0,
        speculative=speculative,
        kv_events=cache.kv_events_config,
        log_level=config.observability.log_level,
    )


def grammar_config(
    config: ServeConfig, files: ModelFiles, endpoints: list[str], incarnation: int
) -> GrammarConfig:
    return GrammarConfig(
        incarnation=incarnation,
        frontends=endpoints,
        model_dir=str(files.model_dir),
        hf_overrides=config.model.hf_overrides,
        tokenizer_dir=str(files.tokenizer_dir),
        compile_timeout_s=config.grammar.grammar_compile_timeout,
        compile_memory_bytes=config.grammar.grammar_compile_memory,
        log_level=config.observability.log_level,
    )


def frontend_config(
    config: ServeConfig,
    files: ModelFiles,
    *,
    frontend_id: int,
    incarnation: int,
    command_began_ns: int | None,
    listen_fd: int,
    endpoint: str,
    multiprocess_dir: str | None,
    responses_dir: str,
    cache_salt_secret: str,
) -> FrontEndConfig:
    server, observability = config.server, config.observability
    return FrontEndConfig(
        frontend_id=frontend_id,
        incarnation=incarnation,
        command_began_ns=command_began_ns,
        num_frontends=server.api_workers,
        listen_fd=listen_fd,
        endpoint=endpoint,
        multiprocess_dir=multiprocess_dir,
        response_store=config.response_store,
        responses_dir=responses_dir,
        model=files.model,
        model_dir=str(files.model_dir),
        tokenizer_dir=str(files.tokenizer_dir),
        served_model_names=files.served_names,
        chat_template=files.chat_template,
        generation_config_path=str(files.generation_config) if files.generation_config else None,
        override_generation_config=config.model.override_generation_config,
        seed=config.model.seed,
        tool_call_parser=config.parsing.tool_call_parser,
        exclude_tools_when_tool_choice_none=config.parsing.exclude_tools_when_tool_choice_none,
        reasoning_parser=config.parsing.reasoning_parser,
        api_keys=server.api_key,
        open_metrics=server.open_metrics,
        prefix_cache_scope=config.cache.prefix_cache_scope,
        cache_salt_secret=cache_salt_secret,
        allowed_origins=server.allowed_origins,
        root_path=server.root_path,
        ssl_keyfile=server.ssl_keyfile,
        ssl_certfile=server.ssl_certfile,
        limits=config.limits,
        sse_keep_alive_s=server.sse_keep_alive_interval,
        enable_request_id_headers=server.enable_request_id_headers,
        shutdown_timeout_s=config.lifecycle.shutdown_timeout,
        grammar_compile_timeout_s=config.grammar.grammar_compile_timeout,
        log_level=observability.log_level,
        log_requests=observability.enable_log_requests,
        log_stats=not observability.disable_log_stats,
    )


# ----------------------------------------------------------------------------------------------- what the user sees


def say(line: str) -> None:
    """One line of progress on stderr."""
    print(line, file=sys.stderr, flush=True)


def announce(files: ModelFiles) -> None:
    origin = "embedded, a demonstration" if files.model_dir == DEMO_DIR else str(files.model_dir)
    say(f"Penstock {__version__}: loading {files.served_names[0]} ({origin})")


def warn(parsed: Parsed) -> None:
    """Things that are allowed and probably not meant."""
    config = parsed.config
    if config.server.host in EVERY_INTERFACE and config.server.uds is None and not config.server.api_key:
        log.warning(
            "--host %s without --api-key: everyone who reaches this machine can use it", config.server.host
        )
    if config.cache.prefix_cache_scope == "tenant" and not config.server.api_key:
        log.warning(
            "--prefix-cache-scope tenant without --api-key: tenants are told apart by whatever key they send, unchecked"
        )
    if "gpu_memory_utilization" in parsed.given and not NVIDIA_DEVICE.exists():
        log.warning("--gpu-memory-utilization has no effect without an NVIDIA GPU: use --kv-cache-memory")


def seconds_since_start() -> float:
    """Seconds since this process was started by the system, the interpreter's own start included."""
    try:
        started_ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return time.process_time()
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started_ticks / os.sysconf("SC_CLK_TCK")
