import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.cli.text_stream import TextStream, cut_at_stop


def decode(ids):
    """Ids are bytes, so that a character may need several."""
    return bytes(ids).decode("utf-8", errors="replace")


@given(
    st.text(alphabet="abé€", max_size=12),
    st.lists(st.text(alphabet="abé€", min_size=1, max_size=3), max_size=2),
    st.integers(1, 3),
)
def test_what_is_shown_is_the_text_up_to_the_stop(text, stops, step):
    data = list(text.encode())
    stream = TextStream(decode, stops)
    shown = []
    for at in range(0, len(data), step):
        shown.append(stream.put(data[at : at + step]))
        if stream.stopped:
            break
    shown.append(stream.end())
    assert "".join(shown) == cut_at_stop(text, stops)[0]
    assert "\ufffd" not in "".join(shown[:-1])
    assert stream.stopped == any(stop in text for stop in stops)


def test_text_comes_as_soon_as_it_is_certain():
    stream = TextStream(decode, ["###"])
    assert [stream.put(list(piece)) for piece in (b"a#", b"b", b"#", b"#", b"#c")] == [
        "a",
        "#b",
        "",
        "",
        "",
    ]
    assert stream.stopped


@pytest.mark.parametrize(
    ("text", "stops", "expected"),
    [
        ("one. two", [], ("one. two", False)),
        ("one. two", ["."], ("one", True)),
        ("one. two", ["t", "."], ("one", True)),
        ("one. two", ["x"], ("one. two", False)),
    ],
)
def test_cut_at_stop(text, stops, expected):
    assert cut_at_stop(text, stops) == expected
