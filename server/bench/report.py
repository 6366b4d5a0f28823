"""How a run is shown: progress while it goes, the table and the JSON at its end."""

from __future__ import annotations

import time
from typing import Any, TextIO

from .calibrate import Limit
from .records import Live, Record
from .results import Spread, Summary

# Above this share of its own limit a client's queueing shows in the latencies it reports.
WARN_SHARE = 0.6
BAR_CELLS = 24
LATENCIES = (("TTFT", "ttft"), ("TPOT", "tpot"), ("ITL", "itl"), ("End to end", "e2el"))


class Progress:
    """One line that follows a run: redrawn on a terminal, repeated now and then elsewhere."""

    def __init__(self, out: TextIO, live: Live, total: int) -> None:
        self._out, self._live, self._total = out, live, total
        self._tty = out.isatty()
        self.interval_s = 0.2 if self._tty else 10.0
        self._start = time.perf_counter()
        self._seen = (self._start, 0)  # time and chunks at the last line
        self._width = 0

    def draw(self) -> None:
        live, now = self._live, time.perf_counter()
        since, chunks = self._seen
        rate = (live.chunks - chunks) / max(now - since, 1e-9)
        self._seen = (now, live.chunks)
        done = live.finished / max(1, self._total)
        elapsed = now - self._start
        left = elapsed / done - elapsed if done else None
        line = f"{live.finished}/{self._total} requests  {rate:,.0f} tok/s  {live.in_flight} in flight"
        line += f"  {live.failed} failed" if live.failed else ""
        line += f"  {clock(left)} left" if left is not None else ""
        if not self._tty:
            print(line, file=self._out, flush=True)
            return
        filled = round(done * BAR_CELLS)
        line = f"[{'#' * filled}{'.' * (BAR_CELLS - filled)}] {line}"
        self._out.write("\r" + line.ljust(self._width))
        self._out.flush()
        self._width = len(line)

    def clear(self) -> None:
        if self._tty:
            self._out.write("\r" + " " * self._width + "\r")
            self._out.flush()


def clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"


def _number(value: float) -> str:
    return f"{value:,.2f}" if abs(value) < 1000 else f"{value:,.0f}"


def _percentile_name(percentile: float) -> str:
    return f"p{percentile:g}"


def table(summary: Summary, percentiles: list[float]) -> str:
    """The result as text: counts and rates, then the latencies."""
    s = summary
    rows: list[tuple[str, str]] = [("Requests", f"{s.completed} ok, {s.failed} failed")]
    if s.not_sent:
        rows.append(("", f"{s.not_sent} of {s.planned} not sent or unfinished"))
    rows += [(f"  {kind}", f"{count}  ({s.error_examples[kind]})") for kind, count in s.errors.items()]
    unknown = f"  (unknown for {s.input_unknown} requests)" if s.input_unknown else ""
    counted = (
        f"  (no usage from the server: chunks counted in {s.output_counted} requests)"
        if s.output_counted
        else ""
    )
    rows += [
        ("Duration", f"{s.duration_s:,.2f} s"),
        ("Peak concurrency", f"{s.peak_concurrency}"),
        ("Input tokens", f"{s.input_tokens:,}{unknown}"),
        ("Cached tokens", _cached(s)),
        ("Output tokens", f"{s.output_tokens:,}{counted}"),
        ("Output throughput", f"{_number(s.per_second(s.output_tokens))} tok/s"),
        ("Total throughput", f"{_number(s.per_second(s.input_tokens + s.output_tokens))} tok/s"),
        ("Request throughput", f"{_number(s.per_second(s.completed))} req/s"),
    ]
    if s.output_tokens and s.chunks and s.chunks != s.output_tokens:
        rows.append(("Tokens per chunk", f"{s.output_tokens / s.chunks:.2f}  (ITL is between chunks)"))
    if s.slo:
        limits = ", ".join(f"{name} <= {value:g} ms" for name, value in s.slo.items())
        share = f"{100 * s.good / s.completed:.1f} %" if s.completed else "none"
        rows.append(
            ("Goodput", f"{_number(s.per_second(s.good))} req/s  ({share} of requests within {limits})")
        )
    lines = [f"{name:<20}{value}" for name, value in rows]

    since = "scheduled arrival" if s.from_sending is not None else "sending"
    columns = ["mean", *map(_percentile_name, percentiles)]
    lines += ["", f"{'Latency, ms':<20}" + "".join(f"{name:>12}" for name in columns) + f"   (from {since})"]
    lines += [_latency(name, getattr(s, key), percentiles) for name, key in LATENCIES]
    if s.from_sending is not None and _differs(s):
        lines += [f"{'':<20}{'':>{12 * len(columns)}}   (from sending: without the wait in the client)"]
        lines += [
            _latency(name, s.from_sending[key], percentiles)
            for name, key in LATENCIES
            if key in s.from_sending
        ]
    return "\n".join(lines)


