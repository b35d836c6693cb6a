"""The engine's passes: who joins them, how prompts are cut, and which operations come first."""

from summing_engine import World, name, sums

from swarm.scheduling.classes import ServiceClass
from swarm.sessions.messages import RowOperation


def test_a_session_computes_step_by_step(world: World) -> None:
    assert sums(world.submit(1, [[1, 2], [10]])()) == [1, 3, 10]
    result = world.submit(1, [[3], [20]], [2, 1])()
    assert sums(result) == [6, 30]
    assert result.compute_ms > 0
    assert result.queue_ms >= 0
    assert world.cache.held(name(1)) == (3, 2)


def test_rows_without_new_tokens_take_no_part(world: World) -> None:
    world.submit(1, [[1], [2]])()
    assert sums(world.submit(1, [[], [3]], [1, 1])()) == [5]
    assert world.blocks.passes[-1] == [1]
    assert sums(world.submit(1, [[], []], [1, 2])()) == []


def test_all_ready_decode_rows_join_before_any_prefill(world: World) -> None:
    for session in (1, 2, 3):
        world.submit(session, [[1.0] * 3])()
    held = world.hold()
    prompt = world.submit(3, [[1.0] * 6], [3])
    tokens = [world.submit(session, [[1.0]], [3]) for session in (1, 2)]
    world.blocks.free.set()
    held()
    assert [sums(token())[-1] for token in tokens] == [4, 4]
    assert sums(prompt())[-1] == 9
    assert world.blocks.passes[-1] == [1, 1, 6]
    assert [result.job.session for result in world.batches[-1]] == [name(1), name(2), name(3)]


def test_long_prompts_take_several_passes_and_let_others_in(world: World) -> None:
    held = world.hold()
    prompts = [world.submit(session, [[1.0] * size]) for session, size in ((1, 20), (2, 5), (3, 4))]
    world.blocks.free.set()
    held()
    for prompt in prompts:
        prompt()
    assert world.blocks.passes[1:] == [[8], [5, 3], [1, 7], [5]]
    for prompt, size in zip(prompts, (20, 5, 4), strict=True):
        output = prompt().output
        assert output is not None
        assert output.view(-1).tolist() == [1.0 + index for index in range(size)]
    held = world.hold()
    prompts = [world.submit(session, [[1.0] * 4], [start]) for session, start in ((1, 20), (2, 5))]
    world.blocks.free.set()
    for prompt in prompts:
        prompt()
    assert world.blocks.passes[-1] == [4, 4]


def test_a_step_of_several_rows_is_cut_anywhere(world: World) -> None:
    rows = [[1.0] * 5, [2.0] * 9]
    answer = world.submit(1, rows, service_class=ServiceClass.PREFILL)()
    assert world.blocks.passes == [[5, 3], [6]]
    assert answer.output is not None
    expected = [value * (1 + index) for row in rows for index, value in enumerate(row)]
    assert answer.output.view(-1).tolist() == expected
    assert world.cache.held(name(1)) == (5, 9)


def test_decode_has_a_budget_and_does_not_shut_prompts_out(world: World) -> None:
    held = world.hold()
    decode = ServiceClass.DECODE
    tokens = [world.submit(session, [[1.0] * 5], service_class=decode) for session in (1, 2)]
    prompt = world.submit(3, [[1.0] * 20])
    world.blocks.free.set()
    held()
    for answer in (*tokens, prompt):
        answer()
    assert world.blocks.passes[1:] == [[5, 8], [5, 8], [4]]


def test_a_pass_has_one_step_of_a_session(world: World) -> None:
    held = world.hold()
    steps = [world.submit(1, [[1.0, 1.0]], [start]) for start in (0, 2, 4)]
    world.blocks.free.set()
    held()
    assert [sums(step())[-1] for step in steps] == [2, 4, 6]
    assert world.blocks.passes[1:] == [[2], [2], [2]]


def test_operations_come_before_their_step(world: World) -> None:
    world.submit(1, [[1, 2, 3], [10]])()
    fork = RowOperation(parents=(0, 0), truncate_to=(3, 2))
    assert sums(world.submit(1, [[4], [5]], [3, 2], operation=fork)()) == [10, 8]
    cut = RowOperation(truncate_to=(1, 1))
    assert sums(world.submit(1, [[1], [2]], [1, 1], operation=cut)()) == [2, 3]


def test_a_small_output_does_not_keep_its_whole_pass_alive(world: World) -> None:
    held = world.hold()
    small, large = world.submit(1, [[1.0]]), world.submit(2, [[1.0] * 30])
    world.blocks.free.set()
    held()
    assert world.blocks.passes[-1] == [1, 30] or large().output is not None
    output = small().output
    assert output is not None
    assert output.untyped_storage().nbytes() <= 2 * output.nbytes


def test_counters(world: World) -> None:
    world.submit(1, [[1.0] * 5])()
    world.submit(1, [[1.0]], [5])()
    stats = world.engine.stats()
    assert (stats.passes, stats.jobs, stats.failed_jobs) == (2, 2, 0)
    assert (stats.decode_tokens, stats.prefill_tokens) == (1, 5)
    assert stats.busy_s > 0
    held = world.hold()
    world.submit(1, [[1.0] * 3], [6])
    assert (world.engine.stats().waiting_jobs, world.engine.stats().waiting_tokens) == (1, 3)
    world.blocks.free.set()
    held()
