"""The figures of a result against the standard library's statistics and arithmetic done by hand."""

from __future__ import annotations

import statistics
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st
from penstock.server.bench import report
from penstock.server.bench.calibrate import Limit
from penstock.server.bench.options import parse_slo
from penstock.server.bench.records import Record
from penstock.server.bench.results import Summary, spread, summarize

PERCENTILES = [50.0, 90.0, 99.0]


@given(st.lists(st.floats(0, 1e6), min_size=2, max_size=60))
def test_percentiles_interpolate_as_the_standard_library_does(values: list[float]) -> None:
    found = spread(values, PERCENTILES)
    assert found is not None
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    for percentile in PERCENTILES:
        assert found.percentiles[percentile] == pytest.approx(cuts[int(percentile) - 1], abs=1e-6)
    assert found.mean == pytest.approx(statistics.fmean(values), abs=1e-6)
    assert found.std == pytest.approx(statistics.pstdev(values), abs=1e-3)


def request(scheduled: float, sent: float, first: float, last: float, tokens: int, **more: object) -> Record:
    step = (last - first) / max(1, tokens - 1)
    return Record(
        scheduled=scheduled,
        sent=sent,
        first=first,
        last=last,
        end=last,
        gaps=array("d", [step] * (tokens - 1)),
        num_chunks=tokens,
        prompt_tokens=100,
        output_tokens=tokens,
        finish_reason="length",
        **more,
    )


def summary(records: list[Record], *, scheduled: bool = True, slo: dict[str, float] | None = None) -> Summary:
    return summarize(
        records,
        planned=len(records),
        percentiles=PERCENTILES,
        scheduled=scheduled,
        slo=slo or {},
        peak_concurrency=3,
    )


def test_latency_counts_from_the_scheduled_arrival_and_sending_is_shown_beside() -> None:
    found = summary([request(10.0, 12.0, 12.5, 13.5, 11), request(11.0, 11.0, 11.5, 12.5, 11)])
    assert found.ttft is not None
    assert found.e2el is not None
    assert found.from_sending is not None
    assert found.ttft.mean == pytest.approx(1500)  # (2500 + 500) / 2
    assert found.e2el.mean == pytest.approx(2500)
    assert found.from_sending["ttft"].mean == pytest.approx(500)
    assert found.send_delay.mean == pytest.approx(1000)
    assert found.tpot.mean == pytest.approx(100)
    assert found.duration_s == pytest.approx(3.5)
    assert "from sending" in report.table(found, PERCENTILES)


def test_the_view_from_sending_is_left_out_when_it_is_the_same() -> None:
    found = summary([request(10.0, 10.0001, 10.5, 11.5, 11)])
    assert "from sending" not in report.table(found, PERCENTILES)


def test_throughput_counts_successes_and_errors_are_told_apart() -> None:
    records = [request(0.0, 0.0, 1.0, 2.0, 10) for _ in range(3)]
    records += [Record(0.0, end=2.0, error="HTTP 429", error_message="full") for _ in range(2)]
    records += [Record(0.0, end=4.0, error="timeout", error_message="late")]
    found = summary(records)
    assert (found.completed, found.failed, found.not_sent) == (3, 3, 0)
    assert found.errors == {"HTTP 429": 2, "timeout": 1}
    assert found.error_examples["timeout"] == "late"
    figures = report.as_json(found, None, 0.0)
    assert figures["output_throughput"] == pytest.approx(30 / 4)
    assert figures["total_token_throughput"] == pytest.approx(330 / 4)
    assert figures["request_throughput"] == pytest.approx(3 / 4)
    assert figures["median_ttft_ms"] == figures["p50_ttft_ms"] == pytest.approx(1000)


def test_goodput_counts_requests_within_every_limit() -> None:
    records = [
        request(0.0, 0.0, 0.1, 1.1, 11),  # TTFT 100, TPOT 100
        request(0.0, 0.0, 0.1, 2.1, 11),  # TPOT 200: too slow
        request(0.0, 0.0, 0.3, 1.3, 11),  # TTFT 300: too slow
        request(0.0, 0.0, 0.1, 0.1, 1),  # one token has no TPOT to miss
        Record(0.0, end=2.0, error="timeout"),
    ]
    found = summary(records, slo={"ttft": 200.0, "tpot": 150.0})
    assert found.good == 2
    assert "Goodput" in report.table(found, PERCENTILES)
    assert summary(records, slo={"ttft": 200.0, "tpot": 150.0, "e2el": 500.0}).good == 1


def test_cached_share_is_of_the_prompts_that_report_it() -> None:
    found = summary([request(0, 0, 1, 2, 2, cached_tokens=80), request(0, 0, 1, 2, 2, cached_tokens=0)])
    assert found.cached_share == pytest.approx(0.4)
    assert summary([request(0, 0, 1, 2, 2)]).cached_share is None


def test_a_run_without_successes_still_has_a_table() -> None:
    found = summary([Record(0.0, end=1.0, error="connect", error_message="nothing listens there")])
    text = report.table(found, PERCENTILES)
    assert "0 ok, 1 failed" in text
    assert "nothing listens there" in text
    assert report.as_json(found, None, 0.0)["completed"] == 0


@pytest.mark.parametrize(("tokens", "warned"), [(10, False), (900, True)])
def test_the_client_says_when_it_was_near_its_own_limit(tokens: int, warned: bool) -> None:
    limit = Limit(
        tokens_per_s=1000, requests_per_s=100, cpu_us_per_token=10, streams=4, tokens_per_request=10
    )
    line = report.client_line(limit, summary([request(0.0, 0.0, 0.1, 1.0, tokens)]), 0.01)
    assert f"{tokens / 10:.1f} % of it" in line
    assert ("warning" in line) == warned


def test_a_busy_client_is_warned_about_whatever_its_token_rate() -> None:
    limit = Limit(tokens_per_s=1e6, requests_per_s=100, cpu_us_per_token=1, streams=4, tokens_per_request=10)
    assert "warning" in report.client_line(limit, summary([request(0.0, 0.0, 0.1, 1.0, 5)]), 0.8)


@pytest.mark.parametrize(
    ("texts", "limits"),
    [
        (["ttft=200,tpot=50"], {"ttft": 200, "tpot": 50}),
        (["ttft=0.5s,tpot=50ms,e2el=2s"], {"ttft": 500, "tpot": 50, "e2el": 2000}),
        (["ttft:200", "tpot:50"], {"ttft": 200, "tpot": 50}),
        (["tpot=800us"], {"tpot": pytest.approx(0.8)}),
    ],
)
def test_slo_units(texts: list[str], limits: dict[str, float]) -> None:
    assert parse_slo(texts) == limits


@pytest.mark.parametrize(
    "text", ["ttft", "ttft=", "ttft=fast", "latency=3", "ttft=3min", "ttft=1.2.3", "", "ttft=."]
)
def test_slo_that_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a limit"):
        parse_slo([text])
