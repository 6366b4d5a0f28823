"""`/metrics`: the front ends' cells and the engines' statuses as Prometheus text.

Any front end answers for the whole family: cells are summed over the front ends' files, and what an engine reports
comes once, from its latest status.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import TypeAlias

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from ...scheduler.messages import ITERATION_TOKENS_BUCKETS, EngineStatus
from ..requests.engines import Engine
from ..requests.link import EngineLink
from .catalogue import COUNTERS, GAUGES, HISTOGRAMS, Metrics
from .engine_history import EngineHistory
from .processes import FamilyUsage

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
Family: TypeAlias = CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily

ENGINE_GAUGES = (
    ("vllm:num_requests_running", "Requests in the running batch.", "num_running"),
    ("vllm:num_requests_waiting", "Requests waiting to be scheduled.", "num_waiting"),
    ("vllm:kv_cache_usage_perc", "Share of KV pages held by requests, 0 to 1.", "kv_usage"),
    (
        "penstock:draft_length",
        "Tokens drafted for a request in the latest steps, on average.",
        "draft_length",
    ),
)
ENGINE_COUNTERS = (
    ("vllm:prefix_cache_queries", "Tokens looked up in the prefix cache.", "prefix_cache_queries"),
    ("vllm:prefix_cache_hits", "Tokens found in the prefix cache.", "prefix_cache_hits"),
    ("vllm:num_preemptions", "Requests that had to give up their pages for a time.", "num_preemptions"),
    ("penstock:evicted_pages", "Cached pages dropped to make room.", "evicted_pages"),
    ("penstock:steps", "Steps of the engine.", "num_steps"),
    ("penstock:step_seconds", "Device time of all steps.", "step_seconds"),
    ("penstock:schedule_seconds", "Scheduler time of all steps.", "schedule_seconds"),
    ("penstock:mixed_steps", "Steps with decodes and prefill.", "mixed_steps"),
    ("penstock:mixed_steps_late", "Those that took longer than --target-itl-ms.", "mixed_steps_late"),
    ("penstock:mixed_prefill_tokens", "Prefill tokens in those steps.", "mixed_prefill_tokens"),
    ("penstock:mixed_step_seconds", "Device time of those steps.", "mixed_step_seconds"),
    ("penstock:mixed_expected_seconds", "Device time predicted for those steps.", "mixed_expected_seconds"),
    ("vllm:spec_decode_num_drafts", "Drafts that were verified.", "num_drafts"),
    ("vllm:spec_decode_num_draft_tokens", "Tokens of those drafts.", "num_draft_tokens"),
    ("vllm:spec_decode_num_accepted_tokens", "Those that were accepted.", "num_accepted_tokens"),
    ("penstock:draft_seconds", "Time in which drafts were looked for.", "draft_seconds"),
    ("penstock:verify_steps", "Steps that verified drafts.", "verify_steps"),
    ("penstock:verify_step_seconds", "Device time of those steps.", "verify_step_seconds"),
)
COUNTED = (
    *(field for _, _, field in ENGINE_COUNTERS),
    "iteration_tokens_sum",
    "cached_prompt_tokens",
    "prompt_tokens",
)
# Tokens that a verify step brings to a request, the one that is no draft included.
ACCEPTANCE_LENGTH = (1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 13, 17, 25, 33, 65)
REPLICA_STATES = ("starting", "loading", "ready", "draining", "failed")


class Exposition(Collector):
    """A registry of one collector, read when scraped."""

    def __init__(
        self,
        *,
        metrics: Metrics,
        link: EngineLink,
        model_name: str,
        family: FamilyUsage,
        startup: dict[str, float],
    ) -> None:
        self._metrics = metrics
        self._link = link
        self._model_name = model_name
        self._usage = family
        self._startup = startup
        self._histories: dict[int, EngineHistory] = {}
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def on_status(self, status: EngineStatus) -> None:
        self._histories.setdefault(status.engine_id, EngineHistory(COUNTED)).add(status)

    def text(self) -> bytes:
        self._metrics.fold_gaps()
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Family]:
        yield from self._front_end()
        yield from self._engines()
        yield from self._fleet()

    # ------------------------------------------------------------------------------------------------ front ends

    def _front_end(self) -> Iterator[Family]:
        cells = self._metrics.cells.total()
        positions = self._metrics.positions
        labels, values = ["model_name", "engine"], [self._model_name, "0"]
        for counter in COUNTERS:
            own = [*labels, counter.label] if counter.label else labels
            total = CounterMetricFamily(counter.name, counter.help, labels=own)
            for label in counter.values:
                total.add_metric(
                    [*values, label] if counter.label else values, cells[positions[counter.name, label]]
                )
            yield total
        for gauge in GAUGES:
            now = GaugeMetricFamily(gauge.name, gauge.help, labels=labels)
            now.add_metric(values, cells[positions[gauge.name, ""]])
            yield now
        for histogram in HISTOGRAMS:
            base = positions[histogram.name, ""]
            end = base + len(histogram.buckets) + 1
            spread = HistogramMetricFamily(histogram.name, histogram.help, labels=labels)
            spread.add_metric(values, cumulative(histogram.buckets, cells[base:end]), cells[end])
            yield spread

    # ------------------------------------------------------------------------------------------------- engines

    def _engines(self) -> Iterator[Family]:
        engines = self._link.engines
        for name, text, field in ENGINE_GAUGES:
            yield self._gauge(
                name, text, ((engine, float(getattr(engine.load, field))) for engine in engines)
            )
        for name, text, field in ENGINE_COUNTERS:
            total = CounterMetricFamily(name, text, labels=["model_name", "engine"])
            for engine in engines:
                total.add_metric(self._labels(engine), self._history(engine).counter(field))
            yield total
        steps = HistogramMetricFamily(
            "vllm:iteration_tokens_total", "Tokens of each step.", labels=["model_name", "engine"]
        )
        for engine in engines:
            history = self._history(engine)
            counts = cumulative(ITERATION_TOKENS_BUCKETS, history.buckets())
            steps.add_metric(self._labels(engine), counts, history.counter("iteration_tokens_sum"))
        yield steps
        yield from self._drafts(engines)
        yield self._cache_config(engines)
        yield self._startup_times(engines)

    def _drafts(self, engines: list[Engine]) -> Iterator[Family]:
        """How far drafts were right. Positions are those of the longest draft that is configured."""
        at = CounterMetricFamily(
            "vllm:spec_decode_num_accepted_tokens_per_pos",
            "Drafts of which the token at this position was accepted.",
            labels=["model_name", "engine", "position"],
        )
        lengths = HistogramMetricFamily(
            "penstock:acceptance_length",
            "Tokens that a draft brought, the one behind the accepted ones included.",
            labels=["model_name", "engine"],
        )
        mean = GaugeMetricFamily(
            "sglang:spec_accept_length",
            "Mean acceptance length of the last minute; 0 without drafts.",
            labels=["model_name", "engine"],
        )
        rate = GaugeMetricFamily(
            "sglang:spec_accept_rate",
            "Accepted share of the last minute's draft tokens, 0 to 1.",
            labels=["model_name", "engine"],
        )
        for engine in engines:
            history, labels = self._history(engine), self._labels(engine)
            reached = history.accepted_at()
            most = engine.info.num_speculative_tokens if engine.info is not None else 0
            for position, count in enumerate(reached + [0] * (most - len(reached))):
                at.add_metric([*labels, str(position)], count)
            drafts, accepted = history.counter("num_drafts"), history.counter("num_accepted_tokens")
            counts = cumulative(ACCEPTANCE_LENGTH, lengths_of(reached, drafts))
            lengths.add_metric(labels, counts, drafts + accepted)
            accepted, drafted, drafts = history.recent(
                "num_accepted_tokens", "num_draft_tokens", "num_drafts"
            )
            mean.add_metric(labels, 1 + accepted / drafts if drafts else 0.0)
            rate.add_metric(labels, accepted / drafted if drafted else 0.0)
        yield from (at, lengths, mean, rate)

    def _cache_config(self, engines: list[Engine]) -> Family:
        names = ["block_size", "num_gpu_blocks", "cache_dtype"]
        info = GaugeMetricFamily(
            "vllm:cache_config_info", "The KV cache.", labels=["model_name", "engine", *names]
        )
        for engine in engines:
            if engine.info is not None:
                values = [str(engine.info.page_size), str(engine.info.num_pages), engine.info.kv_cache_dtype]
                info.add_metric([*self._labels(engine), *values], 1.0)
        return info

    def _startup_times(self, engines: list[Engine]) -> Family:
        times = GaugeMetricFamily(
            "startup_time_seconds",
            "How long each phase of the start took; total: from the command to the first ready engine.",
            labels=["phase"],
        )
        phases = dict(self._startup)
        for engine in engines:
            if engine.info is not None:
                phases.update(engine.info.startup_seconds)
        for phase, seconds in phases.items():
            times.add_metric([phase], seconds)
        return times

    # --------------------------------------------------------------------------------------------------- fleet

    def _fleet(self) -> Iterator[Family]:
        engines = self._link.engines
        shares = [self._history(engine).recent("cached_prompt_tokens", "prompt_tokens") for engine in engines]
        prompt = sum(share[1] for share in shares)
        rate = sum(share[0] for share in shares) / prompt if prompt else 0.0
        yield self._plain(
            "kv_cache_hit_rate", "Cached share of the last minute's prompt tokens, 0 to 1.", rate
        )
        drafts = [
            self._history(engine).recent("num_accepted_tokens", "num_draft_tokens") for engine in engines
        ]
        drafted = sum(share[1] for share in drafts)
        rate = 100 * sum(share[0] for share in drafts) / drafted if drafted else 0.0
        yield self._plain(
            "speculation_rate", "Accepted share of the last minute's draft tokens, 0 to 100.", rate
        )
        states = GaugeMetricFamily("replica_count_by_status", "Engines in each state.", labels=["status"])
        for state in REPLICA_STATES:
            count = sum(1 for engine in engines if replica_state(engine) == state)
            states.add_metric([state], count)
        yield states
        tokens = GaugeMetricFamily(
            "autoscaler_in_flight_tokens", "Queued prompt tokens and running context.", labels=["group"]
        )
        waiting = sum(engine.load.waiting_tokens for engine in engines)
        everything = sum(engine.load.in_flight_tokens for engine in engines)
        for group, count in (("prefill", waiting), ("decode", everything - waiting), ("all", everything)):
            tokens.add_metric([group], count)
        yield tokens
        yield self._of_replicas(
            "gpu_usage",
            "Share of the time in which the replica's GPU was busy, 0 to 1.",
            ((engine, engine.load.gpu_usage) for engine in engines),
        )
        yield self._of_replicas(
            "gpu_memory_usage",
            "Bytes of the replica's GPU memory that are taken, by all processes.",
            ((engine, engine.load.gpu_memory_bytes) for engine in engines),
        )
        cores, resident = self._usage.read()
        yield self._plain("cpu_usage", "Cores in use by the process family since the last scrape.", cores)
        yield self._plain("memory_usage", "Resident bytes of the process family.", resident)

    def _of_replicas(self, name: str, text: str, values: Iterable[tuple[Engine, float | None]]) -> Family:
        """Only of replicas that have a value."""
        gauge = GaugeMetricFamily(name, text, labels=["model_name", "replica"])
        for engine, value in values:
            if value is not None:
                gauge.add_metric(self._labels(engine), value)
        return gauge

    def _plain(self, name: str, text: str, value: float) -> Family:
        gauge = GaugeMetricFamily(name, text, labels=["model_name"])
        gauge.add_metric([self._model_name], value)
        return gauge

    def _gauge(self, name: str, text: str, values: Iterable[tuple[Engine, float]]) -> Family:
        gauge = GaugeMetricFamily(name, text, labels=["model_name", "engine"])
        for engine, value in values:
            gauge.add_metric(self._labels(engine), value)
        return gauge

    def _labels(self, engine: Engine) -> list[str]:
        return [self._model_name, str(engine.engine_id)]

    def _history(self, engine: Engine) -> EngineHistory:
        return self._histories.setdefault(engine.engine_id, EngineHistory(COUNTED))


def replica_state(engine: Engine) -> str:
    return "starting" if engine.state == "restarting" else engine.state


def lengths_of(accepted_at: list[int], num_drafts: float) -> list[float]:
    """Drafts by their acceptance length, per bucket of `ACCEPTANCE_LENGTH`, longer ones last."""
    buckets = [0.0] * (len(ACCEPTANCE_LENGTH) + 1)
    reached = [num_drafts, *accepted_at, 0]
    for accepted, (count, further) in enumerate(pairwise(reached)):
        buckets[bisect_left(ACCEPTANCE_LENGTH, accepted + 1)] += count - further
    return buckets


def cumulative(bounds: Iterable[float], counts: Iterable[float]) -> list[tuple[str, float]]:
    """Prometheus buckets from per-bucket counts, the one beyond every bound last."""
    total = 0.0
    buckets = []
    for bound, count in zip([*(f"{float(bound)}" for bound in bounds), "+Inf"], counts, strict=True):
        total += count
        buckets.append((bound, total))
    return buckets
