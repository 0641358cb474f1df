"""Views of the channels in a leaf, against loops over single elements."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsparse._channels import (
    ChannelGroup,
    ChannelGroups,
    ChannelMember,
    read_member,
)
from jaxsparse._channels.member_view import take_channels, write_member


#: A fused projection (4, 20): 8 columns, then values of 3 heads with 4 channels each.
VALUES = ChannelMember("qkv", ((0, 4), (8, 20)), (4, 3, 4), 2, (1,), 1, "output")
#: The channels of stacked layers before the layers: (5 channels, 2 rows, 3 layers).
LAYERS = ChannelMember("w", ((0, 5), (0, 2), (0, 3)), (5, 2, 3), 0, (2,), 0, "input")


def draw(*shape):
    return np.random.default_rng(0).normal(size=shape)


@pytest.mark.parametrize("asarray", [np.asarray, jnp.asarray])
def test_each_head_gets_its_own_permutation(asarray):
    leaf = asarray(draw(4, 20))
    channels = np.array([[3, 2, 1, 0], [0, 1, 2, 3], [1, 2, 3, 0]])
    taken = take_channels(leaf, VALUES, channels)
    assert type(taken) is type(leaf)
    want = np.array(leaf)
    for row in range(4):
        for head in range(3):
            for i in range(4):
                old = leaf[row, 8 + 4 * head + channels[head, i]]
                want[row, 8 + 4 * head + i] = old
    np.testing.assert_array_equal(taken, want)


def test_an_index_may_lie_behind_the_channels():
    leaf, channels = draw(5, 2, 3), np.array([[4, 3], [0, 1], [2, 2]])
    taken = take_channels(leaf, LAYERS, channels)
    assert taken.shape == (2, 2, 3)
    for layer in range(3):
        np.testing.assert_array_equal(
            taken[:, :, layer], leaf[channels[layer], :, layer]
        )


def test_fewer_channels_make_the_axis_shorter():
    leaf = draw(4, 20)
    kept = np.array([[0, 3], [1, 2], [2, 3]])
    taken = take_channels(leaf, VALUES, kept)
    columns = [*range(8), *(8 + 4 * h + c for h in range(3) for c in kept[h])]
    np.testing.assert_array_equal(taken, leaf[:, columns])


def test_what_is_read_and_written_back_is_the_leaf():
    leaf = draw(4, 20)
    view = read_member(leaf, VALUES)
    assert view.shape == (4, 3, 4)
    np.testing.assert_array_equal(write_member(leaf, VALUES, view), leaf)
    zeros = write_member(leaf, VALUES, np.zeros_like(view))
    np.testing.assert_array_equal(zeros[:, :8], leaf[:, :8])
    assert not zeros[:, 8:].any()


def test_it_compiles_once_for_any_permutation():
    take = jax.jit(lambda leaf, p: take_channels(leaf, VALUES, p))
    leaf = draw(4, 20).astype(np.float32)
    for seed in range(3):
        rng = np.random.default_rng(seed)
        channels = np.stack([rng.permutation(4) for _ in range(3)])
        np.testing.assert_array_equal(
            take(leaf, channels), take_channels(leaf, VALUES, channels)
        )
    assert take._cache_size() == 1


@pytest.mark.parametrize("shape", [(4,), (4, 4), (3, 1, 4)])
def test_channels_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"'qkv' must have the shape \(3, '<= 4'\)"):
        take_channels(draw(4, 20), VALUES, np.zeros(shape, np.int32))


def test_groups_are_a_sequence_and_print_as_a_table():
    up = ChannelMember("up", ((0, 2), (0, 8)), (2, 8), 1, (), 1, "output")
    down = ChannelMember("down", ((0, 8), (0, 2)), (8, 2), 0, (), 0, "input")
    hidden = ChannelGroup(8, (), (up, down), "", "")
    heads = ChannelGroup(4, (3,), (VALUES,), "an input of the model", "the same")
    groups = ChannelGroups((hidden, heads))
    assert list(groups) == [groups[0], groups[1]]
    assert len(groups) == 2
    assert groups.of("up", 1) == [hidden]
    assert groups.of("up", 0) == []
    assert str(groups).splitlines() == [
        "group  channels  members         permuted               taken out",
        "0      8         up[1], down[0]  yes                    yes",
        "1      3x4       qkv[1]          an input of the model  no",
    ]


def dense(path, shape, axis):
    """A member that takes the whole of a leaf."""
    slices = tuple((0, size) for size in shape)
    return ChannelMember(path, slices, shape, axis, (), axis, "output")


def test_groups_of_alike_layers_share_a_row():
    width = tuple(
        dense(f"layers.{i}.{name}", (4, 8), axis)
        for i in range(3)
        for name, axis in (("up", 0), ("down", 1))
    )
    groups = [ChannelGroup(4, (), width, "an input of the model", "")]
    for name, channels in {"up": (6, 6, 6), "gate": (6, 6, 7)}.items():
        for i, size in enumerate(channels):
            up = dense(f"layers.{i}.{name}", (4, size), 1)
            down = dense(f"layers.{i}.down", (size, 4), 0)
            groups.append(ChannelGroup(size, (), (up, down), "", ""))
    lines = str(ChannelGroups(tuple(groups))).splitlines()[1:]
    assert [re.split("  +", line)[:3] for line in lines] == [
        ["0", "4", "layers.{0..2}.up[0], layers.{0..2}.down[1]"],
        ["1 and 2 more", "6", "layers.{0..2}.up[1], layers.{0..2}.down[0]"],
        ["4 and 1 more", "6", "layers.{0,1}.gate[1], layers.{0,1}.down[0]"],
        ["6", "7", "layers.2.gate[1], layers.2.down[0]"],
    ]


def test_groups_that_no_one_name_stands_for_have_rows_of_their_own():
    pairs = [(0, 0), (0, 1), (1, 0)]
    groups = tuple(
        ChannelGroup(6, (), (dense(f"stages.{i}.blocks.{j}", (4, 6), 1),), "", "")
        for i, j in pairs
    )
    names = [line.split()[2] for line in str(ChannelGroups(groups)).splitlines()[1:]]
    assert names == [f"stages.{i}.blocks.{j}[1]" for i, j in pairs]
