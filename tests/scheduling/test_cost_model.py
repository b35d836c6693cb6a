"""The cost model against machines that are what it believes, with noise and outliers."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarm.scheduling.cost_model import CostModel, PassSize, tokens_after


def machine(fixed: float, token: float, context: float, size: PassSize) -> float:
    return fixed + token * size.tokens + context * size.context


sizes = st.builds(
    lambda held, tokens, rows: tokens_after(held, tokens) + PassSize(rows, rows * 300.0),
    st.integers(0, 4000),
    st.integers(1, 512),
    st.integers(0, 16),
)


@settings(max_examples=40)
@given(
    st.floats(0.001, 0.2),
    st.floats(1e-5, 0.01),
    st.floats(1e-8, 1e-6),
    st.lists(sizes, min_size=150, max_size=200),
    st.integers(0, 100),
)
def test_it_learns_any_machine_through_noise_and_outliers(
    fixed: float, token: float, context: float, passes: list[PassSize], seed: int
) -> None:
    rng = random.Random(seed)
    model = CostModel(0.05, 500.0)
    rng.shuffle(passes)
    for size in (*passes, PassSize(1, 500.0), tokens_after(100, 256), PassSize(8, 2000.0)):
        seconds = machine(fixed, token, context, size) * rng.uniform(0.95, 1.05)
        model.learn(size, seconds * (10.0 if rng.random() < 0.03 else 1.0))
    middle = passes[len(passes) // 2]
    assert model.seconds(middle) == pytest.approx(machine(fixed, token, context, middle), rel=0.35)
    assert min(model.fixed_s, model.per_token_s, model.per_context_s) >= 0


def test_the_first_guess_is_what_was_measured() -> None:
    model = CostModel(0.02, 1000.0)
    assert model.seconds(PassSize(1, 128)) == pytest.approx(0.02, rel=0.02)
    assert model.seconds(tokens_after(0, 128)) == pytest.approx(0.128, rel=0.02)
    assert model.seconds(PassSize()) == 0.0


def test_passes_that_are_all_alike_leave_the_guess_of_others_sane() -> None:
    model = CostModel(0.02, 1000.0)
    for _ in range(2000):
        model.learn(PassSize(4, 800.0), 0.025)
    assert model.seconds(PassSize(4, 800.0)) == pytest.approx(0.025, rel=0.05)
    assert 0.05 < model.seconds(tokens_after(0, 128)) < 0.4


def test_a_machine_that_becomes_slower_is_noticed() -> None:
    model = CostModel(0.02, 1000.0)
    for factor in (1.0, 3.0):
        for number in range(150):
            size = tokens_after(64 * (number % 5), 1 + 50 * (number % 4))
            model.learn(size, factor * machine(0.01, 0.001, 1e-7, size))
    assert model.seconds(tokens_after(0, 100)) == pytest.approx(0.33, rel=0.15)


@given(st.floats(0.0, 1.0), st.integers(0, 5000))
def test_what_is_said_to_fit_does(seconds: float, held: int) -> None:
    model = CostModel(0.01, 700.0)
    for number in range(50):
        size = tokens_after(200 * (number % 7), 1 + 30 * (number % 9))
        model.learn(size, machine(0.01, 0.001, 3e-7, size))
    tokens = model.tokens_within(seconds, held)
    assert model.marginal_s(tokens_after(held, tokens)) <= seconds + 1e-9
    assert model.marginal_s(tokens_after(held, tokens + 1)) > seconds - 1e-9
