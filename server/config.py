"""What can be configured: the one tree of options.

Every option of `penstock serve` is a field here: its name is the flag and the YAML key, its annotation the type, the
range and the help. Command line, file, errors and the reference page derive from it (`options.py`). An option is
listed only if it does something.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from msgspec import Meta, Struct

from ..scheduler.messages import (
    AttentionBackendName,
    Convert,
    Device,
    DType,
    KVCacheDType,
    KVEventsConfig,
    LoadFormat,
    Policy,
    PoolerConfig,
    QuantizationScheme,
    Runner,
)
from .limits import LimitOptions
from .options.values import Option, count, integer, size
from .parsing.options import ParsingOptions
from .speculative_options import SpeculativeOptions

DEFAULT_PORT = 8000
CacheScope: TypeAlias = Literal["global", "tenant", "request"]
Positive: TypeAlias = Annotated[int, Meta(ge=1)]
DTYPE_SPELLINGS = {
    "half": "float16",
    "fp16": "float16",
    "bf16": "bfloat16",
    "float": "float32",
    "fp32": "float32",
}


class Group(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A group of options; the first docstring line of a subclass is its heading in the help."""


class ModelOptions(Group, frozen=True):
    """Model"""

    model: Annotated[
        str | None,
        Option(
            "What to serve: a local directory or a Hugging Face id, also as the first positional argument. "
            "Without it, the embedded demonstration model.",
            aliases=("--model-path",),
        ),
    ] = None
    served_model_name: Annotated[
        list[str],
        Option(
            "Names under which the API knows the model; the first one is shown in replies. "
            "Default: the model as it was given, `penstock-demo` for the embedded one.",
            metavar="NAME",
        ),
    ] = []
    tokenizer: Annotated[
        str | None,
        Option(
            "A local directory or Hugging Face id to take the tokenizer from, if not from the model.",
            aliases=("--tokenizer-path",),
        ),
    ] = None
    revision: Annotated[
        str | None, Option("Branch, tag or commit of the model on the Hugging Face hub. Default: main.")
    ] = None
    hf_token: Annotated[
        str | None,
        Option("Access token for the Hugging Face hub. Default: what `hf auth login` or HF_TOKEN left."),
    ] = None
    download_dir: Annotated[
        str | None,
        Option("Where downloaded models are kept. Default: the Hugging Face cache.", metavar="DIR"),
    ] = None
    load_format: Annotated[
        LoadFormat,
        Option("Where weights come from; `dummy` makes random ones, for benchmarks."),
    ] = "auto"
    dtype: Annotated[
        DType,
        Option(
            "Number format of weights and activations. `auto` keeps the checkpoint's.",
            spellings=DTYPE_SPELLINGS,
        ),
    ] = "auto"
    quantization: Annotated[
        QuantizationScheme | None,
        Option(
            "Weights of linear layers are quantised while they are loaded, on a CPU: `int8` (8.1 bits a weight) hardly "
            "changes results; `int4` (4.4 bits) is faster still and does, its output head keeps 8 bits. `none`: as the "
            "checkpoint has them.",
            aliases=("-q",),
            spellings={"none": None},
        ),
    ] = None
    max_model_len: Annotated[
        Positive | None,
        Option(
            "Longest context in tokens, prompt and output together; 32k = 32,000, 32K = 32,768. "
            "`auto`: what the model allows and memory holds.",
            aliases=("--context-length",),
            read=count,
            spellings={"auto": None, "-1": None},
        ),
    ] = None
    hf_overrides: Annotated[
        dict[str, Any],
        Option(
            "JSON object whose keys replace those of the model's config.json.",
            aliases=("--json-model-override-args",),
            metavar="JSON",
        ),
    ] = {}
    generation_config: Annotated[
        str,
        Option(
            "Where default sampling parameters come from: `auto` = the model's generation_config.json, "
            "`none` = neutral ones, or a directory or file to read instead.",
            aliases=("--sampling-defaults",),
            spellings={"vllm": "none", "openai": "none", "model": "auto"},
        ),
    ] = "auto"
    override_generation_config: Annotated[
        dict[str, Any],
        Option(
            "JSON object of default sampling parameters that win over --generation-config.",
            aliases=("--preferred-sampling-params",),
            metavar="JSON",
        ),
    ] = {}
    runner: Annotated[
        Runner,
        Option(
            "What the model is run for: `generate` = continue prompts; `pooling` = read them, for embeddings, scores "
            "and classes. `auto`: what its architecture and its sentence-transformers files say; a model that "
            "generates then answers /v1/embeddings as well.",
            aliases=("--task",),
            spellings={"embed": "pooling", "embedding": "pooling", "classify": "pooling", "score": "pooling"},
        ),
    ] = "auto"
    convert: Annotated[
        Convert,
        Option(
            "`embed` leaves out the model's head and makes embeddings of what lies before it; `none` keeps a model that "
            "generates from embedding too."
        ),
    ] = "auto"
    pooler_config: Annotated[
        PoolerConfig | None,
        Option(
            "How embeddings are made, if not as the checkpoint says: JSON object with `pooling_type` (CLS, LAST or "
            "MEAN) and `normalize` (true or false).",
            aliases=("--override-pooler-config",),
            metavar="JSON",
        ),
    ] = None
    chat_template: Annotated[
        str | None,
        Option(
            "A Jinja chat template, as a file or as text, in place of the model's own.", metavar="FILE|TEXT"
        ),
    ] = None
    seed: Annotated[
        Annotated[int, Meta(ge=0, le=2**63 - 1)] | None,
        Option(
            "Makes a run repeatable: seeds dummy weights and the seeds given to requests that bring none. "
            "Default: requests without a seed get a fresh one.",
            aliases=("--random-seed",),
        ),
    ] = None


