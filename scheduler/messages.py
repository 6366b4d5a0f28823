"""What the processes of the family say to each other: msgspec Structs in msgpack, one tagged union per direction.

Sockets: every front end binds one ZMQ ROUTER; engines and the supervisor connect a DEALER to each of them. A
DEALER's identity is `engine:<engine_id>:<incarnation>` or `supervisor`; a restarted engine has a new incarnation,
so nothing meant for the dead one reaches it. Every message is one frame. Arrays travel as raw little-endian bytes
(`np.frombuffer`). A message that does not decode is logged and dropped by its receiver; it cannot execute anything.

Request ids are chosen by the front end, unique for its lifetime, and fit 32 bits. `time.monotonic()` is comparable
between processes of one host, so durations measured by the engine travel as seconds.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import msgspec
from msgspec import Struct

DType: TypeAlias = Literal["auto", "float32", "bfloat16", "float16"]
KVCacheDType: TypeAlias = Literal["auto", "float32", "bfloat16", "float16", "fp8", "fp8_e4m3"]
AttentionBackendName: TypeAlias = Literal["auto", "torch", "cpu", "flashinfer"]
QuantizationScheme: TypeAlias = Literal["int8", "int4"]
LoadFormat: TypeAlias = Literal["auto", "safetensors", "dummy"]
Device: TypeAlias = Literal["auto", "cpu", "cuda"]
Policy: TypeAlias = Literal["fcfs", "lpm", "wspt"]
Runner: TypeAlias = Literal["auto", "generate", "pooling"]
Convert: TypeAlias = Literal["auto", "none", "embed"]
Task: TypeAlias = Literal["generate", "embed", "classify"]
FinishReason: TypeAlias = Literal["stop", "length", "abort", "error", "repetition"]
EngineState: TypeAlias = Literal["loading", "ready", "draining", "restarting", "failed"]


# ------------------------------------------------------------------------------------------- start-up configuration


class KVEventsConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """`--kv-events-config`: the ZMQ PUB socket of KV events, key for key as vLLM spells it (loopback by default)."""

    enable_kv_cache_events: bool = True
    publisher: Literal["zmq", "null"] = "zmq"
    endpoint: str = "tcp://127.0.0.1:5557"
    replay_endpoint: str | None = None
    buffer_steps: int = 10_000
    hwm: int = 100_000
    max_queue_size: int = 100_000
    topic: str = ""


class PoolerConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """`--pooler-config`: how embeddings are made where the checkpoint does not say, or says otherwise."""

    pooling_type: Literal["CLS", "LAST", "MEAN"] | None = None
    normalize: bool | None = None


SpeculativeMethod: TypeAlias = Literal["ngram", "eagle", "eagle3", "mtp", "draft_model"]


class SpeculativeConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How tokens are drafted. `model` is the drafter's checkpoint, where it has one of its own.

    `num_speculative_tokens` is the longest draft; with `adaptive` each is as long as pays. For `ngram`: a context has
    `prompt_lookup_min` to `prompt_lookup_max` tokens (None: any number) of the last `window` ones of a text, and
    `shared_pool` tokens of other requests' recent outputs are drafted from as well (0 = none). `num_nextn_predict_layers`
    is what the user said of the checkpoint's own (None: nothing).
    """

    method: SpeculativeMethod
    num_speculative_tokens: int
    model: str | None = None
    prompt_lookup_min: int = 3
    prompt_lookup_max: int | None = None
    window: int = 65536
    shared_pool: int = 0
    num_nextn_predict_layers: int | None = None
    adaptive: bool = True


class EngineConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Everything an engine process is told at its start; the supervisor writes it as JSON, the engine reads it.

    `None` means "choose for me"; the engine reports what it chose in `EngineInfo`.
    """

    engine_id: int = 0
    incarnation: int = 0  # time.time_ns() of this start of its process; 0 = the engine takes the time
    frontends: list[str] = []  # ZMQ endpoints of the front ends, index = front end id
    model_dir: str
    tokenizer_dir: str | None = None  # of the tokenizer.json without which no grammar can be used
    grammar_cache_bytes: int = 256 << 20
    load_format: LoadFormat = "auto"
    dtype: DType = "auto"
    quantization: QuantizationScheme | None = None
    device: Device = "auto"
    kv_cache_dtype: KVCacheDType = "auto"
    max_model_len: int | None = None
    hf_overrides: dict[str, Any] = {}
    runner: Runner = "auto"
    convert: Convert = "auto"
    pooler_config: PoolerConfig | None = None
    page_size: int = 16
    num_pages: int | None = None  # overrides the memory budget
    kv_cache_memory_bytes: int | None = None
    gpu_memory_utilization: float = 0.92
    max_num_seqs: int = 256
    max_num_batched_tokens: int | None = None
    max_num_queued_reqs: int | None = None
    target_itl_ms: float | None = None  # 0 = off
    scheduling_policy: Policy = "fcfs"
    enable_prefix_caching: bool = True
    async_scheduling: bool = True  # one step in flight
    enforce_eager: bool = False  # no forward pass from a recording
    cudagraph_capture_sizes: list[
        int
    ] = []  # batch sizes of decodes to record at start; none = chosen for the device
    max_cudagraph_capture_size: int | None = None
    attention_backend: AttentionBackendName = "auto"
    num_threads: int | None = None
    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    runtime_dir: str | None = None  # private to the family; None = the temporary directory
    seed: int = 0
    speculative: SpeculativeConfig | None = None
    kv_events: KVEventsConfig | None = None
    log_level: str = "info"


class PoolingInfo(Struct, frozen=True, kw_only=True):
    """What a model makes of whole prompts: the size of its embeddings, or the labels of its classes, in order.

    `matryoshka_dimensions` are the shorter sizes an embedding may be cut to; `any_dimension` allows every one.
    """

    embedding_size: int = 0
    any_dimension: bool = False
    matryoshka_dimensions: list[int] = []
    labels: list[str] = []


class EngineInfo(Struct, frozen=True, kw_only=True):
    """What a loaded engine is; sent inside every `EngineStatus` once it is ready.

    `num_pages` is 0 where nothing is cached (encoders). `pooling` is there if `tasks` has more than `generate`.
    """

    max_model_len: int
    vocab_size: int
    page_size: int
    num_pages: int
    max_num_seqs: int
    max_num_batched_tokens: int
    max_num_queued_reqs: int
    dtype: str
    kv_cache_dtype: str
    device: str
    attention_backend: str
    weight_bytes: int
    kv_cache_bytes: int
    startup_seconds: dict[str, float]  # phase -> seconds
    memory_bytes: dict[
        str, int
    ] = {}  # total, weights, activations, graphs; where a device has memory of its own
    quantization: QuantizationScheme | None = None
    num_speculative_tokens: int = 0  # longest draft; 0 = nothing is drafted
    tasks: tuple[Task, ...] = ("generate",)
    pooling: PoolingInfo | None = None


# ------------------------------------------------------------------------------------------- front end -> engine


class GrammarSpec(Struct, frozen=True, omit_defaults=True):
    """What the output text of one sequence must look like, in a language that xgrammar compiles.

    `text` is a JSON Schema, a regular expression, a grammar (EBNF or Lark) or a structural tag (JSON), as `kind` says;
    empty for `json`, which takes any JSON object. It has passed the grammar process: compiling it ends, in bounds.
    """

    kind: Literal["json", "json_schema", "regex", "ebnf", "lark", "structural_tag"]
    text: str = ""
    any_whitespace: bool = True  # JSON: bounded white space between elements, or the one canonical form


class RepetitionDetection(Struct, frozen=True):
    """End with reason `repetition` when the output ends in `min_count` copies of a pattern.

    Patterns of `min_pattern_size` .. `max_pattern_size` tokens are looked for.
    """

    max_pattern_size: int
    min_pattern_size: int
    min_count: int


class SamplingParams(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """How one sequence is continued. All fields are resolved and validated by the front end.

    `max_tokens` and `min_tokens` count output tokens since the prompt (resumed ones included). `seed` is always set;
    draws depend on (seed, position) alone. `stop_token_ids` holds the EOS ids too, unless EOS is ignored; none of
    them may be produced before `min_tokens` tokens were. `top_k` 0 means off. `logprobs` is the number of top
    alternatives per output token (-1 = off, 0 = the chosen token alone); `prompt_logprobs` likewise for the prompt.
    Penalties: presence and frequency look at output tokens, repetition at prompt and output. Where
    `allowed_token_ids` is not empty nothing else may come; none of the token sequences in `bad_words` may be
    completed. With a `grammar` only what it allows may come; tokens of a resumed output have been accepted by it.
    """

    max_tokens: int
    min_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int = 0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] = {}
    stop_token_ids: list[int] = []
    logprobs: int = -1
    prompt_logprobs: int = -1
    allowed_token_ids: list[int] = []
    bad_words: list[list[int]] = []
    repetition_detection: RepetitionDetection | None = None
    grammar: GrammarSpec | None = None


class PoolingParams(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """What is wanted of one prompt instead of a continuation; the answer is one `Pooled`.

    `embed`: a vector, cut to its first `dimensions` components (0 = all), then brought to unit length, or as
    `normalize` says (None = as the checkpoint does). `classify`: a probability for each label, or with `activation`
    false the numbers before the sigmoid or softmax. `token_types` (uint8, one a token; empty = all 0) tell an encoder
    the parts of a pair.
    """

    task: Literal["embed", "classify"]
    token_types: bytes = b""
    dimensions: int = 0
    normalize: bool | None = None
    activation: bool = True


class Hello(Struct, frozen=True, tag="hello"):
    """A front end greets an engine it did not know; the engine aborts what older incarnations of it had sent."""

    frontend_id: int
    incarnation: int


class Submit(Struct, frozen=True, tag="submit", kw_only=True):
    """One sequence to continue. `tokens` (int32) is the prompt followed by output already produced, if resumed.

    With `pooling` it is read, not continued: `sampling` then has max_tokens 0. `prediction` (int32) is what the client
    expects the output to be, to draft from.
    """

    request_id: int
    tokens: bytes
    num_prompt_tokens: int
    sampling: SamplingParams
    pooling: PoolingParams | None = None
    priority: int = 0  # lower runs first
    cache_salt: str = ""  # prefix-cache namespace
    prediction: bytes = b""


class Abort(Struct, frozen=True, tag="abort"):
    """Stop these requests (uint32 ids); nothing more is sent for them."""

    request_ids: bytes


class Control(Struct, frozen=True, tag="control"):
    """An administrative order. `flush_cache` drops every cached page nobody holds; answered by `ControlReply`."""

    control_id: int
    op: Literal["flush_cache"]


ToEngine: TypeAlias = Hello | Submit | Abort | Control


# ------------------------------------------------------------------------------------------- engine -> front end


class FirstToken(Struct, frozen=True, array_like=True):
    """Sent with a request's first new token. Times in seconds; `cached_tokens` came from the prefix cache."""

    request_id: int
    cached_tokens: int
    queue_s: float
    prefill_s: float


