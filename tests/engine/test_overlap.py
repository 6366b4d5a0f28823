"""Steps are enqueued, not waited for: on a device that is as late as can be, tokens are the same and nothing races."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from queue import SimpleQueue

import numpy as np
import pytest
import torch
from engine_runs import serve
from late_device import NONSENSE, LateDevice, LateMode, LateTensor, gathered_runner
from msgspec.structs import replace
from oracle_drafter import oracle_speculation
from penstock.engine.build import Built
from penstock.engine.grammar.store import Grammar, open_compiler
from penstock.engine.streams import RING, AsyncStream
from penstock.scheduler.messages import GrammarSpec, SamplingParams
from penstock.scheduler.plan import StepPlan
from penstock.scheduler.requests import Request
from penstock.scheduler.scheduler import Scheduler
from rank_threads import led_late
from tiny_models import VOCAB_SIZE, make_checkpoint

LONG = torch.randint(3, VOCAB_SIZE, (80,), generator=torch.Generator().manual_seed(3)).tolist()
PROMPTS = [LONG[:5], LONG[:37], LONG[20:50], LONG[:30], LONG[10:31], LONG[:24]]
TIGHT = {"num_pages": 26, "max_num_seqs": 5, "max_num_batched_tokens": 13}
GREEDY = SamplingParams(max_tokens=30, temperature=0.0)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("qwen3")
    make_checkpoint("qwen3", path)
    return path


@pytest.fixture(scope="module")
def at_once(path: Path) -> Iterator[Built]:
    with gathered_runner(path, None, **TIGHT) as built:
        yield built


@pytest.fixture
def device() -> LateDevice:
    return LateDevice()


MIXED = [
    SamplingParams(max_tokens=20, temperature=1.0, seed=11, logprobs=2),
    SamplingParams(max_tokens=20, temperature=0.0, repetition_penalty=1.3),
    SamplingParams(max_tokens=20, temperature=0.8, seed=13, frequency_penalty=0.7, prompt_logprobs=1),
    SamplingParams(max_tokens=20, temperature=0.0, logit_bias={7: 3.0}, logprobs=0),
    SamplingParams(max_tokens=20, temperature=1.0, top_p=0.9, seed=16, presence_penalty=1.0),
    SamplingParams(max_tokens=20, temperature=0.0),
]


def same_served(late: object, reference: object) -> None:
    assert late.outputs == reference.outputs
    for mine, theirs in zip(late.logprobs, reference.logprobs, strict=True):
        assert len(mine) == len(theirs)
        for a, b in zip(mine, theirs, strict=True):
            assert (a.is_prompt, a.token_ids.tolist()) == (b.is_prompt, b.token_ids.tolist())
            assert a.ranks.tolist() == b.ranks.tolist()
            assert a.top_ids.tolist() == b.top_ids.tolist()
            np.testing.assert_array_equal(a.logprobs, b.logprobs)
            np.testing.assert_array_equal(a.top_logprobs, b.top_logprobs)


def test_a_late_device_gives_the_tokens_and_scores_of_one_that_is_not(
    path: Path, at_once: Built, device: LateDevice
) -> None:
    reference = serve(at_once, PROMPTS, MIXED)
    assert reference.load.num_preemptions > 0
    with gathered_runner(path, device, **TIGHT) as late:
        same_served(serve(late, PROMPTS, MIXED), reference)


def test_rules_that_look_back_hold_on_a_late_device(path: Path, at_once: Built, device: LateDevice) -> None:
    free = serve(at_once, PROMPTS[:3], GREEDY).outputs
    ruled = [
        replace(GREEDY, bad_words=[output[2:4], output[5:8]]) if i < 2 else GREEDY
        for i, output in enumerate(free)
    ]
    reference = serve(at_once, PROMPTS[:3], ruled)
    assert reference.outputs[0] != free[0]
    with gathered_runner(path, device, **TIGHT) as late:
        assert serve(late, PROMPTS[:3], ruled).outputs == reference.outputs


def test_grammars_hold_on_a_late_device(path: Path, at_once: Built, device: LateDevice) -> None:
    compiler = open_compiler(path, VOCAB_SIZE)
    words = replace(GREEDY, grammar=GrammarSpec("regex", "([a-z]{3} ){9}"), stop_token_ids=[2])
    each = [words, GREEDY, words, replace(words, max_tokens=11)]
    reference = serve(at_once, PROMPTS[:4], each, compile_grammar=compiler)
    with gathered_runner(path, device, **TIGHT) as late:
        assert serve(late, PROMPTS[:4], each, compile_grammar=compiler).outputs == reference.outputs


def test_drafts_hold_on_a_late_device(path: Path, at_once: Built, device: LateDevice) -> None:
    compiler = open_compiler(path, VOCAB_SIZE)
    words = replace(GREEDY, grammar=GrammarSpec("regex", "([a-z]{3} ){9}"), stop_token_ids=[2])
    ruled = replace(GREEDY, bad_words=[[30, 31]])
    each = [MIXED[0], words, MIXED[1], ruled, MIXED[4], GREEDY]
    reference = serve(at_once, PROMPTS, each, compile_grammar=compiler)
    texts = [prompt + output for prompt, output in zip(PROMPTS, reference.outputs, strict=True)]
    with gathered_runner(path, device, **TIGHT) as late:
        late.runner._speculation = oracle_speculation(
            late.runner.num_slots, texts, max_draft_tokens=4, wrong_every=5, vocab_size=VOCAB_SIZE
        )
        roomy = dataclasses.replace(
            late, scheduler_config=dataclasses.replace(late.scheduler_config, max_draft_tokens=4)
        )
        served = serve(roomy, PROMPTS, each, compile_grammar=compiler)
        assert served.outputs == reference.outputs
        for mine, theirs in zip(served.logprobs, reference.logprobs, strict=True):
            for name in ("token_ids", "logprobs", "ranks", "top_ids") if theirs else ():
                ours = np.concatenate([getattr(row, name) for row in mine])
                expected = np.concatenate([getattr(row, name) for row in theirs])
                np.testing.assert_allclose(ours, expected, atol=2e-4 if name == "logprobs" else 0.0)
        assert 0 < served.load.num_accepted_tokens < served.load.num_draft_tokens


def test_the_pass_behind_a_grammars_step_is_enqueued_before_anyone_waits_for_its_token(
    path: Path, device: LateDevice
) -> None:
    grammar = open_compiler(path, VOCAB_SIZE)(GrammarSpec("regex", "([a-z]{3} ){9}"))
    words = replace(GREEDY, grammar=GrammarSpec("regex", "([a-z]{3} ){9}"), stop_token_ids=[2])
    with gathered_runner(path, device, **TIGHT) as late:
        passes: SimpleQueue[int] = SimpleQueue()
        forward = late.runner._forward
        late.runner._forward = lambda batch: (forward(batch), passes.put(len(batch.tokens)))[0]
        scheduler, in_flight = decoding(late, [words, GREEDY, words], [grammar, None, grammar])
        for _ in range(4):
            while not passes.empty():
                passes.get()
            device.may_go_on.clear()
            plan = scheduler.plan(0.0)
            assert plan is not None
            handle = late.runner.launch(plan)
            assert passes.get(timeout=60.0) == 3  # no token of the step before has reached the host
            assert not handle._enqueued.wait(0.0)
            device.may_go_on.set()
            handle._enqueued.result()
            in_flight.append((plan, handle))
            oldest, handle = in_flight.popleft()
            scheduler.commit(oldest, handle.result(), 0.0)


def decoding(
    built: Built, sampling: list[SamplingParams], grammars: Sequence[Grammar | None] = ()
) -> tuple[Scheduler, deque]:
    """Requests that all decode, two steps of them in flight, which the device's thread is through with."""
    scheduler = Scheduler(built.scheduler_config)
    for key, how in enumerate(sampling):
        request = Request(
            key=key,
            tokens=np.array(PROMPTS[key % len(PROMPTS)][:5], np.int32),
            num_prompt_tokens=5,
            sampling=how,
            grammar=grammars[key] if grammars else None,
        )
        scheduler.add(request)
    in_flight: deque = deque()
    while True:
        plan = scheduler.plan(0.0)
        assert plan is not None
        in_flight.append((plan, built.runner.launch(plan)))
        if len(in_flight) == 3:
            oldest, handle = in_flight.popleft()
            scheduler.commit(oldest, handle.result(), 0.0)
            if oldest.num_decode_rows == len(sampling):
                for _, handle in in_flight:
                    handle._enqueued.result()
                return scheduler, in_flight