class ServerOptions(Group, frozen=True):
    """HTTP server"""

    host: Annotated[
        str,
        Option(
            "Address to listen on; 0.0.0.0 or :: for every interface (then also set --api-key).",
            variable="PENSTOCK_HOST",
        ),
    ] = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535), Option("Port to listen on; 0 takes a free one.")] = (
        DEFAULT_PORT
    )
    uds: Annotated[
        str | None,
        Option("Listen on a Unix domain socket at this path instead of a TCP port.", metavar="PATH"),
    ] = None
    api_key: Annotated[
        list[str],
        Option(
            "Keys of which a client must send one, as `Authorization: Bearer KEY` or `x-api-key: KEY`; may be repeated. "
            "/health and /ready stay open.",
            metavar="KEY",
            variable="PENSTOCK_API_KEY",
        ),
    ] = []
    open_metrics: Annotated[bool, Option("/metrics needs no key either.")] = False
    api_workers: Annotated[
        int,
        Meta(ge=1, le=256),
        Option(
            "Front-end processes that share the port: HTTP, templates, tokenising, streaming.",
            aliases=("--api-server-count", "--tokenizer-worker-num"),
        ),
    ] = 1
    allowed_origins: Annotated[
        list[str],
        Option(
            "Web origins whose pages may call the API (CORS), as words or a JSON list; `*` for all.",
            metavar="ORIGIN",
        ),
    ] = []
    root_path: Annotated[
        str,
        Option(
            "Path prefix under which a reverse proxy shows this server.",
            aliases=("--fastapi-root-path",),
            metavar="PATH",
        ),
    ] = ""
    ssl_keyfile: Annotated[
        str | None, Option("Private key (PEM) for HTTPS; needs --ssl-certfile.", metavar="FILE")
    ] = None
    ssl_certfile: Annotated[
        str | None, Option("Certificate chain (PEM) for HTTPS; needs --ssl-keyfile.", metavar="FILE")
    ] = None
    sse_keep_alive_interval: Annotated[
        float,
        Meta(ge=0),
        Option(
            "Seconds of silence after which a stream gets an SSE comment, so that proxies keep it; 0 = never."
        ),
    ] = 15.0
    enable_request_id_headers: Annotated[
        bool, Option("Answer with an X-Request-Id header, the client's own if it sent one.")
    ] = True


