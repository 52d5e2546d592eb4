"""BOLT 8: all its vectors, and frames that arrive cut or are tampered with."""

import json
from pathlib import Path
from typing import Any

import pytest
from coincurve import PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from channeld.bolt.noise import (
    CipherState,
    Decrypter,
    Encrypter,
    Handshake,
    InitiatorHandshake,
    NoiseError,
    ResponderHandshake,
    Session,
)

CASES = json.loads((Path(__file__).parent.parent / "vectors" / "bolt08" / "transport.json").read_text())
HANDSHAKES = [case for case in CASES if case["steps"]]
(MESSAGES,) = (case for case in CASES if "outputs" in case)
KEY, CHAINING_KEY = bytes(range(32)), bytes(range(32, 64))


def handshake_of(case: dict[str, Any]) -> Handshake:
    local_key, ephemeral_key = bytes.fromhex(case["ls.priv"]), bytes.fromhex(case["e.priv"])
    assert PrivateKey(local_key).public_key.format().hex() == case["ls.pub"]
    assert PrivateKey(ephemeral_key).public_key.format().hex() == case["e.pub"]
    if "rs.pub" in case:
        return InitiatorHandshake(local_key, ephemeral_key, bytes.fromhex(case["rs.pub"]))
    return ResponderHandshake(local_key, ephemeral_key)


@pytest.mark.parametrize("case", HANDSHAKES, ids=lambda case: case["name"])
def test_handshake_vectors(case: dict[str, Any]) -> None:
    handshake = handshake_of(case)
    output = handshake.start()
    steps = list(case["steps"])
    while steps:
        step = steps.pop(0)
        if "output" in step:
            assert output.hex() == step["output"]
        elif "input" in step and steps and "error" in steps[0]:
            with pytest.raises(NoiseError) as caught:
                handshake.receive(bytes.fromhex(step["input"]))
            assert caught.value.code == steps.pop(0)["error"].split()[0]
            assert handshake.session is None
        elif "input" in step:
            output = handshake.receive(bytes.fromhex(step["input"]))
        else:
            check_session(handshake.session, step)


def check_session(session: Session | None, step: dict[str, str]) -> None:
    assert session is not None
    assert session.encrypter.cipher.key.hex() == step["sk"]
    assert session.decrypter.cipher.key.hex() == step["rk"]


def test_message_vectors_with_key_rotation() -> None:
    encrypter = Encrypter(CipherState(bytes.fromhex(MESSAGES["sk"]), bytes.fromhex(MESSAGES["ck"])))
    decrypter = Decrypter(CipherState(bytes.fromhex(MESSAGES["sk"]), bytes.fromhex(MESSAGES["ck"])))
    expected = {int(number): output for number, output in MESSAGES["outputs"].items()}
    assert sorted(expected) == [0, 1, 500, 501, 1000, 1001]
    for number in range(1002):
        frame = encrypter.encrypt_message(b"hello")
        if number in expected:
            assert frame.hex() == expected[number]
        assert decrypter.receive(frame) == [b"hello"]


def sessions() -> tuple[Session, Session]:
    initiator = InitiatorHandshake(b"\x11" * 32, b"\x12" * 32, PrivateKey(b"\x21" * 32).public_key.format())
    responder = ResponderHandshake(b"\x21" * 32, b"\x22" * 32)
    act_three = initiator.receive(responder.receive(initiator.start()))
    assert responder.receive(act_three) == b""
    assert initiator.session is not None
    assert responder.session is not None
    return initiator.session, responder.session


def test_both_sides_know_each_other_and_can_talk() -> None:
    ours, theirs = sessions()
    assert ours.remote_node_id == PrivateKey(b"\x21" * 32).public_key.format()
    assert theirs.remote_node_id == PrivateKey(b"\x11" * 32).public_key.format()
    assert theirs.decrypter.receive(ours.encrypter.encrypt_message(b"ping")) == [b"ping"]
    assert ours.decrypter.receive(theirs.encrypter.encrypt_message(b"pong")) == [b"pong"]