PLAIN = {
    "greedy": GREEDY,
    "temperature": SamplingParams(max_tokens=30, temperature=0.7, seed=3),
    "min-p": SamplingParams(max_tokens=30, temperature=0.7, min_p=0.05, seed=3),
    "logprobs": SamplingParams(max_tokens=30, temperature=0.7, seed=3, logprobs=3),
}


@pytest.mark.parametrize("how", PLAIN)
def test_a_steady_decode_step_waits_for_nothing_and_sends_one_small_copy(
    path: Path, device: LateDevice, how: str
) -> None:
    with gathered_runner(path, device, max_num_seqs=8, num_pages=200) as late:
        scheduler, in_flight = decoding(late, [PLAIN[how]] * 8)
        for _ in range(8):
            device.waits.clear()
            device.sent.clear()
            done = device.num_done
            plan = scheduler.plan(0.0)
            assert plan is not None
            handle = late.runner.launch(plan)
            handle._enqueued.result()  # the thread is through with it
            assert device.waits == []
            assert device.num_done == done, "two steps are behind each other, and the device has not begun"
            assert len(device.sent) == 1
            assert device.sent[0] < 4096
            in_flight.append((plan, handle))
            oldest, handle = in_flight.popleft()
            scheduler.commit(oldest, handle.result(), 0.0)