class SchedulerOptions(Group, frozen=True):
    """Scheduling"""

    max_num_seqs: Annotated[
        int,
        Meta(ge=1, le=65536),
        Option("Most requests that run at once; others wait.", aliases=("--max-running-requests",)),
    ] = 256
    max_num_batched_tokens: Annotated[
        Positive | None,
        Option(
            "Most tokens in one step, decodes and chunks of prefill together. Default: chosen for the device.",
            aliases=("--chunked-prefill-size", "--max-prefill-tokens"),
            read=count,
        ),
    ] = None
    target_itl_ms: Annotated[
        Annotated[float, Meta(ge=0, le=60_000)] | None,
        Option(
            "Milliseconds that a step should take at most while anything decodes: prompts are computed in chunks that are "
            "predicted to fit, so that running streams do not stall; but a step may always take twice as long as its "
            "decodes alone. Low targets cost throughput. 0 = as many tokens as a step holds. Default: 250 on a CPU, 50 "
            "on a GPU.",
            metavar="MS",
        ),
    ] = None
    max_num_queued_reqs: Annotated[
        Positive | None,
        Option(
            "Most requests that wait; further ones get a 429 with Retry-After. Default: chosen from --max-num-seqs.",
            aliases=("--max-queued-requests",),
        ),
    ] = None
    scheduling_policy: Annotated[
        Policy,
        Option(
            "Order of waiting requests: `fcfs` = by priority, then arrival; `lpm` = longest cached prefix first; "
            "`wspt` = weighted shortest processing time.",
            aliases=("--schedule-policy",),
            spellings={"priority": "fcfs"},
        ),
    ] = "fcfs"
    async_scheduling: Annotated[
        bool,
        Option(
            "Plan the next step while the device runs this one.", negations=("--disable-overlap-schedule",)
        ),
    ] = True
    enforce_eager: Annotated[
        bool,
        Option(
            "Run every forward pass operation by operation, none from a recording. Slower, for comparison.",
            aliases=("--disable-cuda-graph",),
        ),
    ] = False
    cudagraph_capture_sizes: Annotated[
        list[Annotated[int, Meta(ge=1, le=65536)]],
        Option(
            "Numbers of decoding requests for which a forward pass is recorded at start; batches in between are filled "
            "up. Default on CUDA: 1, 2, 4, multiples of 8, then of 16; a CPU records sizes as they come.",
            aliases=("--cuda-graph-sizes", "--cuda-graph-bs"),
            read=integer,
            metavar="SIZE",
        ),
    ] = []
    max_cudagraph_capture_size: Annotated[
        Positive | None,
        Option(
            "The largest of those sizes where they are chosen for you. Default: --max-num-seqs, at most 512.",
            aliases=("--cuda-graph-max-bs",),
        ),
    ] = None


class CacheOptions(Group, frozen=True):
    """KV cache"""

    block_size: Annotated[
        int,
        Meta(ge=1, le=1024),
        Option("Tokens per page, the unit of allocation and prefix caching.", aliases=("--page-size",)),
    ] = 16
    kv_cache_dtype: Annotated[
        KVCacheDType,
        Option(
            "How keys and values are stored. `auto` = in the model's dtype; `fp8` (`fp8_e4m3`) = in 8 bits, half the "
            "memory and some accuracy, on GPUs or with `--attention-backend torch`."
        ),
    ] = "auto"
    kv_cache_memory_bytes: Annotated[
        Positive | None,
        Option(
            "Memory for the KV cache, such as 4GiB, in each process of several. Default: chosen from what is free.",
            aliases=("--kv-cache-memory",),
            read=size,
            metavar="SIZE",
        ),
    ] = None
    num_gpu_blocks_override: Annotated[
        Positive | None,
        Option("Number of pages of the KV cache, in place of a memory budget.", aliases=("--num-pages",)),
    ] = None
    max_total_tokens: Annotated[
        Positive | None,
        Option("Size of the KV cache in tokens: --num-gpu-blocks-override times --block-size.", read=count),
    ] = None
    gpu_memory_utilization: Annotated[
        float,
        Meta(gt=0, le=1),
        Option(
            "CUDA only: share of the GPU's memory that weights and KV cache may take.",
            aliases=("--mem-fraction-static",),
        ),
    ] = 0.92
    enable_prefix_caching: Annotated[
        bool,
        Option("Reuse the KV cache of shared prompt prefixes.", negations=("--disable-radix-cache",)),
    ] = True
    prefix_cache_scope: Annotated[
        CacheScope,
        Option(
            "Who shares cached prefixes: `global` = everybody, `tenant` = requests with the same API key, "
            "`request` = nobody. Sharing shows in the time to the first token; `cache_salt` divides further."
        ),
    ] = "global"
    kv_events_config: Annotated[
        KVEventsConfig | None,
        Option(
            "JSON object that turns on KV events on a ZMQ PUB socket, with vLLM's keys: enable_kv_cache_events, "
            "publisher, endpoint, replay_endpoint, buffer_steps, hwm, max_queue_size, topic.",
            metavar="JSON",
        ),
    ] = None


