"""When servers move: never opening a gap, never to and fro, and until the swarm is whole."""

from collections import Counter
from random import Random
from typing import Any

import pytest
from moving_world import RULES, MovingWorld
from routing_views import server, swarm

from swarm.routing.coverage import holders
from swarm.routing.moving import Action, Mover
from swarm.routing.shifting import fewest_moves
from swarm.routing.view import ServerView
from swarm.spans import Span

BLOCKS = 30


def parts(seeds: int, few: int) -> Any:
    """Runs a test on `few` seeds; in the matrix on the rest of 12 parts of `seeds` each, too."""
    more = [range(max(few, seeds * part), seeds * (part + 1)) for part in range(12)]
    return pytest.mark.parametrize(
        "seeds",
        [range(few), *(pytest.param(part, marks=pytest.mark.matrix) for part in more if part)],
        ids=lambda part: f"{part.start}-{part.stop}",
    )


def random_world(seed: int) -> MovingWorld:
    """Four to nine servers that join one after another, of any size and speed."""
    rng = Random(seed)
    world = MovingWorld(BLOCKS, rng, reload_s=rng.choice([5.0, 40.0, 120.0]))
    for number in range(rng.randint(4, 9)):
        world.join(str(number), rng.randint(5, 14), rng.choice([0.5, 1.0, 2.0, 8.0]))
        world.run(rng.choice([0.0, 15.0, 200.0]))
    return world


def busiest(world: MovingWorld, since: float) -> int:
    """The most moves of one server within ten checks, from `since` on."""
    moves = [(when, peer) for when, peer in world.moves if when >= since]
    return max(
        (
            max(Counter(p for t, p in moves if when <= t < when + 10 * RULES.check_s).values())
            for when, _ in moves
        ),
        default=0,
    )


@parts(100, 25)
def test_a_quiet_swarm_comes_to_rest_and_no_move_opens_a_gap(seeds: range) -> None:
    for seed in seeds:
        world = random_world(seed)
        world.run(20 * RULES.check_s)
        quiet_since = world.now
        world.run(60 * RULES.check_s)
        assert not world.opened, (seed, world.opened)
        assert busiest(world, quiet_since) <= 1, (seed, world.moves)
        late = Counter(peer for when, peer in world.moves if when > quiet_since + 600)
        # Speeds are noisy: what lies at the threshold may still move once.
        assert late.total() <= 1, (seed, late)


@parts(100, 25)
def test_when_one_is_killed_the_others_cover_what_they_can(seeds: range) -> None:
    mended = 0
    for seed in seeds:
        world = random_world(seed)
        world.run(30 * RULES.check_s)
        whole = not world.missing()
        victim = world.rng.choice(sorted(world.servers))
        world.kill(victim)
        killed = world.now
        gap = bool(world.missing())
        world.run(30 * RULES.check_s)
        alive = [one.view for one in world.servers.values() if one.alive]
        present = holders(swarm(BLOCKS, *alive))
        possible = not world.missing() or fewest_moves(present, {o.peer for o in present}, BLOCKS)
        assert not world.opened, (seed, world.opened)
        assert not (world.missing() and possible), (seed, world.missing())
        assert busiest(world, killed + 5 * RULES.check_s) <= 1, (seed, world.moves)
        mended += whole and gap and not world.missing()
    assert mended > len(seeds) / 50


@parts(80, 80)
def test_who_cannot_load_other_blocks_tries_seldom_and_others_mend_without_it(seeds: range) -> None:
    mended = 0
    for seed in seeds:
        world = random_world(seed)
        world.run(30 * RULES.check_s)
        unable, victim = world.rng.sample(sorted(world.servers), 2)
        world.servers[unable].can_load = False
        world.kill(victim)
        killed, gap = world.now, bool(world.missing())
        world.run(30 * RULES.check_s)
        tries = [when for when, peer in world.moves if peer == unable and when >= killed]
        assert len(tries) <= 7, (seed, tries)
        alive = [one.view for one in world.servers.values() if one.alive]
        present = holders(swarm(BLOCKS, *alive))
        able = {one.peer for one in present if one.peer != unable}
        possible = not world.missing() or fewest_moves(present, able, BLOCKS)
        assert not (world.missing() and possible), (seed, world.missing())
        mended += gap and bool(tries) and not world.missing()
    assert mended > 0


@parts(80, 20)
def test_after_a_partition_servers_do_not_all_move_at_once(seeds: range) -> None:
    """Each side covers what it can by itself; then they meet, and what they have is enough."""
    moved = 0
    for seed in seeds:
        world = random_world(seed)
        world.run(30 * RULES.check_s)
        peers = sorted(world.servers)
        world.cut(world.rng.sample(peers, len(peers) // 2))
        cut = world.now
        world.run(20 * RULES.check_s)
        world.heal()
        healed, before = world.now, len(world.missing())
        world.opened.clear()
        world.run(30 * RULES.check_s)
        after = Counter(peer for when, peer in world.moves if when >= healed)
        assert not world.opened, (seed, world.opened)
        assert before or after.total() <= len(peers) / 2 + 1, (seed, world.moves)
        assert busiest(world, healed + 5 * RULES.check_s) <= 1, (seed, world.moves)
        alive = [one.view for one in world.servers.values()]
        present = holders(swarm(BLOCKS, *alive))
        possible = not world.missing() or fewest_moves(present, {o.peer for o in present}, BLOCKS)
        assert not (world.missing() and possible), (seed, world.missing())
        moved += any(cut <= when < healed for when, _ in world.moves)
    assert moved > len(seeds) / 10


def test_what_others_mean_to_leave_is_no_gap_to_open_another_for() -> None:
    """Of two that say that they will go one stays; until then nobody leaves what he alone has."""
    others = [
        server("0", 0, 12),
        server("1", 0, 13, moving_to=Span(8, 21)),
        server("2", 23, 30, moving_to=Span(16, 23)),
        server("6", 21, 30, moving_to=Span(16, 25)),
    ]
    alone = server("4", 12, 23, may_move=True)

    def actions(*others: ServerView) -> list[Action]:
        mover = Mover(alone.peer, RULES, Random(0), now=0.0)
        view = swarm(BLOCKS, *others, alone)
        return [mover.look(view, alone, mover.next_look, reload_s=5.0).action for _ in range(3)]

    assert set(actions(*others)) == {Action.STAY}
    assert Action.ANNOUNCE in actions(*others[:2]), "nobody is online at the end"
