"""Leaves without channels against loops over indices, and back."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxsparse._shrinking.take_out import cuts_of, orders_along, put_back, take_out
from tests.shrinking.by_hand import member


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
        # Places keep the factor: element 0 of both, then element 1 of both.
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
