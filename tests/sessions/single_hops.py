"""One hop of a session, driven frame by frame."""

from session_samples import CLIENT, HOPS, make_grant

from swarm.sessions.events import Compute, Forward, Free, Instruction, PassDone, Received
from swarm.sessions.hop import HopSession
from swarm.sessions.messages import Fail, Step
from swarm.spans import PeerId


def make_hop(index: int = 1, **kwargs: bool) -> HopSession:
    return HopSession(make_grant(), index, 0.0, **kwargs)


def step_to(hop: HopSession, step: Step, sender: PeerId | None = None) -> list[Instruction]:
    pusher = HOPS[hop.hop - 1] if hop.hop else CLIENT
    return hop.handle(Received(sender or pusher, step, "input"), 0.0)


def run_step(hop: HopSession, step: Step) -> Forward:
    """Take the step and do its pass; its answer."""
    (compute,) = step_to(hop, step)
    assert isinstance(compute, Compute)
    (forward,) = hop.handle(PassDone(step.epoch, step.seq, f"output {step.seq}"), 0.0)
    assert isinstance(forward, Forward)
    return forward


def fail_of(instructions: list[Instruction]) -> Fail:
    assert [type(i) for i in instructions] == [Forward, Free]
    assert isinstance(instructions[0], Forward)
    message = instructions[0].message
    assert isinstance(message, Fail)
    assert instructions[0].to == CLIENT
    return message
