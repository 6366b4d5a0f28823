"""repetition_detection: an output that ends in copies of one pattern ends with reason `repetition`, at that token."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest
from fake_device import FakeDevice
from penstock.scheduler.groups import KVGroup
from penstock.scheduler.messages import RepetitionDetection
from penstock.scheduler.repetition import Repetition
from penstock.scheduler.requests import Request
from simulation import Simulation, make_config, make_request


def goes_round(output: list[int], detection: RepetitionDetection) -> bool:
    """By definition: the last `min_count * size` tokens are `min_count` times the last `size` ones."""
    sizes = range(max(1, detection.min_pattern_size), detection.max_pattern_size + 1)
    return any(
        len(output) >= size * detection.min_count
        and output[-size * detection.min_count :] == output[-size:] * detection.min_count
        for size in sizes
    )


def loops(random: np.random.Generator, length: int) -> list[int]:
    """Stretches of noise and of patterns that repeat, now and then broken by one wrong token."""
    tokens: list[int] = []
    while len(tokens) < length:
        pattern = random.integers(0, 3, random.integers(1, 7)).tolist()
        tokens += pattern * int(random.integers(1, 6))
        if random.random() < 0.5:
            tokens.append(int(random.integers(0, 9)))
    return tokens[:length]


def test_every_token_gets_the_verdict_of_the_definition() -> None:
    random = np.random.default_rng(1)
    verdicts: list[bool] = []
    for _ in range(60):
        smallest = int(random.integers(0, 4))
        detection = RepetitionDetection(
            max_pattern_size=smallest + int(random.integers(1, 6)),
            min_pattern_size=smallest,
            min_count=int(random.integers(2, 5)),
        )
        tokens = loops(random, 150)
        begin = int(random.integers(0, 40))  # what the request had produced before
        repetition = Repetition(detection, np.array(tokens[:begin], np.int32))
        for end in range(begin + 1, len(tokens) + 1):
            verdicts.append(repetition.push(tokens[end - 1]))
            assert verdicts[-1] == goes_round(tokens[:end], detection), (detection, tokens[:end])
    assert 0.1 < np.mean(verdicts) < 0.9


def test_a_long_output_is_still_compared_with_its_own_past() -> None:
    detection = RepetitionDetection(max_pattern_size=5, min_pattern_size=5, min_count=3)
    repetition = Repetition(detection, np.zeros(0, np.int32))
    counting = [repetition.push(token) for token in range(5000)]
    assert not any(counting)
    verdicts = [repetition.push(token) for token in [1, 2, 3, 4, 5] * 3]
    assert verdicts == [False] * 14 + [True]


class Looping(FakeDevice):
    """The request whose prompt begins with t says t a few times differently, then goes round with period t % 5 + 1."""

    def _draw(self, slot: int, position: int, state: int) -> int:
        return said(int(self.tokens[slot, 0]), position - self.params[slot][1])


def said(kind: int, position: int) -> int:
    return 50 + position if position < kind + 3 else 10 + position % (kind % 5 + 1)


def expected_end(kind: int, detection: RepetitionDetection, after: int = 0) -> list[int]:
    output: list[int] = []
    while not goes_round(output, detection) or len(output) <= after:
        output.append(said(kind, len(output)))
    return output


def simulate(requests: Iterable[Request], **config: object) -> Simulation:
    simulation = Simulation(make_config(**config), lag=1)
    simulation.device = Looping.of(simulation.scheduler)
    simulation.add(*requests)
    simulation.run()
    return simulation


@pytest.mark.parametrize("drafts", [0, 5])
@pytest.mark.parametrize("pages", [256, 16], ids=["room", "preemption"])
def test_requests_end_where_they_begin_to_go_round_whatever_the_company(pages: int, drafts: int) -> None:
    detection = RepetitionDetection(max_pattern_size=4, min_pattern_size=2, min_count=3)
    kinds = range(6)
    requests = [
        make_request(kind, [kind, 7, 8], max_tokens=40, repetition_detection=detection) for kind in kinds
    ]
    free = make_request(9, [3, 7, 8], max_tokens=40)
    simulation = simulate(
        [*requests, free],
        groups=(KVGroup("full", pages),),
        enable_prefix_caching=False,
        max_draft_tokens=drafts,
    )
    assert (simulation.scheduler.load().num_preemptions > 0) == (pages == 16)
    for kind, request in zip(kinds, requests, strict=True):
        if kind == 4:  # its period of 5 is longer than what is looked for
            assert (request.finish_reason, len(simulation.outputs[kind])) == ("length", 40)
        else:
            assert simulation.outputs[kind] == expected_end(kind, detection)
            assert request.finish_reason == "repetition"
    assert (free.finish_reason, len(simulation.outputs[9])) == ("length", 40)


def test_stop_and_length_go_before_repetition_and_min_tokens_before_all() -> None:
    detection = RepetitionDetection(max_pattern_size=3, min_pattern_size=1, min_count=2)
    output = expected_end(1, detection)
    plain = {"repetition_detection": detection, "max_tokens": 40}
    requests = [
        make_request(1, [1, 7, 8], **{**plain, "stop_token_ids": [output[-1]]}),
        make_request(2, [1, 7, 9], **{**plain, "max_tokens": len(output)}),
        make_request(3, [1, 8, 8], **{**plain, "min_tokens": 20}),
        make_request(4, [1, 8, 9], **plain),
    ]
    simulation = simulate(requests)
    reasons = {request.request_id: request.finish_reason for request in requests}
    assert reasons[4] == "repetition"
    assert reasons[3] == "repetition"
    assert reasons[2] == "length"
    assert reasons[1] == "stop"
    assert simulation.outputs[3] == expected_end(1, detection, after=20)


def test_a_resumed_request_remembers_what_it_had_said() -> None:
    detection = RepetitionDetection(max_pattern_size=4, min_pattern_size=1, min_count=4)
    whole = expected_end(2, detection)
    for cut in range(1, len(whole)):
        prompt = [2, 7, 8]
        request = make_request(
            0, prompt + whole[:cut], num_prompt_tokens=3, max_tokens=60, repetition_detection=detection
        )
        simulation = simulate([request])
        assert whole[:cut] + simulation.outputs[0] == whole
        assert request.finish_reason == "repetition"