class ResponseStoreOptions(Group, frozen=True):
    """Stored responses"""

    responses_store_size: Annotated[
        int,
        Meta(ge=0),
        Option(
            "Disk space (in the temporary directory) for what /v1/responses stores; the least recently used go "
            "first. 0 = store nothing.",
            read=size,
            metavar="SIZE",
        ),
    ] = 256 << 20
    responses_store_entries: Annotated[
        int, Meta(ge=0), Option("Most responses that are stored; 0 = store nothing.")
    ] = 10_000
    responses_store_ttl: Annotated[
        float,
        Meta(gt=0),
        Option("Seconds after its last use when a stored response is forgotten.", metavar="SECONDS"),
    ] = 86_400.0


class GrammarOptions(Group, frozen=True):
    """Structured outputs"""

    grammar_compile_timeout: Annotated[
        float,
        Meta(gt=0),
        Option(
            "Seconds that compiling a request's schema, regular expression or grammar may take, beside everything "
            "else; longer ones get a 400.",
            metavar="SECONDS",
        ),
    ] = 10.0
    grammar_compile_memory: Annotated[
        int,
        Meta(ge=16 << 20),
        Option("Memory that compiling it may take; larger ones get a 400.", read=size, metavar="SIZE"),
    ] = 1 << 30
    grammar_cache_memory: Annotated[
        int,
        Meta(ge=0),
        Option(
            "Compiled grammars that the engine keeps for further requests, the one used last the longest.",
            read=size,
            metavar="SIZE",
        ),
    ] = 256 << 20


class DeviceOptions(Group, frozen=True):
    """Device"""

    device: Annotated[Device, Option("Where the model runs. `auto` takes a GPU if there is one.")] = "auto"
    attention_backend: Annotated[
        AttentionBackendName,
        Option(
            "Kernels, of attention and everything else: `flashinfer` = for NVIDIA GPUs, `cpu` = compiled for this CPU, "
            "`torch` = slow and obviously right."
        ),
    ] = "auto"
    num_threads: Annotated[
        Annotated[int, Meta(ge=1, le=1024)] | None,
        Option("CPU threads of the engine, of each process of several. Default: chosen from the cores."),
    ] = None


class ParallelOptions(Group, frozen=True):
    """Parallelism"""

    tensor_parallel_size: Annotated[
        int,
        Meta(ge=1, le=1024),
        Option(
            "Processes that share every layer of the model, each on a GPU of its own (or all on the CPU): attention heads, "
            "KV heads and the MLP must divide by it.",
            aliases=("--tp-size", "-tp"),
        ),
    ] = 1
    pipeline_parallel_size: Annotated[
        int,
        Meta(ge=1, le=1024),
        Option(
            "Stages of consecutive layers, each run by --tensor-parallel-size processes; as many steps are in flight.",
            aliases=("--pp-size", "-pp"),
        ),
    ] = 1


class ObservabilityOptions(Group, frozen=True):
    """Logging"""

    log_level: Annotated[
        Literal["debug", "info", "warning", "error"],
        Option("Least severe message to print."),
    ] = "info"
    enable_log_requests: Annotated[
        bool, Option("Print one line per finished request.", aliases=("--log-requests",))
    ] = False
    disable_log_stats: Annotated[
        bool,
        Option("Do not print the line of load and throughput that appears every 10 s while requests run."),
    ] = False


class LifecycleOptions(Group, frozen=True):
    """Life cycle"""

    shutdown_timeout: Annotated[
        float,
        Meta(ge=0),
        Option("Seconds that running requests get to finish after SIGTERM or Ctrl-C.", metavar="SECONDS"),
    ] = 30.0
    engine_restart_limit: Annotated[
        int,
        Meta(ge=0),
        Option("How often a dead engine is restarted within --engine-restart-window before it is given up."),
    ] = 5
    engine_restart_window: Annotated[
        float,
        Meta(gt=0),
        Option("Seconds after which a restart of the engine no longer counts.", metavar="SECONDS"),
    ] = 300.0


class ServeConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Everything `penstock serve` can be told."""

    model: ModelOptions = ModelOptions()
    server: ServerOptions = ServerOptions()
    limits: LimitOptions = LimitOptions()
    scheduler: SchedulerOptions = SchedulerOptions()
    cache: CacheOptions = CacheOptions()
    speculative: SpeculativeOptions = SpeculativeOptions()
    parsing: ParsingOptions = ParsingOptions()
    response_store: ResponseStoreOptions = ResponseStoreOptions()
    grammar: GrammarOptions = GrammarOptions()
    device: DeviceOptions = DeviceOptions()
    parallel: ParallelOptions = ParallelOptions()
    observability: ObservabilityOptions = ObservabilityOptions()
    lifecycle: LifecycleOptions = LifecycleOptions()
