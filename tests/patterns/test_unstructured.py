"""The highest scores of whole arrays against a sort in plain Python."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsparse._patterns.ranking import rank_by_magnitude, rank_by_value, rank_within
from jaxsparse._patterns.unstructured import best_unstructured_masks
from tests import reference


def top_mask(ranks, kept):
    """Returns a mask of the highest ranks; of equal ranks the first are kept."""
    order = sorted(range(len(ranks)), key=lambda i: (-ranks[i], i))
    return np.isin(np.arange(len(ranks)), order[:kept])


def draw(dtype, shape, seed):
    rng = np.random.default_rng(seed)
    if jnp.issubdtype(jnp.dtype(dtype), jnp.integer):
        return jnp.asarray(rng.integers(-9, 9, shape), dtype)
    values = rng.normal(size=shape)
    values.flat[:: max(values.size // 4, 1)] = [np.nan, np.inf, -np.inf, 0.0, -0.0][
        : len(values.flat[:: max(values.size // 4, 1)])
    ]
    return jnp.asarray(values, dtype)


@pytest.mark.parametrize(
    "dtype",
    ["float32", "bfloat16", "float16", "float8_e4m3fn", "int8", "int32", "uint32"],
)
def test_it_keeps_the_largest_magnitudes(dtype):
    x = draw(dtype, (3, 4, 5), 0)
    ranks = reference.dense_ranks(np.asarray(x).ravel())
    find = jax.jit(lambda x, k: best_unstructured_masks([rank_by_magnitude(x)], k)[0])
    for kept in (0, 1, 7, 30, 59, 60):
        expected = top_mask(ranks, kept)
        np.testing.assert_array_equal(find(x, jnp.int32(kept)).ravel(), expected)


def test_the_number_kept_may_be_static():
    x = draw("float32", (60,), 0)
    (mask,) = best_unstructured_masks([rank_by_magnitude(x)], 7)
    np.testing.assert_array_equal(
        mask, top_mask(reference.dense_ranks(np.asarray(x)), 7)
    )


def test_several_arrays_share_a_threshold_and_their_ties():
    rng = np.random.default_rng(1)
    arrays = [rng.integers(-3, 4, shape) for shape in ((4, 8), (1, 12), (20,))]
    together = np.concatenate([abs(a).ravel() for a in arrays])
    ranked = [rank_by_magnitude(jnp.asarray(a, jnp.float32)) for a in arrays]
    find = jax.jit(lambda k: best_unstructured_masks(ranked, k))
    for kept in (0, 1, 13, 40, 63, 64):
        masks = find(jnp.int32(kept))
        assert [m.shape for m in masks] == [a.shape for a in arrays]
        joined = np.concatenate([m.ravel() for m in masks])
        np.testing.assert_array_equal(joined, top_mask(together, kept))


def test_signed_scores_and_pruned_weights_rank_in_order():
    scores = jnp.array([-5.0, 3.0, 0.0, -1.0, 3.0, 7.0])
    (mask,) = best_unstructured_masks([rank_by_value(scores)], 3)
    np.testing.assert_array_equal(mask, [0, 1, 0, 0, 1, 1])
    kept = jnp.array([True, False, True, True, True, False])
    (mask,) = best_unstructured_masks([rank_within(rank_by_value(scores), kept)], 3)
    np.testing.assert_array_equal(mask, [0, 0, 1, 1, 1, 0])


def test_a_batch_of_arrays_under_vmap():
    x = draw("float32", (5, 6, 7), 3)
    counts = jnp.array([0, 1, 20, 41, 42])
    find = lambda x, k: best_unstructured_masks([rank_by_magnitude(x)], k)[0]
    masks = jax.jit(jax.vmap(find))(x, counts)
    for row, mask, kept in zip(np.asarray(x), masks, counts, strict=True):
        expected = top_mask(reference.dense_ranks(row.ravel()), int(kept))
        np.testing.assert_array_equal(mask.ravel(), expected)


def test_more_weights_than_can_be_counted_are_refused():
    huge = [
        rank_by_magnitude(jnp.zeros(0))._replace(
            bits=jax.ShapeDtypeStruct((2**31,), "int32")
        )
    ]
    with pytest.raises(ValueError, match="4294967296 weights"):
        best_unstructured_masks(2 * huge, 1)
