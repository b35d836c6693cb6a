from hypothesis import given
from hypothesis import strategies as st

from swarm.client.pieces import cut
from swarm.sessions.messages import Want


@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=4).filter(any),
    st.integers(1, 10),
    st.integers(1, 6),
)
def test_every_token_travels_once_and_every_wanted_answer_comes_back(counts, keep, most):
    tokens = [(row, index) for row, count in enumerate(counts) for index in range(count)]
    sent = []
    answered = []
    for piece in cut(tuple(counts), keep, most):
        here = tokens[piece.start : piece.end]
        assert 0 < len(here) <= most
        assert sum(piece.counts) == len(here)
        assert [row for row, count in enumerate(piece.counts) for _ in range(count)] == [
            row for row, _ in here
        ]
        sent += here
        # What a server answers, by the protocol.
        last = [
            here[i] for i in range(len(here)) if i + 1 == len(here) or here[i + 1][0] != here[i][0]
        ]
        came = {Want.NONE: [], Want.LAST: last, Want.ALL: here}[piece.want]
        answered += [came[index] for index in piece.taken]
    assert sent == tokens
    assert answered == [(row, i) for row, i in tokens if i >= counts[row] - keep]


def test_pieces_are_of_equal_size():
    assert [piece.end - piece.start for piece in cut((300,), 1, 256)] == [150, 150]


def test_a_long_prompt_does_not_come_back_in_full():
    pieces = cut((1000,), 5, 256)
    assert [piece.want for piece in pieces] == [Want.NONE] * 4 + [Want.ALL]
    assert [sum(piece.counts) for piece in pieces] == [248, 249, 249, 249, 5]
