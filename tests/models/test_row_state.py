import torch

from swarm.models.row_state import MAX_SNAPSHOTS, SNAPSHOT_TOKENS, RowState


def grow(state: RowState, tokens: int) -> None:
    """As a pass: the live tensor is changed in place, and says how many slots it has seen."""
    start = state.position
    state.before_pass(tokens)
    state.layers.setdefault(0, {"conv_states": {0: torch.zeros(1)}})
    state.layers[0]["conv_states"][0] += tokens
    state.after_pass(start + tokens)


def seen(state: RowState) -> float:
    return float(state.layers[0]["conv_states"][0]) if state.layers else 0.0


def test_a_rewind_takes_the_newest_state_at_or_below_the_slot() -> None:
    state = RowState()
    for _ in range(3 * SNAPSHOT_TOKENS):
        grow(state, 1)
    assert state.snapshots == (SNAPSHOT_TOKENS, 2 * SNAPSHOT_TOKENS)
    assert state.rewind(3 * SNAPSHOT_TOKENS) == 3 * SNAPSHOT_TOKENS
    assert state.rewind(3 * SNAPSHOT_TOKENS - 1) == 2 * SNAPSHOT_TOKENS == seen(state)
    grow(state, 1)
    # What was restored is a copy: the snapshot is still what it was.
    assert state.rewind(2 * SNAPSHOT_TOKENS) == 2 * SNAPSHOT_TOKENS == seen(state)
    assert state.rewind(5) == 0 == seen(state)
    assert state.snapshots == ()


def test_a_guess_of_several_tokens_can_be_taken_back_at_once() -> None:
    state = RowState()
    for position in (7, 9, 14):
        grow(state, position - state.position)
        grow(state, 4)
        assert state.rewind(position) == position == seen(state)


def test_snapshots_are_few_and_denser_near_the_end() -> None:
    state = RowState()
    for _ in range(200):
        grow(state, 8)
    places = state.snapshots
    assert len(places) == MAX_SNAPSHOTS
    assert state.position - places[-1] <= SNAPSHOT_TOKENS
    gaps = [b - a for a, b in zip((0, *places), places, strict=False)]
    assert gaps == sorted(gaps, reverse=True)


def test_a_pass_that_broke_off_is_forgotten() -> None:
    state = RowState()
    grow(state, 5)
    grow(state, 3)
    state.before_pass(1)
    state.layers[0]["conv_states"][0] += 100
    assert state.rewind(8) == 5 == seen(state)


def test_forks_do_not_change_each_other() -> None:
    state = RowState()
    grow(state, 5)
    grow(state, 3)
    fork = state.copy()
    grow(fork, 1)
    assert (state.position, fork.position) == (8, 9)
    assert (seen(state), seen(fork)) == (8, 9)
    assert fork.rewind(6) == 5 == seen(fork)
    assert seen(state) == 8
