"""Operations between a weight and its product: which are followed, which are not."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

import jaxsparse as js
from tests.trace.tracing import X, plan_of, shape, through


ID = lambda w: w

CHANGES = {
    "as it is": (ID, (16, 8), 0),
    "cast": (lambda w: w.astype(jnp.bfloat16), (16, 8), 0),
    "transposed": (lambda w: w.T, (8, 16), 1),
    "merged rows": (lambda w: w.reshape(64, 8), (4, 16, 8), 1),
    "merged after a transpose": (
        lambda w: w.transpose(1, 0, 2).reshape(64, 8),
        (16, 4, 8),
        0,
    ),
    "split rows": (lambda w: w.reshape(4, 16, 8)[0], (64, 8), 0),
    "split and merged again": (
        lambda w: w.reshape(4, 4, 2, 4).reshape(16, 8),
        (16, 8),
        0,
    ),
    "squeezed": (lambda w: w[0, :, :], (1, 16, 8), 1),
    "expanded": (lambda w: w[..., None].reshape(16, 8), (16, 8), 0),
    "aligned slice": (lambda w: w[8:], (24, 8), 0),
    "half of the outputs": (lambda w: w[:, :4], (16, 8), 0),
    "split": (lambda w: jnp.split(w, 2, axis=1)[1], (16, 8), 0),
    "indexed": (lambda w: w[1], (3, 16, 8), 1),
    "indexed by a loop variable": (
        lambda w: lax.dynamic_index_in_dim(w, jnp.int32(1), keepdims=False),
        (3, 16, 8),
        1,
    ),
    "one merged row of blocks": (lambda w: w.reshape(8, 8, 4)[:, 0], (64, 4), None),
    "zero padded": (lambda w: jnp.pad(w, ((4, 0), (0, 0))), (16, 8), 0),
    "masked": (lambda w: jnp.where(w > 0.1, w, 0), (16, 8), 0),
    "masked by a product": (lambda w: w * (w > 0.1), (16, 8), 0),
    "scaled": (lambda w: 0.5 * w / 3.0, (16, 8), 0),
    "normalised": (lambda w: w / jnp.linalg.norm(w, axis=0), (16, 8), 0),
    "fake quantised": (lambda w: jnp.round(w / 0.1) * 0.1, (16, 8), 0),
    "detached": (lax.stop_gradient, (16, 8), 0),
    "named": (
        lambda w: (
            jax.ad_checkpoint.checkpoint_name(w, "w")
            if hasattr(jax, "ad_checkpoint")
            else w
        ),
        (16, 8),
        0,
    ),
    "behind a barrier": (lax.optimization_barrier, (16, 8), 0),
    "tiled as a batch": (
        lambda w: jnp.broadcast_to(w, (3, 16, 8)).reshape(48, 8)[:16],
        (16, 8),
        0,
    ),
    "jit": (jax.jit(lambda w: w.T), (8, 16), 1),
    "remat": (jax.checkpoint(lambda w: w.T), (8, 16), 1),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_leaf_is_followed_through(name):
    change, w, axis = CHANGES[name]
    assert through(change, w).axis == axis


LOST = {
    "sorted": (lambda w: jnp.sort(w, axis=0), "sort"),
    "exponential": (jnp.exp, "exp"),
    "cumulated": (lambda w: jnp.cumsum(w, axis=0), "cumsum"),
    "strided": (lambda w: w[::2], "strided slice"),
    "reversed": (lambda w: w[::-1], "rev"),
    "summed out": (lambda w: w.reshape(2, 8, 8).sum(0), "reduce_sum"),
    "looked up": (lambda w: w[jnp.array([1, 0, 3])], "gathered"),
    "sliced from a dynamic index": (
        lambda w: lax.dynamic_slice(w, (jnp.int32(1), 0), (4, 8)),
        "dynamic_slice",
    ),
    "columns of a merged axis": (
        lambda w: w.reshape(4, 4, 8).transpose(1, 0, 2).reshape(16, 8),
        "mixed axes",
    ),
}


@pytest.mark.parametrize("name", LOST)
def test_what_is_lost_is_dense_and_says_where(name):
    change, reason = LOST[name]
    leaf = through(change)
    assert leaf.pattern is None
    assert reason in leaf.reason


@pytest.mark.parametrize(
    ("change", "w", "ok", "bad"),
    [
        (lambda w: w[8:], (32, 8), "4:8", "8:16"),  # begins at 8
        (lambda w: w[2:10], (16, 8), "1:2", "2:4"),  # begins at 2
        (lambda w: w.reshape(4, 4, 8)[1], (16, 8), "2:4", "4:8"),  # blocks of 4
        (lambda w: w[:, :16].T, (8, 32), "8:16", None),  # ends within the axis
        (lambda w: jnp.pad(w, ((2, 2), (0, 0))), (16, 8), "1:2", "2:4"),
    ],
)
def test_cuts_shift_groups_unless_m_divides_them(change, w, ok, bad):
    assert through(change, w, ok).pattern is not None
    if bad:
        leaf = through(change, w, bad)
        assert leaf.pattern is None
        assert "split at multiples of" in leaf.reason


@pytest.mark.parametrize(
    ("change", "w", "fits"),
    [
        # Blocks of 4 that are summed over as well are the whole axis again,
        (lambda w: w.reshape(4, 4, 8), (16, 8), True),
        (lambda w: w.reshape(8, 4, 8)[2:6], (32, 8), True),
        # but not where the first block that is left begins within a group,
        (lambda w: w.reshape(4, 4, 8)[1:3], (16, 8), False),
        # nor where another axis lies between two blocks.
        (
            lambda w: w.reshape(4, 4, 4, 8).transpose(0, 2, 1, 3).reshape(4, 16, 8),
            (16, 4, 8),
            False,
        ),
        # Behind four rows of zeros each block is no longer consecutive with the next.
        (
            lambda w: jnp.pad(w.reshape(2, 8, 8), ((0, 0), (4, 0), (0, 0))),
            (16, 8),
            False,
        ),
    ],
)
def test_blocks_summed_over_both_axes_hold_groups_of_eight(change, w, fits):
    blocks, within, _ = jax.eval_shape(change, shape(*w)).shape
    fn = lambda p, x: jnp.einsum("bij,ijo->bo", x, change(p["w"]))
    leaf = plan_of(fn, shape(2, blocks, within), w=w, pattern="4:8")
    assert (leaf.pattern is not None) == fits
    assert leaf.axis == 0 if fits else "split at multiples of 4" in leaf.reason


def test_a_leaf_without_weights_is_followed_through_any_reshape():
    fn = lambda p, x: (p["none"].reshape(5, 0).sum(), x @ p["w"])
    params = {"none": shape(0), "w": shape(16, 8)}
    assert js.contraction_axes(fn, params, X) == {"none": None, "w": 0}


def test_fused_kernels_keep_their_axes():
    def fused(p, x):
        query, key, value = jnp.split(x @ p["w"], 3, axis=-1)
        return query * key * value

    assert plan_of(fused, X, w=(16, 24)).axis == 0

    def stacked(p, x):  # one kernel made of two, side by side along the outputs
        return x @ jnp.concatenate([p["w"], p["v"]], axis=1)

    assert plan_of(stacked, X, v=(16, 4)).axis == 0


@pytest.mark.parametrize(
    ("rows", "pattern", "fits"), [(4, "2:4", True), (6, "2:4", False), (6, "1:2", True)]
)
def test_kernels_concatenated_along_the_sum_keep_aligned_groups(rows, pattern, fits):
    fn = lambda p, x: x @ jnp.concatenate([p["v"], p["w"]], axis=0)
    leaf = plan_of(fn, shape(2, 16 + rows), v=(rows, 8), pattern=pattern)
    assert (leaf.pattern is not None) == fits


def test_a_leaf_of_a_sum_is_sparse_once_merged():
    fn = lambda p, x: x @ (p["w"] + p["a"] @ p["b"])
    leaf = plan_of(fn, X, a=(16, 4), b=(4, 8))
    assert leaf.decision == "2:4 along axis 0, until merged"


def test_a_scale_or_a_bias_is_not_what_is_contracted():
    params = {"w": shape(16, 8), "scale": shape(8), "rows": shape(16, 1), "b": shape(8)}
    fn = lambda p, x: x @ (p["w"] * p["scale"] * p["rows"]) + p["b"]
    axes = js.contraction_axes(fn, params, X)
    assert axes == {"w": 0, "scale": None, "rows": None, "b": None}


def test_a_scale_of_rows_is_known_behind_added_axes():
    params = {"w": shape(16, 8), "rows": shape(16)}

    def fn(p, x):
        kernel = p["w"][None] * p["rows"][None, :, None]
        return lax.dot_general(x[None], kernel, (([2], [1]), ([0], [0])))

    assert js.contraction_axes(fn, params, X) == {"w": 0, "rows": None}


def test_a_weight_chosen_by_data_is_gathered():
    index = shape(dtype="int32")
    leaf = plan_of(lambda p, x, i: x @ p["w"][i], X, index, w=(4, 16, 8))
    assert leaf.reason == "gathered"


def test_layers_chosen_by_a_loop_are_a_batch():
    def fn(p, x):
        step = lambda i, x: jnp.tanh(x @ p["w"][i])
        return lax.fori_loop(0, 3, step, x)

    leaf = plan_of(fn, X, w=(3, 16, 16))
    assert (leaf.axis, leaf.batch) == (1, (0,))


def test_results_that_are_no_arrays_are_left_alone():
    assert plan_of(lambda p, x: (x @ p["w"], "done", jnp.tanh), X).axis == 0


def test_an_activation_carries_no_parameter():
    # The bias is a vector and so is the activation: only the kernels are contracted.
    fn = lambda p, x: jnp.tanh(x @ p["a"] + p["bias"]) @ p["b"]
    params = {"a": shape(16, 8), "bias": shape(8), "b": shape(8, 4)}
    assert js.contraction_axes(fn, params, X) == {"a": 0, "bias": None, "b": 0}


def test_a_tied_autoencoder_contracts_both_ways():
    leaf = plan_of(lambda p, x: (x @ p["w"]) @ p["w"].T, X)
    assert leaf.reason == "contracted along axes 0 and 1 by different products"


def test_a_leaf_that_is_not_used_says_so():
    assert plan_of(lambda _, x: x, X).reason == "not used by fn"


def test_a_reshape_in_another_order_is_a_transposition_first():
    """`w.ravel("F")` in the shape of `w.T` is `w.T`: the other axis is summed over."""
    leaf = through(lambda w: w.ravel("F").reshape(16, 8), w=(8, 16))
    assert (leaf.pattern, leaf.axis) == (js.NM(2, 4), 1)