def _latency(name: str, found: Spread | None, percentiles: list[float]) -> str:
    if found is None:
        return f"{name:<20}{'-':>12}"
    values = [found.mean, *(found.percentiles[p] for p in percentiles)]
    return f"{name:<20}" + "".join(f"{_number(value):>12}" for value in values)


def _cached(s: Summary) -> str:
    if s.cached_tokens is None:
        return "not reported by the server"
    return f"{s.cached_tokens:,}" + (
        f"  ({100 * s.cached_share:.1f} % of input)" if s.cached_share is not None else ""
    )


def _differs(s: Summary) -> bool:
    """Whether requests waited in the client long enough to matter: over 1 ms and 1 % of the mean latency."""
    delay, total = s.send_delay, s.e2el
    return delay is not None and total is not None and delay.mean > max(1.0, total.mean / 100)


def client_line(limit: Limit, summary: Summary, busy: float) -> str:
    """How near the client was to its own limit; `busy`: its CPU time over the run's duration."""
    share = limit.share(summary.per_second(summary.output_tokens))
    text = (
        f"client limit here: {limit.tokens_per_s:,.0f} tok/s, {limit.requests_per_s:,.0f} req/s, "
        f"{limit.cpu_us_per_token:.1f} µs CPU per token ({limit.streams} streams of {limit.tokens_per_request:.0f} "
        f"tokens, null server); this run used {100 * share:.1f} % of it (client CPU {100 * busy:.1f} % busy)"
    )
    if max(share, busy) > WARN_SHARE:
        text += (
            f"\nwarning: above {100 * WARN_SHARE:.0f} % of the client's limit its own queueing shows in these figures: "
            "split the load over several clients"
        )
    return text


def as_json(summary: Summary, limit: Limit | None, busy: float) -> dict[str, Any]:
    """Flat figures under the names of vLLM's result files where the meaning is the same."""
    s = summary
    figures: dict[str, Any] = {
        "duration": s.duration_s,
        "num_prompts": s.planned,
        "completed": s.completed,
        "failed": s.failed,
        "not_sent": s.not_sent,
        "errors": s.errors,
        "error_examples": s.error_examples,
        "finish_reasons": s.finish_reasons,
        "total_input_tokens": s.input_tokens,
        "input_tokens_unknown_requests": s.input_unknown,
        "total_output_tokens": s.output_tokens,
        "output_tokens_counted_requests": s.output_counted,
        "output_chunks": s.chunks,
        "total_cached_tokens": s.cached_tokens,
        "cached_tokens_share": s.cached_share,
        "max_concurrent_requests": s.peak_concurrency,
        "request_throughput": s.per_second(s.completed),
        "output_throughput": s.per_second(s.output_tokens),
        "total_token_throughput": s.per_second(s.input_tokens + s.output_tokens),
        "request_goodput": s.per_second(s.good) if s.slo else None,
        "good_requests": s.good if s.slo else None,
        "slo_ms": s.slo,
        "latency_from": "scheduled arrival" if s.from_sending is not None else "sending",
        "client_cpu_busy": busy,
    }
    for _, key in LATENCIES:
        figures.update(_flat(key, getattr(s, key)))
    for key, found in (s.from_sending or {}).items():
        figures.update(_flat(f"{key}_from_sending", found))
    figures.update(_flat("send_delay", s.send_delay))
    if limit is not None:
        figures["client_limit"] = {
            "output_throughput": limit.tokens_per_s,
            "request_throughput": limit.requests_per_s,
            "cpu_us_per_token": limit.cpu_us_per_token,
            "streams": limit.streams,
            "tokens_per_request": limit.tokens_per_request,
            "used_share": limit.share(s.per_second(s.output_tokens)),
        }
    return figures


def _flat(name: str, found: Spread | None) -> dict[str, float]:
    if found is None:
        return {}
    figures = {f"mean_{name}_ms": found.mean, f"std_{name}_ms": found.std}
    for percentile, value in found.percentiles.items():
        figures[f"{_percentile_name(percentile)}_{name}_ms"] = value
        if percentile == 50:
            figures[f"median_{name}_ms"] = value
    return figures


def detail(record: Record, start: float) -> dict[str, Any]:
    """One request for --save-detailed; times in seconds from the start of the run."""
    return {
        "scheduled": record.scheduled - start,
        "sent": record.sent - start,
        "ttft": None if record.first is None else record.first - record.scheduled,
        "e2el": record.end - record.scheduled,
        "itls": record.gaps.tolist(),
        "prompt_tokens": record.prompt_tokens,
        "output_tokens": record.output_tokens,
        "cached_tokens": record.cached_tokens,
        "finish_reason": record.finish_reason,
        "error": record.error,
        "error_message": record.error_message,
    }
