"""The model of a step's time: what it learns, how fast, and that nothing measured can break it."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from penstock.scheduler.step_time import PositiveCost, StepContents, StepTimeModel

RARELY = settings(derandomize=True, database=None, deadline=None, max_examples=60)


def prefill(length: int, start: int = 0, decodes: int = 0, keys: int = 0) -> StepContents:
    return StepContents(decodes, keys, length, length * (start + (length + 1) / 2))


def taught(steps: int = 300, token: float = 1e-3, pair: float = 1e-6, noise: float = 0.0) -> StepTimeModel:
    """A model that saw a machine of 20 ms to read weights, 5 ms of its own a step and `token` seconds a token."""
    model, rng = StepTimeModel(), np.random.default_rng(3)
    for _ in range(steps):
        decodes, start, length = (
            int(rng.integers(low, high)) for low, high in ((1, 16), (0, 2000), (16, 400))
        )
        blur = math.exp(rng.normal(0.0, noise))
        contents = prefill(length, start, decodes, decodes * 500)
        compute = 5e-3 + token * (decodes + length) + pair * contents.prefill_attended
        model.observe(contents, max(0.02, compute) * blur)
        model.observe(StepContents(decodes, decodes * 500), (0.02 + 1e-5 * decodes) * blur)
    return model


def test_one_measurement_sets_the_scale() -> None:
    model = StepTimeModel()
    contents = prefill(128)
    model.observe(contents, 0.2)
    assert model.predict(contents) == pytest.approx(0.2)
    assert 0.05 < model.predict(prefill(64)) < 0.2


@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_steps_of_any_mixture_are_predicted_after_a_few_hundred(noise: float) -> None:
    model = taught(noise=noise)
    for decodes, start, length in ((8, 0, 64), (2, 1500, 64), (12, 500, 300), (1, 1900, 128)):
        contents = prefill(length, start, decodes, decodes * 500)
        true = 5e-3 + 1e-3 * (decodes + length) + 1e-6 * contents.prefill_attended
        assert model.predict(contents) == pytest.approx(true, rel=0.1)


def test_a_step_takes_no_less_than_its_decodes_alone() -> None:
    model = taught()
    alone = model.predict(StepContents(4, 2000))
    assert alone == pytest.approx(0.02, rel=0.05)
    assert model.predict(prefill(1, 0, 4, 2000)) == alone


def test_a_single_outlier_moves_a_prediction_by_less_than_a_tenth() -> None:
    for factor in (50.0, 0.02):
        model = taught(noise=0.05)
        contents = prefill(64, 0, 8, 4000)
        before = model.predict(contents)
        model.observe(contents, before * factor)
        assert model.predict(contents) == pytest.approx(before, rel=0.1)


@pytest.mark.parametrize("factor", [2.0, 0.5, 8.0])
def test_another_speed_of_the_machine_is_found_out_and_holds_for_steps_not_seen_since(factor: float) -> None:
    model = taught(noise=0.05)
    seen, unseen = prefill(64, 0, 8, 4000), prefill(256, 1000, 8, 4000)
    before, elsewhere = model.predict(seen), model.predict(unseen)
    for _ in range(60):
        model.observe(seen, before * factor)
    assert model.predict(seen) == pytest.approx(before * factor, rel=0.02)
    assert model.predict(unseen) == pytest.approx(elsewhere * factor, rel=0.35)


def test_steps_that_are_all_alike_do_not_unlearn_the_others() -> None:
    model, alike, other = taught(noise=0.05), prefill(64, 0, 8, 4000), prefill(300, 1500, 2, 1000)
    rng = np.random.default_rng(1)
    true, elsewhere = model.predict(alike), model.predict(other)
    for _ in range(5000):
        model.observe(alike, true * math.exp(rng.normal(0.0, 0.1)))
    assert model.predict(other) == pytest.approx(elsewhere, rel=0.35)


def test_a_step_without_a_measurement_teaches_nothing() -> None:
    model = StepTimeModel()
    model.observe(prefill(64), 0.0)
    model.observe(StepContents(4, 100), 0.0)
    assert not model.knows_prefill
    assert not model.knows_decode


@RARELY
@given(
    amounts=st.lists(
        st.tuples(st.integers(0, 300), st.integers(0, 10**7), st.integers(1, 10**5)), min_size=1, max_size=30
    ),
    seconds=st.lists(st.floats(1e-6, 1e4), min_size=30, max_size=30),
)
def test_whatever_is_measured_coefficients_stay_positive_and_finite(
    amounts: list[tuple[int, int, int]], seconds: list[float]
) -> None:
    cost = PositiveCost([16.0, 1.0, 0.001, 1.0])
    for (rows, keys, tokens), each in zip(amounts, seconds, strict=False):
        cost.observe((1.0, rows, keys, tokens), each)
        assert all(0.0 < value < math.inf for value in cost.coefficients)


@RARELY
@given(
    seconds=st.floats(0.0, 10.0),
    start=st.integers(0, 10**6),
    token=st.floats(1e-7, 1e-1),
    pair=st.floats(1e-12, 1e-4),
)
def test_a_chunk_within_a_time_is_the_longest_that_takes_no_longer(
    seconds: float, start: int, token: float, pair: float
) -> None:
    model = StepTimeModel()
    model._mixed.coefficients = [1.0, 1.0, 1.0, token, pair]
    length = model.chunk_within(seconds, start)
    assert length == 0 or model.chunk_seconds(start, length) <= seconds * (1 + 1e-6)
    assert model.chunk_seconds(start, length + 1) >= seconds * (1 - 1e-6)
