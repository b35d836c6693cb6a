"""Identities: files, signatures, and agreement with libp2p's own formats."""

import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import base58
import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.errors import UsageError
from swarm.wire.identity import Identity, is_peer_id, public_key, verify

ALICE = Identity(b"a" * 32)
BOB = Identity(b"b" * 32)


def test_a_known_key_has_its_known_peer_id() -> None:
    # From the libp2p specification (peer-ids.md, test vectors): an Ed25519 private key file.
    key_file = bytes.fromhex(
        "08011240"
        "7e0830617c4a7de83925dfb2694556b12936c477a0e1feb2e148ec9da60fee7d"
        "1ed1e8fae2c4a144b8be8fd4b47bf3d3b34b871c3cacf6010f0e42d474fce27e"
    )
    identity = Identity(key_file[4:36])
    assert identity._file_bytes() == key_file
    assert public_key(identity.peer_id) == key_file[36:]
    assert identity.peer_id.startswith("12D3KooW")


@given(st.binary(max_size=200))
def test_only_the_signer_can_sign(data: bytes) -> None:
    signature = ALICE.sign(data)
    assert len(signature) == 64
    assert verify(ALICE.peer_id, data, signature)
    assert not verify(BOB.peer_id, data, signature)
    assert not verify(ALICE.peer_id, data + b"!", signature)
    assert not verify(ALICE.peer_id, data, BOB.sign(data))


@given(st.text(max_size=80), st.binary(max_size=80), st.binary(max_size=80))
def test_junk_is_false_and_not_an_error(peer: str, data: bytes, signature: bytes) -> None:
    assert not verify(peer, data, signature)
    assert not verify(ALICE.peer_id, data, signature)


@given(st.integers(0, 37), st.integers(0, 7))
def test_a_changed_peer_id_is_another_peer_or_none(index: int, bit: int) -> None:
    changed = bytearray(base58.b58decode(ALICE.peer_id))
    changed[index] ^= 1 << bit
    assert not verify(base58.b58encode(bytes(changed)).decode(), b"x", ALICE.sign(b"x"))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1" + ALICE.peer_id,
        ALICE.peer_id + " ",
        ALICE.peer_id[:-1],
        "QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N",
        "\N{LATIN SMALL LETTER A WITH ACUTE}" * 52,
    ],
)
def test_other_texts_are_no_peer_ids(text: str) -> None:
    assert not is_peer_id(text)


def test_the_file_keeps_the_identity_and_is_private(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "identity"
    first = Identity.load_or_create(path)
    assert Identity.load_or_create(path).peer_id == first.peer_id
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(path.parent) == ["identity"]


def test_the_file_is_on_the_disk_before_it_has_its_name_and_the_name_soon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, synced, sync = tmp_path / "identity", [], os.fsync

    def noted(descriptor: int) -> None:
        sync(descriptor)
        what = Path(f"/proc/self/fd/{descriptor}").resolve()
        synced.append((what == tmp_path, path.exists(), os.fstat(descriptor).st_size))

    monkeypatch.setattr(os, "fsync", noted)
    Identity.load_or_create(path)
    (file, folder) = synced
    assert file == (False, False, 68)
    assert folder[:2] == (True, True)
    synced.clear()
    Identity.load_or_create(path)
    assert not synced


def test_programs_that_start_at_once_get_one_identity(tmp_path: Path) -> None:
    path = tmp_path / "identity"
    with ThreadPoolExecutor(8) as pool:
        peers = {each.peer_id for each in pool.map(Identity.load_or_create, [path] * 32)}
    assert len(peers) == 1
    assert os.listdir(tmp_path) == ["identity"]


@pytest.mark.parametrize("content", [b"", b"junk", ALICE._file_bytes()[:-1], b"\0" * 68])
def test_a_damaged_file_is_one_clear_error_and_stays(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "identity"
    path.write_bytes(content)
    with pytest.raises(UsageError, match="not an Ed25519 identity"):
        Identity.load_or_create(path)
    assert path.read_bytes() == content


def test_a_key_file_whose_halves_do_not_fit_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "identity"
    path.write_bytes(ALICE._file_bytes()[:36] + BOB._file_bytes()[36:])
    with pytest.raises(UsageError, match="not an Ed25519 identity"):
        Identity.load(path)


def test_a_place_that_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot write the identity file"):
        Identity.load_or_create(tmp_path / "file" / "identity")