class Finish(Struct, frozen=True, array_like=True):
    """The request is over after the tokens of this message. `num_preemptions` over its life."""

    request_id: int
    reason: FinishReason
    num_preemptions: int


class TokenLogprobs(Struct, frozen=True, array_like=True):
    """Log probabilities (natural log, of the raw model distribution) at consecutive positions of one request.

    `token_ids` int32 (n,), `logprobs` float32 (n,), `ranks` int32 (n,) 1-based; `top_ids` int32 (n, k) and
    `top_logprobs` float32 (n, k), best first. For a prompt: positions 1 .. num_prompt_tokens-1.
    """

    request_id: int
    is_prompt: bool
    token_ids: bytes
    logprobs: bytes
    ranks: bytes
    k: int
    top_ids: bytes
    top_logprobs: bytes


class Pooled(Struct, frozen=True, array_like=True):
    """What a pooling request asked for, float32 (n,); its `Finish` is in the same message."""

    request_id: int
    values: bytes


class Predicted(Struct, frozen=True, array_like=True):
    """Of a request with a prediction, since it was submitted: output tokens that were as predicted, and predicted
    tokens that the model looked at and did not say."""

    request_id: int
    accepted: int
    rejected: int


class StepOutput(Struct, frozen=True, tag="step", kw_only=True, omit_defaults=True):
    """What one step produced for all requests of one front end.

    `request_ids` uint32 (r,), `counts` uint16 (r,) new tokens of each, `tokens` int32 (sum counts,). `drafted` and
    `accepted`, uint16 (r,), are how many drafts each had verified and how many were right; empty if nobody had any.
    """

    request_ids: bytes = b""
    counts: bytes = b""
    tokens: bytes = b""
    drafted: bytes = b""
    accepted: bytes = b""
    first: list[FirstToken] = []
    finished: list[Finish] = []
    logprobs: list[TokenLogprobs] = []
    pooled: list[Pooled] = []
    predicted: list[Predicted] = []


