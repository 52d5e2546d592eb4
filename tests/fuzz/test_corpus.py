"""Every fuzz target plays its seeds, what was kept of long runs, and mutations of both."""

from __future__ import annotations

from random import Random

import pytest

from tests.fuzz.target import Reader, Target, all_targets

TARGETS = all_targets()
MUTATIONS = 150


@pytest.mark.parametrize("name", TARGETS)
def test_kept_inputs(name: str) -> None:
    played = 0
    for data in TARGETS[name].inputs():
        _play(TARGETS[name], data)
        played += 1
    assert played, "a target without inputs tests nothing"


@pytest.mark.parametrize("name", TARGETS)
def test_mutations(name: str) -> None:
    target, random = TARGETS[name], Random(name)
    inputs = list(target.inputs())
    for _ in range(MUTATIONS):
        _play(target, _mutated(random, inputs)[: target.max_bytes])


def _play(target: Target, data: bytes) -> None:
    try:
        target.run(data)
    except Exception as error:
        raise AssertionError(f"target {target.name}, input {data.hex()}") from error


def _mutated(random: Random, inputs: list[bytes]) -> bytes:
    data = bytearray(random.choice(inputs))
    for _ in range(random.randint(1, 6)):
        place = random.randint(0, len(data))
        match random.randrange(5):
            case 0 if data:
                data[place % len(data)] ^= 1 << random.randrange(8)
            case 1:
                data[place:place] = random.randbytes(random.choice((1, 2, 4, 8, 32)))
            case 2:
                del data[place : place + random.choice((1, 2, 8, 33))]
            case 3:
                other = random.choice(inputs)
                data[place:] = other[random.randint(0, len(other)) :]
            case _ if data:
                data[place % len(data)] = random.choice((0, 1, 2, 0x7F, 0x80, 0xFC, 0xFD, 0xFE, 0xFF))
    return bytes(data)


def test_what_is_read_from_an_input() -> None:
    reader = Reader(b"\x00\x02abc")
    assert reader.chunk() == b"ab"
    assert reader.left == 1
    assert reader.number(2) == ord("c") << 8
    assert reader.left == 0
    assert reader.rest() == b""
