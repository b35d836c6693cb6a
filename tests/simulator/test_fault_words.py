"""What simulated sessions do when something goes wrong, in the words of `scripts/faults.py`."""

import pytest
from faults import Fault as RealFault
from scenarios import THREE_PAIRS, TWO_HALVES, chain, tokens_are_whole, traffic

from swarm.routing.performance import ChainMode
from swarm.simulator.results import Result
from swarm.simulator.scenario import LINK_FAULTS, Fault, FaultKind, Timing
from swarm.simulator.simulation import simulate
from swarm.spans import PeerId

A, B, D = (PeerId(f"server-{letter}") for letter in "abd")
NOTHING_COMES = {
    FaultKind.FREEZE,
    FaultKind.FREEZE_DAEMON,
    FaultKind.FREEZE_BOTH,
    FaultKind.STALE_RECORD,
    *LINK_FAULTS,
}
NOTHING_IS_LOST = {FaultKind.SLOW, FaultKind.REFUSE}


def test_the_words_are_those_of_real_faults() -> None:
    assert {str(fault) for fault in RealFault} == {
        str(kind) for kind in FaultKind if kind not in (FaultKind.SLOW, FaultKind.DRAIN)
    }


def faulty(kind: FaultKind, router: str = "two-choices", **options: object) -> Result:
    """Sixty sessions over three pairs of servers, two of which have the fault, or their link."""
    faults = [Fault(kind, A, 2.0, 4.0, other=D if kind in LINK_FAULTS else None)]
    if kind not in LINK_FAULTS:
        faults.append(Fault(kind, D, 2.5, 4.0))
    asked = traffic(60, 10.0, output_tokens=60)
    scenario = chain(THREE_PAIRS, clients=3, traffic=asked, faults=tuple(faults), **options)
    return simulate(scenario, router)


@pytest.mark.parametrize(
    ("kind", "router"),
    [*((kind, "two-choices") for kind in FaultKind), (FaultKind.KILL, "jffc")],
)
def test_requests_survive_faults(kind: FaultKind, router: str) -> None:
    result = faulty(kind, router)
    tokens_are_whole(result)
    summary = result.summary()
    assert summary["failed"] == 0
    assert summary["faults"] == (1 if kind in LINK_FAULTS else 2)
    assert (summary["repairs"] == 0) == (kind in NOTHING_IS_LOST)
    gap_s = max(one.longest_gap_s for one in result.requests)
    if kind in NOTHING_COMES:
        assert 3.5 < gap_s < 6.0
    else:
        assert gap_s < 2.0


def test_a_short_silence_is_only_waited_for() -> None:
    fault = Fault(FaultKind.FREEZE_DAEMON, B, 0.2, 2.0)
    asked = traffic(output_tokens=60)
    (request,) = simulate(chain(TWO_HALVES, traffic=asked, faults=(fault,)), "petals").requests
    assert (request.repairs, request.tokens) == (0, 60)
    assert request.longest_gap_s == pytest.approx(2.0, abs=0.1)


def test_who_refuses_serves_whom_it_has_and_takes_nobody() -> None:
    """The second request finds no other server, and waits until the first one takes it again."""
    fault = Fault(FaultKind.REFUSE, B, 0.2, 5.0)
    asked = traffic(2, 2.0, output_tokens=60)
    timing = Timing(announce_s=1.0, view_age_s=1.0)
    scenario = chain(TWO_HALVES, traffic=asked, timing=timing, faults=(fault,))
    first, second = simulate(scenario, "petals").requests
    assert (first.repairs, first.tokens, second.tokens) == (0, 60, 60)
    assert first.ended is not None and first.ended < 5.0
    assert second.opened is not None and second.opened > 5.2


def test_a_server_crashes_while_it_computes_and_not_before() -> None:
    idle = Fault(FaultKind.CRASH_AT_STEP, B, 0.0)
    scenario = chain({**TWO_HALVES, "server-d": (4, 8)}, traffic=traffic(), faults=(idle,))
    result = simulate(scenario, "petals")
    (request,) = result.requests
    crashed = next(server for server in result.servers if server.machine == B)
    assert crashed.passes == 0
    assert crashed.present_s > 0.02, "the session has opened and its prompt has come"
    assert (request.repairs, request.tokens) == (1, 16)


def test_a_stale_record_leads_new_sessions_astray() -> None:
    """Nobody's list forgets it: sessions try it as long as it lasts, and go on elsewhere."""

    def failures(kind: FaultKind) -> int:
        spans = {"server-a": (0, 8), "server-b": (0, 8)}
        fault = Fault(kind, A, 0.0, 400.0)
        scenario = chain(spans, traffic=traffic(40, 0.1), faults=(fault,))
        result = simulate(scenario, "petals")
        assert result.summary()["failed"] == 0
        return sum(one.opened - one.arrived > 1.0 for one in result.requests if one.opened)

    assert failures(FaultKind.STALE_RECORD) > failures(FaultKind.FREEZE) + 2


def test_a_bad_link_is_of_servers_that_send_to_each_other() -> None:
    relayed = faulty(FaultKind.CUT_LINK, mode=ChainMode.RELAY)
    assert relayed.summary()["repairs"] == 0


def test_what_a_cut_link_held_back_arrives_when_it_is_mended() -> None:
    fault = Fault(FaultKind.CUT_LINK, A, 0.2, 1.5, other=B)
    asked = traffic(output_tokens=40)
    (request,) = simulate(chain(TWO_HALVES, traffic=asked, faults=(fault,)), "petals").requests
    assert (request.repairs, request.tokens) == (0, 40)
    assert request.longest_gap_s == pytest.approx(1.5, abs=0.1)