class Rejected(Struct, frozen=True, tag="rejected"):
    """The request was not taken. `queue_full`: come back in `retry_after_s`; `invalid`: it can never run."""

    request_id: int
    code: Literal["queue_full", "invalid", "draining"]
    message: str
    retry_after_s: float = 0.0
    num_waiting: int = 0


class EngineLoad(Struct, frozen=True, kw_only=True):
    """Gauges now and counters since the engine started; the source of /metrics and /v1/loads.

    Tokens unless the name says otherwise. `kv_usage` is the share of pages held by live requests (0..1);
    `cached_pages` are evictable. Mixed steps have decodes and prefill; the late ones took longer than the target;
    `mixed_expected_seconds` is what they were predicted to take. Verify steps have drafts.
    `iteration_tokens` counts steps per bucket of `ITERATION_TOKENS_BUCKETS` (+inf last).
    """

    num_running: int = 0
    num_waiting: int = 0
    kv_usage: float = 0.0
    held_pages: int = 0
    cached_pages: int = 0
    free_pages: int = 0
    in_flight_tokens: int = 0  # queued prompt + running context
    waiting_tokens: int = 0
    prompt_tokens: int = 0
    generation_tokens: int = 0
    cached_prompt_tokens: int = 0
    prefix_cache_queries: int = 0
    prefix_cache_hits: int = 0
    evicted_pages: int = 0
    num_preemptions: int = 0
    mixed_steps: int = 0
    mixed_steps_late: int = 0
    mixed_prefill_tokens: int = 0
    mixed_step_seconds: float = 0.0
    mixed_expected_seconds: float = 0.0
    num_drafts: int = 0  # rows that had tokens drafted for them
    num_draft_tokens: int = 0
    num_accepted_tokens: int = 0
    accepted_at: list[int] = []  # [i]: rows whose draft was right up to its token i, that one included
    draft_seconds: float = 0.0  # in which drafts were looked for
    verify_steps: int = 0
    verify_step_seconds: float = 0.0  # device time of those steps
    draft_length: float = 0.0  # now: tokens drafted for a row that may have some, none counted too
    num_steps: int = 0
    step_seconds: float = 0.0  # device time summed over steps
    schedule_seconds: float = 0.0  # plan + commit, summed
    iteration_tokens: list[int] = []
    iteration_tokens_sum: int = 0
    gpu_usage: float | None = None  # share of the time in which the GPU was busy, 0..1; None without a GPU
    gpu_memory_bytes: int | None = None  # taken, by whomever


ITERATION_TOKENS_BUCKETS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)


class EngineStatus(Struct, frozen=True, tag="status", kw_only=True):
    """Sent once a second, and at once when the state changes. The first one seen of an incarnation is its greeting."""

    engine_id: int
    incarnation: int
    state: EngineState
    detail: str = ""  # e.g. "loading weights 40%", or why it failed
    info: EngineInfo | None = None
    load: EngineLoad = EngineLoad()


class ControlReply(Struct, frozen=True, tag="control_reply"):
    control_id: int
    ok: bool
    message: str = ""


class FamilyStatus(Struct, frozen=True, tag="family"):
    """From the supervisor: an engine process died and is `restarting`, or is given up (`failed`) with the reason."""

    engine_id: int
    incarnation: int
    state: Literal["restarting", "failed"]
    reason: str


class Serving(Struct, frozen=True, tag="serving"):
    """From a front end to the supervisor: HTTP listens and the engine answers."""

    frontend_id: int
    startup_seconds: dict[str, float]


ToFrontEnd: TypeAlias = StepOutput | Rejected | EngineStatus | ControlReply | FamilyStatus
ToSupervisor: TypeAlias = Serving

encoder = msgspec.msgpack.Encoder()
decode_to_engine = msgspec.msgpack.Decoder(ToEngine).decode
decode_to_frontend = msgspec.msgpack.Decoder(ToFrontEnd).decode
decode_to_supervisor = msgspec.msgpack.Decoder(ToSupervisor).decode


def encode(message: ToEngine | ToFrontEnd | ToSupervisor) -> bytes:
    """Msgpack bytes of one message, tag included."""
    return encoder.encode(message)
