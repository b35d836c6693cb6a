"""Calibrating the simulator from one server alone, and what it predicts then."""

import interference_modules  # noqa: F401
import pytest
from reality import ALONE_PROMPTS, BLOCKS, SWARMS, Alone, Parameters, predicted, solved

KNOWN = Parameters(0.004, 0.0003, 0.002, 0.005, 0.009, 2.0, 0.003, 0.02)


def measured(blocks: int) -> Alone:
    """What one server alone would take by `KNOWN`."""
    first_s = {
        tokens: KNOWN.request_s
        + KNOWN.prompt_hop_s
        + KNOWN.hop_s
        + blocks * (KNOWN.prompt_block_s + tokens * KNOWN.prompt_token_s)
        + KNOWN.client_s
        for tokens in ALONE_PROMPTS
    }
    token_s = KNOWN.client_s + KNOWN.hop_s + blocks * KNOWN.block_s
    return Alone(first_s, KNOWN.request_s + KNOWN.client_s, token_s, KNOWN.client_s)


def test_calibration_finds_what_one_server_alone_shows() -> None:
    found = solved(2, measured(2), BLOCKS, measured(BLOCKS), KNOWN.cores)
    assert vars(found) == pytest.approx(vars(KNOWN))


def test_one_session_over_one_server_takes_what_was_measured() -> None:
    whole = measured(BLOCKS)
    first_s = whole.first_s[ALONE_PROMPTS[0]] + 32 * BLOCKS * KNOWN.prompt_token_s
    # Decode passes come later, so a prompt of 64 tokens is one pass the first time only.
    first, token = predicted(KNOWN, (f"0:{BLOCKS}",), 1)
    assert token == pytest.approx(whole.token_s)
    assert first_s <= first < first_s + 4 * BLOCKS * KNOWN.prompt_block_s


def test_more_sessions_and_hops_take_longer() -> None:
    tokens_s = [[predicted(KNOWN, spans, count)[1] for count in (1, 3)] for spans in SWARMS]
    assert all(one < three for one, three in tokens_s)
    assert [one for one, _ in tokens_s] == sorted(one for one, _ in tokens_s)
