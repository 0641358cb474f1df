"""Leaves without channels against loops over indices, and back."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, strategies as st

from jaxsparse._shrinking.take_out import cuts_of, orders_along, put_back, take_out
from tests.shrinking.by_hand import member
from tests.thorough import thorough


def mask(size, *rows):
    """Bool rows of a size that are True at some indices; one row has no index."""
    masks = np.zeros((len(rows), size), bool)
    for row, indices in zip(masks, rows, strict=True):
        row[list(indices)] = True
    return masks[0] if len(rows) == 1 else masks


W = np.arange(6 * 8.0, dtype=np.float32).reshape(6, 8)


def case(leaf, members, expected):
    return leaf, [(part, np.asarray(kept)) for part, kept in members], expected


CASES = {
    "axis": case(
        W,
        [(member("w", W.shape, 1, "output"), mask(8, [1, 2, 7]))],
        W[:, [1, 2, 7]],
    ),
    "both axes": case(
        W,
        [
            (member("w", W.shape, 1, "output"), mask(8, [0, 5])),
            (member("w", W.shape, 0, "input"), mask(6, [3, 4, 5])),
        ],
        W[[3, 4, 5]][:, [0, 5]],
    ),
    "part of a fused axis": case(
        W,
        [(member("w", W.shape, 1, "output", part=(2, 6)), mask(4, [0, 3]))],
        W[:, [0, 1, 2, 5, 6, 7]],
    ),
    "gate and up in one leaf": case(
        W,
        [
            (member("w", W.shape, 1, "output", part=(0, 4)), mask(4, [1, 2])),
            (member("w", W.shape, 1, "output", part=(4, 8)), mask(4, [1, 2])),
        ],
        W[:, [1, 2, 5, 6]],
    ),
    "minor factor": case(
        W,
        [(member("w", W.shape, 1, "output", view=(6, 2, 4), channel=2), mask(4, [3]))],
        W[:, [3, 7]],
    ),
    "each its own, major": case(
        W,
        [
            (
                member(
                    "w", W.shape, 1, "output", view=(6, 2, 4), channel=2, indices=(1,)
                ),
                mask(4, [0, 3], [1, 2]),
            )
        ],
        W[:, [0, 3, 5, 6]],
    ),
    "each its own, minor": case(
        W,
        [
            (
                member(
                    "w", W.shape, 1, "output", view=(6, 4, 2), channel=1, indices=(2,)
                ),
                mask(4, [0, 3], [1, 2]),  # of even elements, of odd ones
            )
        ],
        # Positions keep the factor: element 0 of both, then element 1 of both.
        W[:, [0, 3, 6, 5]],
    ),
    "stacked layers": case(
        W.reshape(2, 3, 8),
        [
            (
                member("w", (2, 3, 8), 2, "output", indices=(0,)),
                mask(8, [0, 7], [3, 4]),
            )
        ],
        np.stack([W[:3][:, [0, 7]], W[3:][:, [3, 4]]]),
    ),
    "factor within a factor": case(
        W,
        [
            (
                member("w", W.shape, 1, "output", view=(6, 2, 4), channel=1),
                mask(2, [1]),
            ),
            (
                member(
                    "w", W.shape, 1, "output", view=(6, 2, 4), channel=2, indices=(1,)
                ),
                mask(4, [0, 3], [1, 2]),
            ),
        ],
        W[:, [5, 6]],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_kept_is_what_a_loop_keeps(name):
    leaf, members, expected = CASES[name]
    cuts = cuts_of(orders_along(leaf.shape, members))
    np.testing.assert_array_equal(take_out(leaf, cuts), expected)
    smaller = take_out(jnp.asarray(leaf), cuts)
    np.testing.assert_array_equal(smaller, expected)
    back = np.asarray(put_back(smaller, cuts))
    np.testing.assert_array_equal(back, np.where(np.isin(leaf, expected), leaf, 0))
    np.testing.assert_array_equal(put_back(expected, cuts), back)


@st.composite
def cut_leaves(draw):
    """A leaf whose two axes have factors, and members that cut some of these.

    A member may keep other channels for each index of another factor.
    """
    sizes = st.integers(1, 4)
    axes = draw(
        st.lists(st.lists(sizes, min_size=1, max_size=3), min_size=2, max_size=2)
    )
    view = [size for factors in axes for size in factors]
    axis_of = [axis for axis, factors in enumerate(axes) for _ in factors]
    shape = tuple(map(int, map(np.prod, axes)))
    channels = draw(
        st.lists(st.integers(0, len(view) - 1), min_size=1, max_size=2, unique=True)
    )
    members = []
    for channel in channels:
        # Separate for each other they could not both be cut.
        taken = {x.channel for x, _ in members if channel in x.indices}
        others = sorted({*range(len(view))} - {channel} - taken)
        chosen = st.lists(st.sampled_from(others), max_size=2, unique=True)
        indices = tuple(draw(chosen)) if others else ()
        index = [view[factor] for factor in indices]
        count = draw(st.integers(1, view[channel]))
        seed = draw(st.integers(0, 2**16))
        scores = np.random.default_rng(seed).random((*index, view[channel]))
        kept = scores.argsort(-1).argsort(-1) < count
        one = member(
            "w",
            shape,
            axis_of[channel],
            "output",
            view=view,
            channel=channel,
            indices=indices,
        )
        members.append((one, kept))
    return shape, view, members


@thorough(300)
@given(cut_leaves())
def test_any_factors_are_cut_as_by_a_loop_over_elements(case):
    shape, view, members = case
    leaf = np.arange(np.prod(shape)).reshape(shape)
    new_view = list(view)
    for one, kept in members:
        new_view[one.channel] = int(kept.sum(-1).flat[0])
    expected = np.full(new_view, -1)
    for old in np.ndindex(*view):
        new, is_kept = list(old), True
        for one, kept in members:
            row = kept[tuple(old[factor] for factor in one.indices)]
            is_kept &= bool(row[old[one.channel]])
            new[one.channel] = int(row[: old[one.channel]].sum())
        if is_kept:
            expected[tuple(new)] = leaf.reshape(view)[old]
    cuts = cuts_of(orders_along(shape, members))
    smaller = take_out(leaf, cuts)
    np.testing.assert_array_equal(smaller.ravel(), expected.ravel())
    back = put_back(smaller, cuts)
    np.testing.assert_array_equal(back, np.where(np.isin(leaf, smaller), leaf, 0))


def test_groups_that_are_separate_for_each_other_are_not_cut_together():
    first = member("w", (2, 2), 0, "output", indices=(1,))
    second = member("w", (2, 2), 1, "output", indices=(0,))
    members = [(first, mask(2, [0], [1])), (second, mask(2, [0], [0]))]
    with pytest.raises(ValueError, match="axes 0 and 1 that are separate"):
        orders_along((2, 2), members)