@pytest.mark.parametrize(
    "sampling",
    [
        {"temperature": 0.0, "repetition_penalty": 1.2},
        {"temperature": 0.9, "logit_bias": {5: 1.0}},
        {"temperature": 0.9, "min_tokens": 20, "stop_token_ids": [9]},
        {"temperature": 0.0, "allowed_token_ids": list(range(3, 200))},
        {"temperature": 0.0, "bad_words": [[17]]},
    ],
    ids=lambda sampling: next(key for key in sampling if key != "temperature"),
)
def test_changed_logits_make_the_device_thread_wait_for_nothing(
    path: Path, device: LateDevice, sampling: dict
) -> None:
    """Arriving requests included: beside the first step of each kind, whose buffers are made, nothing waits."""
    with gathered_runner(path, device, max_num_seqs=8, num_pages=200) as late:
        mixed = [SamplingParams(max_tokens=30, seed=1, **sampling), PLAIN["temperature"]] * 3
        scheduler, in_flight = decoding(late, mixed)
        for step in range(6):
            if step == 3:
                tokens = np.array(PROMPTS[1], np.int32)
                scheduler.add(
                    Request(key=99, tokens=tokens, num_prompt_tokens=len(tokens), sampling=mixed[0])
                )
            plan = scheduler.plan(0.0)
            assert plan is not None
            device.waits.clear()
            handle = late.runner.launch(plan)
            handle._enqueued.result()
            assert device.waits == []
            in_flight.append((plan, handle))
            oldest, handle = in_flight.popleft()
            scheduler.commit(oldest, handle.result(), 0.0)


# --------------------------------------------------------------------------------------------------- several ranks


def test_ranks_on_late_devices_give_the_tokens_and_scores_of_one(
    path: Path, at_once: Built, tmp_path: Path
) -> None:
    reference = serve(at_once, PROMPTS, MIXED)
    with led_late(path, tmp_path, [LateDevice(), LateDevice()], **TIGHT) as late:
        served = serve(late, PROMPTS, MIXED)
    assert served.outputs == reference.outputs
    for mine, theirs in zip(served.logprobs, reference.logprobs, strict=True):
        assert [row.top_ids.tolist() for row in mine] == [row.top_ids.tolist() for row in theirs]


