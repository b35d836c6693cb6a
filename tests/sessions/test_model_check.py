"""Real sessions over a faulty world: every delivered answer equals the direct computation.

Each run also ends (no deadlock), with every session freed and every server's room as at the start.
"""

from typing import Any

import broken_hops
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from model_world import Faults, World

from swarm.sessions.hop import HopSession

EVERYTHING = Faults(
    kills=0.002,
    drops=0.01,
    duplicates=0.05,
    cuts=0.002,
    evictions=0.01,
    freezes=0.001,
    drains=0.001,
    hedges=0.002,
)
MANY = 4000


def run(seeds: range, **world: object) -> list[World]:
    worlds = []
    for seed in seeds:
        world_of_seed = World(seed, **world)  # type: ignore[arg-type]
        try:
            world_of_seed.run()
        except Exception as error:
            error.add_note(f"World({seed}, {world})")
            raise
        worlds.append(world_of_seed)
    return worlds


def outcomes(worlds: list[World]) -> tuple[int, int, int]:
    """Sessions that ended well, answers that were compared, re-routes that succeeded."""
    users = [user for world in worlds for user in world.users.values()]
    return (
        sum(user.error is None for user in users),
        sum(user.answers for user in users),
        sum(user.reroutes for user in users),
    )


def many(seeds: int) -> Any:
    """Runs a test on the first third of its seeds; in the matrix on the others, too."""
    first = seeds // 3
    return pytest.mark.parametrize(
        "seeds",
        [range(first), pytest.param(range(first, seeds), marks=pytest.mark.matrix)],
        ids=lambda some: f"{some.start}-{some.stop}",
    )


@many(300)
def test_delays_and_duplicates_change_nothing(seeds: range) -> None:
    well, answers, _ = outcomes(run(seeds, faults=Faults(duplicates=0.1)))
    assert well == len(seeds)
    assert answers > 5 * len(seeds)


@many(60)
def test_many_clients_share_few_servers_without_deadlock(seeds: range) -> None:
    """Every server has room for two of five sessions that each want one to three servers."""
    well, _, _ = outcomes(run(seeds, clients=5, servers=3, sessions_per_server=2, turns=4))
    assert well == 5 * len(seeds)


@many(300)
def test_dropped_frames_are_repaired_or_end_in_a_typed_error(seeds: range) -> None:
    worlds = run(seeds, faults=Faults(drops=0.01, duplicates=0.05))
    well, answers, _ = outcomes(worlds)
    assert well > len(seeds) * 2 / 3
    assert answers > 5 * len(seeds)


@many(300)
def test_sessions_survive_lost_links_on_other_routes(seeds: range) -> None:
    worlds = run(seeds, faults=Faults(cuts=0.003), can_reroute=True, servers=10)
    well, _, reroutes = outcomes(worlds)
    assert well > 0.96 * len(seeds)
    assert reroutes > len(seeds) / 3


@many(300)
def test_sessions_survive_killed_servers_on_other_routes(seeds: range) -> None:
    faults = Faults(kills=0.003, evictions=0.01)
    worlds = run(seeds, faults=faults, can_reroute=True, servers=10)
    well, _, reroutes = outcomes(worlds)
    assert well > 0.95 * len(seeds)
    assert reroutes > len(seeds) / 3


@many(300)
def test_sessions_survive_frozen_servers_and_clients_that_ask_again(seeds: range) -> None:
    faults = Faults(freezes=0.0015, hedges=0.003, evictions=0.01)
    worlds = run(seeds, faults=faults, can_reroute=True, servers=10)
    well, _, reroutes = outcomes(worlds)
    assert well > 0.96 * len(seeds)
    assert reroutes > len(seeds) / 6


@many(300)
def test_sessions_move_from_servers_that_leave(seeds: range) -> None:
    """With room elsewhere and time to move, every session goes on to its end."""
    worlds = run(seeds, faults=Faults(drains=0.002), can_reroute=True, servers=10)
    well, _, reroutes = outcomes(worlds)
    assert well > 0.96 * len(seeds)
    assert reroutes > len(seeds) / 6


@many(200)
def test_without_another_route_a_killed_server_ends_sessions_with_a_typed_error(
    seeds: range,
) -> None:
    worlds = run(seeds, faults=Faults(kills=0.003), clients=2)
    well, _, _ = outcomes(worlds)
    assert 0 < well < 2 * len(seeds)


@many(300)
def test_everything_at_once(seeds: range) -> None:
    worlds = run(seeds, faults=EVERYTHING, can_reroute=True, servers=10, turns=12, clients=2)
    well, _, reroutes = outcomes(worlds)
    assert well > len(seeds)
    assert reroutes > len(seeds) / 2


@pytest.mark.matrix
@pytest.mark.parametrize("can_reroute", [False, True])
@pytest.mark.parametrize("clients", [1, 3])
def test_everything_at_once_on_many_seeds(can_reroute: bool, clients: int) -> None:
    run(
        range(1000, 1000 + MANY),
        faults=EVERYTHING,
        can_reroute=can_reroute,
        servers=10,
        turns=12,
        clients=clients,
    )


rates = st.sampled_from((0.0, 0.0, 0.003, 0.02))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 1 << 32),
    faults=st.builds(
        Faults,
        duplicates=rates,
        drops=rates,
        cuts=rates,
        kills=rates,
        evictions=rates,
        freezes=rates,
        drains=rates,
        hedges=st.sampled_from((0.0, 0.003)),
    ),
    clients=st.integers(1, 3),
    sessions_per_server=st.integers(1, 4),
    turns=st.integers(1, 12),
    can_reroute=st.booleans(),
)
def test_any_world(
    seed: int,
    faults: Faults,
    clients: int,
    sessions_per_server: int,
    turns: int,
    can_reroute: bool,
) -> None:
    World(
        seed,
        faults,
        clients=clients,
        servers=6,
        sessions_per_server=sessions_per_server,
        turns=turns,
        can_reroute=can_reroute,
    ).run()


def breaks(hop_class: type[HopSession], *, strict: bool) -> bool:
    """Whether some world goes wrong with these hops."""
    for seed in range(600):
        faults = Faults(drops=0.01, duplicates=0.2, cuts=0.004, evictions=0.01)
        world = World(seed, faults, hop_class, strict, servers=8, turns=12, can_reroute=True)
        try:
            world.run()
        except (AssertionError, ValueError, IndexError):
            return True
    return False


@pytest.mark.parametrize(
    "hop_class",
    [
        broken_hops.ForgetsEarlierForks,
        broken_hops.ForgetsParents,
        broken_hops.IgnoresEmitFrom,
        broken_hops.IgnoresEpochOfPasses,
        broken_hops.TakesOldEpochs,
        broken_hops.TruncatesOnDuplicates,
    ],
)
def test_a_broken_rule_shows_in_what_the_client_gets(hop_class: type[HopSession]) -> None:
    assert breaks(hop_class, strict=False)


@pytest.mark.parametrize(
    "hop_class",
    [
        broken_hops.AppliesOperationsTwice,
        broken_hops.ForgetsRollbacks,
        broken_hops.OpensEpochsAnywhere,
        broken_hops.TakesWhatLiesBeyond,
    ],
)
def test_a_broken_rule_shows_in_what_the_cache_is_told(hop_class: type[HopSession]) -> None:
    assert breaks(hop_class, strict=True)


def test_sound_hops_do_not_break() -> None:
    assert not breaks(HopSession, strict=True)
