"""What is counted in the front ends: every counter, gauge and histogram with its name, and the cheap ways to feed them.

Names follow vLLM's (`vllm:` prefix), so that existing dashboards and routers read them, and SGLang's (`sglang:`)
where vLLM counts nothing; names without prefix are those of the BIS contract. What only the engine knows comes from
its status, in `exposition.py`.
"""

from __future__ import annotations

from bisect import bisect_left
from pathlib import Path
from typing import NamedTuple, get_args

from ...scheduler.messages import FinishReason
from .cells import Cells

# 1-2-5 series for token counts; latencies as vLLM has them, inter-token from 0.5 ms.
TOKENS = tuple(float(mantissa * 10**exponent) for exponent in range(6) for mantissa in (1, 2, 5))
LATENCY = (*(0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680),)
TTFT = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80),
    *(160, 640, 2560),
)
ITL = (
    *(0.0005, 0.001, 0.0015, 0.002, 0.003, 0.004, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.025, 0.05, 0.075),
    *(0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80),
)
RATE = (1, 2, 5, 10, 20, 30, 40, 50, 75, 100, 150, 200, 300, 400, 500, 750, 1000, 2000, 5000)
COMPILE = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 240)
LAG = (0.001, 0.002, 0.003, 0.004, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
CHOICES = (1, 2, 5, 10, 20, 50, 100)
MAX_PENDING_GAPS = 4096


class Counter(NamedTuple):
    """Only grows. With `label`, one cell for each of `values`."""

    name: str
    help: str
    label: str = ""
    values: tuple[str, ...] = ("",)


class Gauge(NamedTuple):
    """Summed over the front ends; zero again when one restarts."""

    name: str
    help: str


class Histogram(NamedTuple):
    name: str
    help: str
    buckets: tuple[float, ...]


COUNTERS = (
    Counter("vllm:prompt_tokens", "Prompt tokens of requests whose output began."),
    Counter("vllm:prompt_tokens_cached", "Prompt tokens that came from the prefix cache."),
    Counter("vllm:generation_tokens", "Output tokens."),
    Counter(
        "vllm:request_success",
        "Sequences that ended, by finish reason.",
        "finished_reason",
        get_args(FinishReason),
    ),
    Counter(
        "vllm:admission_rejections",
        "Sequences not served, by reason.",
        "reason",
        ("queue_full", "invalid", "draining", "engine_failed", "internal", "shutdown", "loading"),
    ),
    Counter("penstock:client_disconnects", "Requests whose client left before the end."),
    Counter("penstock:aborted_sequences", "Sequences stopped because their client left."),
    Counter("penstock:resumed_sequences", "Sequences given to an engine again after theirs died."),
    Counter("sglang:num_grammar", "Requests whose output is constrained by a grammar."),
    Counter("sglang:num_grammar_cache_hit", "Grammars that did not have to be compiled to be checked."),
    Counter("sglang:num_grammar_timeout", "Requests refused because their grammar took too long to compile."),
    Counter(
        "sglang:num_grammar_aborted",
        "Requests refused because of their grammar for another reason, or whose client left before the verdict.",
    ),
    Counter(
        "penstock:pooled_prompts",
        "Prompts that were read, not continued, by what was asked of them.",
        "task",
        ("embed", "classify"),
    ),
    Counter("input_tokens", "Prompt tokens."),
    Counter("output_tokens", "Output tokens."),
)
GAUGES = (
    Gauge("concurrent_requests", "Generation requests in progress over HTTP."),
    Gauge("sglang:num_grammar_queue_reqs", "Requests that wait for their grammar to be checked."),
)
HISTOGRAMS = (
    Histogram("vllm:time_to_first_token_seconds", "Arrival to first token.", TTFT),
    Histogram("vllm:inter_token_latency_seconds", "Time between consecutive outputs of a sequence.", ITL),
    Histogram("vllm:request_time_per_output_token_seconds", "Mean time per token after the first.", ITL),
    Histogram("vllm:e2e_request_latency_seconds", "Arrival to end.", LATENCY),
    Histogram("vllm:request_queue_time_seconds", "Time spent waiting to be scheduled.", LATENCY),
    Histogram("vllm:request_inference_time_seconds", "Scheduled to end.", LATENCY),
    Histogram("vllm:request_prefill_time_seconds", "Scheduled to first token.", LATENCY),
    Histogram("vllm:request_decode_time_seconds", "First token to last.", LATENCY),
    Histogram("vllm:request_prompt_tokens", "Prompt tokens of a sequence.", TOKENS),
    Histogram("vllm:request_generation_tokens", "Output tokens of a sequence.", TOKENS),
    Histogram("vllm:request_params_n", "Choices asked for.", CHOICES),
    Histogram("vllm:request_params_max_tokens", "max_tokens of a request.", TOKENS),
    Histogram("penstock:event_loop_lag_seconds", "How late the event loop runs what is due.", LAG),
    Histogram("sglang:grammar_compilation_time_seconds", "Time to compile a grammar, per check.", COMPILE),
    Histogram("input_tokens_per_request", "Prompt tokens of a sequence.", TOKENS),
    Histogram("output_tokens_per_request", "Output tokens of a sequence.", TOKENS),
    Histogram("tps_per_request", "Output tokens per second of a sequence, after its first token.", RATE),
)


def layout() -> tuple[dict[tuple[str, str], int], int]:
    """(name, label value) -> first cell, and the number of cells. A histogram has its buckets, +inf and the sum."""
    cells: dict[tuple[str, str], int] = {}
    size = 0
    for counter in COUNTERS:
        for value in counter.values:
            cells[counter.name, value] = size
            size += 1
    for gauge in GAUGES:
        cells[gauge.name, ""] = size
        size += 1
    for histogram in HISTOGRAMS:
        cells[histogram.name, ""] = size
        size += len(histogram.buckets) + 2
    return cells, size


class Metrics:
    """This front end's numbers. `token_gaps` takes seconds between outputs: appending is all a token costs."""

    def __init__(self, directory: Path | None = None, frontend_id: int = 0) -> None:
        self.positions, size = layout()
        self.cells = Cells(size, directory, frontend_id)
        self._buckets = {histogram.name: histogram.buckets for histogram in HISTOGRAMS}
        self.token_gaps: list[float] = []
        for gauge in GAUGES:
            self.cells.values[self.positions[gauge.name, ""]] = 0.0

    def count(self, name: str, value: float = 1.0, label: str = "") -> None:
        self.cells.values[self.positions[name, label]] += value

    def observe(self, name: str, value: float) -> None:
        buckets = self._buckets[name]
        base = self.positions[name, ""]
        self.cells.values[base + bisect_left(buckets, value)] += 1.0
        self.cells.values[base + len(buckets) + 1] += value

    def total(self, name: str, label: str = "") -> float:
        """Over all front ends of the family."""
        return self.cells.total()[self.positions[name, label]]

    def fold_gaps(self) -> None:
        """Bring the pending inter-token gaps into their histogram."""
        gaps = self.token_gaps[:]
        self.token_gaps.clear()
        name = "vllm:inter_token_latency_seconds"
        base = self.positions[name, ""]
        values = self.cells.values
        for gap in gaps:
            values[base + bisect_left(ITL, gap)] += 1.0
        values[base + len(ITL) + 1] += sum(gaps)

    def request_began(self, n: int, max_tokens: int) -> None:
        self.count("concurrent_requests")
        self.observe("vllm:request_params_n", n)
        self.observe("vllm:request_params_max_tokens", max_tokens)

    def request_ended(self) -> None:
        self.count("concurrent_requests", -1.0)

    def client_left(self, num_sequences: int) -> None:
        """A client is gone; `num_sequences` of its request were not complete."""
        self.count("penstock:client_disconnects")
        self.count("penstock:aborted_sequences", num_sequences)
        self.count("vllm:request_success", num_sequences, "abort")

    def tokens_came(self, num_tokens: int) -> None:
        self.count("vllm:generation_tokens", num_tokens)
        self.count("output_tokens", num_tokens)
        if len(self.token_gaps) > MAX_PENDING_GAPS:
            self.fold_gaps()

    def sequence_started(self, ttft_s: float, num_prompt_tokens: int, cached_tokens: int) -> None:
        self.observe("vllm:time_to_first_token_seconds", ttft_s)
        self._prompt_tokens(num_prompt_tokens, cached_tokens)

    def _prompt_tokens(self, num_prompt_tokens: int, cached_tokens: int) -> None:
        self.count("vllm:prompt_tokens", num_prompt_tokens)
        self.count("input_tokens", num_prompt_tokens)
        self.count("vllm:prompt_tokens_cached", cached_tokens)
        self.observe("vllm:request_prompt_tokens", num_prompt_tokens)
        self.observe("input_tokens_per_request", num_prompt_tokens)

    def sequence_finished(
        self,
        reason: str,
        *,
        now: float,
        arrival: float,
        first_at: float,
        last_at: float,
        queue_s: float,
        prefill_s: float,
        num_output_tokens: int,
    ) -> None:
        """Times in seconds of `time.monotonic`; `queue_s` and `prefill_s` as the engine measured them."""
        self.count("vllm:request_success", 1.0, reason)
        decode_s = max(0.0, last_at - first_at)
        self.observe("vllm:e2e_request_latency_seconds", now - arrival)
        self.observe("vllm:request_queue_time_seconds", queue_s)
        self.observe("vllm:request_prefill_time_seconds", prefill_s)
        self.observe("vllm:request_decode_time_seconds", decode_s)
        self.observe("vllm:request_inference_time_seconds", prefill_s + decode_s)
        self.observe("vllm:request_generation_tokens", num_output_tokens)
        self.observe("output_tokens_per_request", num_output_tokens)
        if num_output_tokens > 1 and decode_s > 0:
            self.observe("vllm:request_time_per_output_token_seconds", decode_s / (num_output_tokens - 1))
            self.observe("tps_per_request", (num_output_tokens - 1) / decode_s)

    def prompt_pooled(
        self,
        task: str,
        *,
        seconds: float,
        queue_s: float,
        prefill_s: float,
        num_prompt_tokens: int,
        cached_tokens: int,
    ) -> None:
        """A prompt was read, `seconds` after it came; `queue_s` and `prefill_s` as the engine measured them."""
        self.count("penstock:pooled_prompts", 1.0, task)
        self.count("vllm:request_success", 1.0, "stop")
        self._prompt_tokens(num_prompt_tokens, cached_tokens)
        self.observe("vllm:e2e_request_latency_seconds", seconds)
        self.observe("vllm:request_queue_time_seconds", queue_s)
        self.observe("vllm:request_prefill_time_seconds", prefill_s)
        self.observe("vllm:request_inference_time_seconds", prefill_s)

    def sequence_refused(self, reason: str) -> None:
        self.count("vllm:admission_rejections", 1.0, reason)