def test_in_a_steady_decode_step_no_rank_waits(path: Path, tmp_path: Path) -> None:
    devices = [LateDevice(), LateDevice()]
    with led_late(path, tmp_path, devices, max_num_seqs=8, num_pages=200) as late:
        scheduler, in_flight = decoding(late, [PLAIN["temperature"]] * 8)
        for device in devices:
            device.waits.clear()
        for _ in range(8):
            plan = scheduler.plan(0.0)
            assert plan is not None
            in_flight.append((plan, late.runner.launch(plan)))
            oldest, handle = in_flight.popleft()
            scheduler.commit(oldest, handle.result(), 0.0)
        waited = [{thread for thread, _ in device.waits} for device in devices]
    assert waited == [{"MainThread"}, {"rank-1"}], "only who takes in results"


# ------------------------------------------------------------------------------------------------------- failures


def one_row(slot: int) -> StepPlan:
    one = np.ones(1, np.int32)
    return StepPlan(0, one * slot, one * 0, one, np.array([True]), num_decode_rows=1, num_tokens=1)


def test_a_step_that_cannot_be_enqueued_raises_from_its_own_result_only(
    path: Path, device: LateDevice
) -> None:
    with gathered_runner(path, device) as late:
        bad, good = late.runner.launch(one_row(10_000)), late.runner.launch(one_row(1))
        assert bad.wait(10.0)
        with pytest.raises(IndexError):
            bad.result()
        assert good.wait(10.0)
        result = good.result()
        assert (result.counts.tolist(), result.device_seconds > 0) == ([1], True)


# ------------------------------------------------------------------------------------------------------ the stream


@pytest.fixture
def stream(device: LateDevice) -> Iterator[AsyncStream]:
    with LateMode(device):
        yield AsyncStream(device)


def test_staged_arrays_arrive_whole_in_one_copy(device: LateDevice, stream: AsyncStream) -> None:
    arrays = [
        np.arange(5, dtype=np.int32),
        np.array([True, False, True]),
        np.arange(6, dtype=np.float64).reshape(2, 3),
        np.zeros(0, np.int64),
    ]
    staged = stream.stage([*arrays, arrays[0]])
    assert len(device.sent) == 1
    for array, tensor in zip([*arrays, arrays[0]], staged, strict=True):
        assert isinstance(tensor, LateTensor)
        np.testing.assert_array_equal(tensor.inner.numpy(), array)
        assert tensor.inner.numpy().dtype == array.dtype


def test_a_staging_buffer_is_not_written_before_its_copy_ran(device: LateDevice, stream: AsyncStream) -> None:
    for round_ in range(3 * RING):
        stream.stage([np.full(100, round_, np.int32)])
    device.advance(10_000)
    assert device.waits, "a whole ring ahead the host has to wait"


def test_the_fake_device_sees_a_buffer_that_is_written_too_early(
    device: LateDevice, stream: AsyncStream
) -> None:
    stream.stage([np.arange(9, dtype=np.int32)])
    first = stream._ring[0]
    assert first is not None
    first.host[:4] = 77
    with pytest.raises(AssertionError, match="overwritten before the copy"):
        device.advance(1)


def test_what_is_fetched_holds_nonsense_until_its_event(device: LateDevice, stream: AsyncStream) -> None:
    fetch = stream.fetch([LateTensor(torch.arange(4, dtype=torch.int32))])
    early = fetch._arrays[0]
    assert (early.view(np.uint8) == NONSENSE).all()
    assert fetch.arrays()[0].tolist() == [0, 1, 2, 3]
    assert early.tolist() == [0, 1, 2, 3]


def test_a_larger_step_gets_a_larger_buffer(device: LateDevice, stream: AsyncStream) -> None:
    for size in (10, 200_000, 10, 400_000):
        array = np.arange(size, dtype=np.int64)
        np.testing.assert_array_equal(stream.stage([array])[0].inner.numpy(), array)
        np.testing.assert_array_equal(stream.keep(array).inner.numpy(), array)
    device.advance(10_000)