def test_a_wrong_node_id_is_noticed_in_act_one() -> None:
    initiator = InitiatorHandshake(b"\x11" * 32, b"\x12" * 32, PrivateKey(b"\x23" * 32).public_key.format())
    with pytest.raises(NoiseError) as caught:
        ResponderHandshake(b"\x21" * 32, b"\x22" * 32).receive(initiator.start())
    assert caught.value.code == "ACT1_BAD_TAG"


@pytest.mark.parametrize("node_id", [b"", b"\x02" * 32, b"\x04" + bytes(32), b"\x02" + b"\xff" * 32])
def test_a_node_id_has_to_be_a_public_key(node_id: bytes) -> None:
    with pytest.raises(ValueError):
        InitiatorHandshake(b"\x11" * 32, b"\x12" * 32, node_id)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.binary(max_size=500), max_size=12), st.lists(st.integers(1, 400), min_size=1, max_size=20))
def test_frames_may_be_cut_anywhere(messages: list[bytes], sizes: list[int]) -> None:
    encrypter, decrypter = Encrypter(CipherState(KEY, CHAINING_KEY)), Decrypter(CipherState(KEY, CHAINING_KEY))
    stream = b"".join(map(encrypter.encrypt_message, messages))
    received = []
    pos = index = 0
    while pos < len(stream):
        size = sizes[index % len(sizes)]
        received += decrypter.receive(stream[pos : pos + size])
        pos, index = pos + size, index + 1
    assert received == messages
    assert decrypter.buffered_bytes == 0


def test_many_frames_in_one_read_across_rotations() -> None:
    encrypter, decrypter = Encrypter(CipherState(KEY, CHAINING_KEY)), Decrypter(CipherState(KEY, CHAINING_KEY))
    messages = [number.to_bytes(2, "big") * (number % 50) for number in range(1800)]
    assert decrypter.receive(b"".join(map(encrypter.encrypt_message, messages))) == messages


def test_the_largest_and_the_smallest_message() -> None:
    encrypter, decrypter = Encrypter(CipherState(KEY, CHAINING_KEY)), Decrypter(CipherState(KEY, CHAINING_KEY))
    frame = encrypter.encrypt_message(bytes(65535))
    assert len(frame) == 65569
    assert decrypter.receive(frame[:-1]) == []
    assert decrypter.buffered_bytes == 65569 - 18 - 1
    assert decrypter.receive(frame[-1:]) == [bytes(65535)]
    with pytest.raises(ValueError, match="65535"):
        encrypter.encrypt_message(bytes(65536))
    assert decrypter.receive(encrypter.encrypt_message(b"")) == [b""], "a refused message uses up no nonce"


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 39), st.integers(1, 255))
def test_a_changed_byte_ends_it(position: int, change: int) -> None:
    encrypter, decrypter = Encrypter(CipherState(KEY, CHAINING_KEY)), Decrypter(CipherState(KEY, CHAINING_KEY))
    frame = bytearray(encrypter.encrypt_message(b"money?"))
    assert len(frame) == 40
    frame[position] ^= change
    with pytest.raises(NoiseError) as caught:
        decrypter.receive(bytes(frame))
    assert caught.value.code == "FRAME_BAD_TAG"


def test_frames_cannot_be_repeated_or_left_out() -> None:
    encrypter = Encrypter(CipherState(KEY, CHAINING_KEY))
    first, second = encrypter.encrypt_message(b"one"), encrypter.encrypt_message(b"two")
    repeated = Decrypter(CipherState(KEY, CHAINING_KEY))
    assert repeated.receive(first) == [b"one"]
    with pytest.raises(NoiseError):
        repeated.receive(first)
    with pytest.raises(NoiseError):
        Decrypter(CipherState(KEY, CHAINING_KEY)).receive(second)
