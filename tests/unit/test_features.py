"""BOLT 9: the table, vectors, dependencies and what two nodes agree on."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from channeld.bolt.features import (
    ASSUMED,
    FEATURES,
    ChannelType,
    Context,
    Feature,
    IncompatibleFeatures,
    NegotiatedFeatures,
    check_compatible,
    decode_features,
    describe,
    encode_features,
    has,
    has_unknown_required,
    in_context,
    missing_dependencies,
    optional,
    required,
    unknown_even,
)
from channeld.node.features import LOCAL_FEATURES, announced

TABLE = json.loads((Path(__file__).parent.parent / "vectors" / "bolt09" / "features.json").read_text())


def test_every_feature_of_the_document_is_there() -> None:
    assert {feature.name: int(feature) for feature in Feature} == {row["name"]: row["even"] for row in TABLE}
    assert set(FEATURES) == set(Feature)


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row["name"])
def test_features_are_as_documented(row: dict[str, Any]) -> None:
    feature = Feature[row["name"]]
    info = FEATURES[feature]
    assert row["odd"] == feature | 1
    assert info.assumed == row["assumed"]
    assert [needed.name for needed in info.dependencies] == row["dependencies"]
    if row["context"]:
        assert info.contexts == {Context(letter) for letter in row["context"]}
    else:
        assert feature in {*ASSUMED, Feature.gossip_queries}, "only there does the table say nothing"


@pytest.mark.parametrize(
    ("data", "bits"),
    [
        ("", set()),
        ("00", set()),
        ("01", {0}),
        ("8000", {15}),
        ("020000", {17}),
        ("0001", {0}),
        ("80" + "00" * 12, {103}),
    ],
)
def test_vectors(data: str, bits: set[int]) -> None:
    assert decode_features(bytes.fromhex(data)) == bits


@given(st.frozensets(st.integers(0, 300)))
def test_vectors_round_trip(bits: frozenset[int]) -> None:
    encoded = encode_features(bits)
    assert decode_features(encoded) == bits
    assert not encoded.startswith(b"\0"), "as short as can be"
    assert decode_features(b"\0\0" + encoded) == bits


def test_either_bit_means_the_feature() -> None:
    both = optional(Feature.option_anchors) | required(Feature.option_simple_close)
    assert both == {23, 60}
    assert has(both, Feature.option_anchors)
    assert has(both, Feature.option_simple_close)
    assert not has(both, Feature.option_splice)


def test_bits_are_presented_only_where_they_belong() -> None:
    bits = optional(Feature.option_anchors, Feature.basic_mpp, Feature.option_payment_metadata) | {1001}
    assert in_context(bits, Context.INIT) == {17, 23}
    assert in_context(bits, Context.INVOICE) == {17, 49}
    assert in_context(bits, Context.CHANNEL_TYPE) == {23}
    assert in_context(bits, Context.CHANNEL_ANNOUNCEMENT) == frozenset()


def test_dependencies() -> None:
    assert missing_dependencies(optional(Feature.option_zeroconf)) == [
        (Feature.option_zeroconf, Feature.option_scid_alias)
    ]
    assert not missing_dependencies(optional(Feature.option_zeroconf) | required(Feature.option_scid_alias))
    assert not missing_dependencies(optional(Feature.basic_mpp)), "payment_secret is assumed"
    assert missing_dependencies(required(Feature.option_simple_close))


OURS = optional(Feature.option_anchors, Feature.option_scid_alias) | required(Feature.option_static_remotekey)


@pytest.mark.parametrize(
    "theirs",
    [
        frozenset(),
        {1001, 23},
        {0, 8, 12, 14, 44},
        {22},
        {22, 23},
        optional(*Feature),
    ],
)
def test_compatible_peers(theirs: frozenset[int]) -> None:
    check_compatible(OURS, frozenset(theirs))


@pytest.mark.parametrize(
    ("ours", "theirs", "sentence"),
    [
        (OURS, {1000}, "the peer requires bit 1000, which we do not support"),
        (OURS, {28, 62}, "the peer requires option_dual_fund, option_splice, which we do not support"),
        (OURS, {51}, "the peer sets option_zeroconf without option_scid_alias, which that needs"),
        (OURS | {26}, {23}, "the peer does not support option_shutdown_anysegwit, which we require"),
    ],
)
def test_incompatible_peers(ours: frozenset[int], theirs: set[int], sentence: str) -> None:
    with pytest.raises(IncompatibleFeatures, match=f"^{sentence}$"):
        check_compatible(ours, frozenset(theirs))


def test_what_is_negotiated() -> None:
    """BOLT 1: offered by both, or required by us."""
    ours = optional(Feature.option_anchors, Feature.option_quiesce) | required(Feature.option_scid_alias)
    negotiated = NegotiatedFeatures(ours, required(Feature.option_anchors) | optional(Feature.option_splice))
    assert negotiated.has(Feature.option_anchors)
    assert negotiated.has(Feature.option_scid_alias)
    assert negotiated.has(Feature.option_static_remotekey)
    assert not negotiated.has(Feature.option_quiesce)
    assert not negotiated.has(Feature.option_splice)


def test_names_for_people() -> None:
    assert describe({12, 23, 101}) == ("option_static_remotekey (required)", "option_anchors", "bit 101")
    assert describe({54, 55}) == ("keysend (required)", "keysend")


def test_what_nobody_here_has_a_name_for() -> None:
    assert unknown_even(frozenset({0, 9, 54, 55, 62, 99, 100, 101, 1000})) == [100, 1000]
    assert unknown_even(frozenset()) == []


@pytest.mark.parametrize("anchors", [False, True])
@pytest.mark.parametrize("scid_alias", [False, True])
@pytest.mark.parametrize("zeroconf", [False, True])
def test_channel_types(anchors: bool, scid_alias: bool, zeroconf: bool) -> None:
    channel_type = ChannelType(anchors, scid_alias, zeroconf)
    bits = {12} | ({22} if anchors else set()) | ({46} if scid_alias else set()) | ({50} if zeroconf else set())
    assert channel_type.features == bits
    assert decode_features(channel_type.to_bytes()) == bits
    assert ChannelType.from_bytes(channel_type.to_bytes()) == channel_type


@pytest.mark.parametrize("bits", [set(), {22}, {13}, {12, 23}, {12, 44}, {12, 1000}, {46}])
def test_undefined_channel_types(bits: set[int]) -> None:
    with pytest.raises(ValueError, match="not a defined channel type"):
        ChannelType.from_bytes(encode_features(bits))


def test_a_channel_type_has_to_be_negotiated() -> None:
    negotiated = NegotiatedFeatures(OURS, optional(Feature.option_anchors))
    assert ChannelType().is_negotiated(negotiated)
    assert not ChannelType(scid_alias=True).is_negotiated(negotiated)


@pytest.mark.parametrize("known", [frozenset(), frozenset({4, 12})])
@given(bits=st.frozensets(st.integers(0, 40)))
def test_unknown_required_bits_are_found_without_listing_them(known: frozenset[int], bits: frozenset[int]) -> None:
    expected = any(not bit & 1 and bit not in known for bit in bits)
    assert has_unknown_required(encode_features(bits), known) == expected


def test_the_longest_vector_costs_linear_time() -> None:
    """Quadratic, this took a quarter of a minute: any stranger's `init` may hold it."""
    vector = b"\xff" * 65_000
    assert len(decode_features(vector)) == 520_000
    assert encode_features(decode_features(vector)) == vector


def test_keysend_is_told_where_others_look_for_it() -> None:
    assert announced(True) - announced(False) == {55}
    assert announced(False) == in_context(LOCAL_FEATURES, Context.NODE_ANNOUNCEMENT)
    assert 55 not in LOCAL_FEATURES, "bLIP 2 has it in node_announcement only"
