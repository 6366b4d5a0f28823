"""What a run came to: the figures of a result, from the records of its requests."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from .records import Record


@dataclass(frozen=True)
class Spread:
    """A sample's distribution, in the sample's unit; `percentiles` maps the asked-for ones (50.0, 99.9) to values."""

    mean: float
    std: float
    percentiles: dict[float, float]
    count: int


def spread(values: Sequence[float], percentiles: Sequence[float]) -> Spread | None:
    """None for no values. Percentiles interpolate linearly between the sorted values."""
    if len(values) == 0:
        return None
    sample = np.asarray(values, dtype=np.float64)
    found = np.percentile(sample, percentiles)
    by_percentile = {p: float(value) for p, value in zip(percentiles, found, strict=True)}
    return Spread(float(sample.mean()), float(sample.std()), by_percentile, len(sample))


@dataclass(frozen=True)
class Summary:
    """Figures over the requests that succeeded, unless they say otherwise. Latencies are in milliseconds.

    Latency counts from the scheduled arrival when the run has a schedule, else from sending; `from_sending` then
    holds the other view, so that the wait inside the client (for a free place under --max-concurrency) can be told.
    """

    duration_s: float  # first arrival to last answer
    planned: int  # requests of the whole run
    completed: int
    errors: dict[str, int]  # kind -> requests
    error_examples: dict[str, str]
    finish_reasons: dict[str, int]
    input_tokens: int
    input_unknown: int  # requests whose prompt length nobody told
    output_tokens: int
    output_counted: int  # requests whose output tokens are counted chunks
    chunks: int
    cached_tokens: int | None  # None: the server does not report them
    cached_share: float | None  # of the prompt tokens of the requests that report it
    peak_concurrency: int
    ttft: Spread | None
    tpot: Spread | None
    itl: Spread | None
    e2el: Spread | None
    from_sending: dict[str, Spread | None] | None
    send_delay: Spread | None  # scheduled arrival to sending, when there is a schedule
    slo: dict[str, float] = field(default_factory=dict)
    good: int = 0  # requests within every limit of the SLO

    @property
    def failed(self) -> int:
        return sum(self.errors.values())

    @property
    def not_sent(self) -> int:
        return self.planned - self.completed - self.failed

    def per_second(self, amount: float) -> float:
        return amount / self.duration_s if self.duration_s > 0 else 0.0


def ms(seconds: Iterable[float]) -> list[float]:
    return [value * 1000 for value in seconds]


def meets(record: Record, slo: dict[str, float]) -> bool:
    """Whether a successful request is within every limit; a figure it does not have (one token: no TPOT) cannot fail."""
    found = {
        "ttft": None if record.first is None else record.first - record.scheduled,
        "tpot": record.tpot,
        "e2el": record.end - record.scheduled,
    }
    return all((value := found[name]) is None or value * 1000 <= limit for name, limit in slo.items())


def summarize(
    records: Sequence[Record],
    *,
    planned: int,
    percentiles: Sequence[float],
    scheduled: bool,
    slo: dict[str, float],
    peak_concurrency: int,
) -> Summary:
    """`scheduled`: arrivals had a schedule, against which latency is measured."""
    done = [record for record in records if record.ok]
    failed = [record for record in records if not record.ok]
    cached = [record for record in done if record.cached_tokens is not None]
    cached_tokens = sum(record.cached_tokens or 0 for record in cached)
    cached_prompts = sum(record.prompt_tokens or 0 for record in cached)
    started = min((record.scheduled for record in records), default=0.0)
    ended = max((record.end for record in records), default=0.0)

    def latency(of: Iterable[float]) -> Spread | None:
        return spread(ms(of), percentiles)

    def since_sending() -> dict[str, Spread | None]:
        return {
            "ttft": latency(record.first - record.sent for record in done if record.first is not None),
            "e2el": latency(record.end - record.sent for record in done),
        }

    return Summary(
        duration_s=ended - started,
        planned=planned,
        completed=len(done),
        errors=dict(Counter(str(record.error) for record in failed).most_common()),
        error_examples={str(record.error): record.error_message for record in reversed(failed)},
        finish_reasons=dict(Counter(record.finish_reason or "none" for record in done).most_common()),
        input_tokens=sum(record.prompt_tokens or 0 for record in done),
        input_unknown=sum(record.prompt_tokens is None for record in done),
        output_tokens=sum(record.output_tokens for record in done),
        output_counted=sum(record.output_counted for record in done),
        chunks=sum(record.num_chunks for record in done),
        cached_tokens=cached_tokens if cached else None,
        cached_share=cached_tokens / cached_prompts if cached_prompts else None,
        peak_concurrency=peak_concurrency,
        ttft=latency(record.first - record.scheduled for record in done if record.first is not None),
        tpot=latency(tpot for record in done if (tpot := record.tpot) is not None),
        itl=latency(np.concatenate([np.frombuffer(r.gaps) for r in done if r.gaps] or [np.empty(0)])),
        e2el=latency(record.end - record.scheduled for record in done),
        from_sending=since_sending() if scheduled else None,
        send_delay=latency(record.sent - record.scheduled for record in records) if scheduled else None,
        slo=slo,
        good=sum(meets(record, slo) for record in done),
    )
