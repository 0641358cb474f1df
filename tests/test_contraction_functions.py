"""Group axes of parameters in plain JAX functions; expected by hand."""

import functools
import itertools

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import AxisType, PartitionSpec as P

import jaxsparse as js


def shape(*sizes, dtype="float32"):
    return jax.ShapeDtypeStruct(sizes, dtype)


X = shape(2, 16)
ID = lambda w: w
ORDERS = list(itertools.permutations(range(3)))


def plan_of(fn, *args, w=(16, 8), pattern="2:4", **more):
    """The plan of `params["w"]`, without the size rule."""
    params = {"w": shape(*w), **{name: shape(*s) for name, s in more.items()}}
    params["sure"] = shape(16, 8)  # so that something is always prunable
    return js.plan_sparsity(
        params,
        [js.Rule(".*", pattern, sizes=None)],
        fn=lambda p, *args: (fn(p, *args), jnp.ones((2, 16)) @ p["sure"]),
        args=args,
        dense_head=False,
    )["w"]


def through(change, w=(16, 8), pattern="2:4"):
    """The plan of `w` in `x @ change(w)`."""
    rows = jax.eval_shape(change, shape(*w)).shape[0]
    return plan_of(
        lambda p, x: x @ change(p["w"]), shape(2, rows), w=w, pattern=pattern
    )


DOTS = {
    # name: (dimension numbers with w on the right, shapes of x and w, group axis)
    "plain": ((([1], [0]), ([], [])), (2, 16), (16, 8), 0),
    "transposed": ((([1], [1]), ([], [])), (2, 16), (8, 16), 1),
    "batch first": ((([2], [1]), ([0], [0])), (4, 2, 16), (4, 16, 8), 1),
    "batch last": ((([2], [0]), ([0], [2])), (4, 2, 16), (16, 8, 4), 0),
    "two axes": ((([1, 2], [0, 1]), ([], [])), (2, 4, 16), (4, 16, 8), 1),
    "two axes crossed": ((([1, 2], [2, 0]), ([], [])), (2, 4, 16), (16, 8, 4), 2),
}


@pytest.mark.parametrize("name", DOTS)
def test_dot_general_in_every_dimension_order(name):
    numbers, x, w, axis = DOTS[name]
    right = lambda p, x: lax.dot_general(x, p["w"], numbers)
    assert plan_of(right, shape(*x), w=w).axis == axis
    (a, b), (c, d) = numbers
    left = lambda p, x: lax.dot_general(p["w"], x, ((b, a), (d, c)))
    assert plan_of(left, shape(*x), w=w).axis == axis


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("x_order", ORDERS)
def test_dot_general_with_batch_sum_and_output_in_every_order(order, x_order):
    """`w` has a batch axis of 4, a summed one of 16 and an output of 8, permuted."""
    sizes = {"batch": 4, "sum": 16, "output": 8}
    of_w = [list(sizes)[i] for i in order]
    of_x = [["batch", "sum", "rows"][i] for i in x_order]
    numbers = (
        ([of_x.index("sum")], [of_w.index("sum")]),
        ([of_x.index("batch")], [of_w.index("batch")]),
    )
    x = shape(*({**sizes, "rows": 2}[name] for name in of_x))
    fn = lambda p, x: lax.dot_general(x, p["w"], numbers)
    leaf = plan_of(fn, x, w=tuple(sizes[name] for name in of_w))
    assert leaf.axis == of_w.index("sum")
    assert leaf.batch == (of_w.index("batch"),)
    assert leaf.output == (of_w.index("output"),)


@pytest.mark.parametrize(
    ("spec", "x", "w", "axis"),
    [
        ("bd,dk->bk", (2, 16), (16, 8), 0),
        ("bd,kd->bk", (2, 16), (8, 16), 1),
        ("bsd,hdk->bhsk", (2, 3, 16), (4, 16, 8), 1),
        ("bhsk,hkd->bsd", (2, 4, 3, 16), (4, 16, 8), 1),
        ("bhk,khd->bd", (2, 4, 16), (16, 4, 8), 1),
        ("ebd,edf->ebf", (4, 2, 16), (4, 16, 8), 1),  # a mixture of experts
        ("bd,edf,be->bf", (2, 16), (4, 16, 8), None),
    ],
)
def test_einsum(spec, x, w, axis):
    if axis is None:
        fn = lambda p, x, g: jnp.einsum(spec, x, p["w"], g)
        assert plan_of(fn, shape(*x), shape(2, 4), w=w).axis in (0, 1)
    else:
        fn = lambda p, x: jnp.einsum(spec, x, p["w"])
        assert plan_of(fn, shape(*x), w=w).axis == axis


def test_ragged_dot_contracts_the_middle_axis_of_each_expert():
    fn = lambda p, x, sizes: lax.ragged_dot(x, p["w"], sizes)
    leaf = plan_of(fn, shape(6, 16), shape(4, dtype="int32"), w=(4, 16, 8))
    assert (leaf.axis, leaf.batch, leaf.output) == (1, (0,), (2,))


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
    "cut at a place known later": (
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
        assert "cut" in leaf.reason


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
    assert leaf.reason == "contracted along axes 0 and 1 in different places"


def test_a_leaf_that_is_not_used_says_so():
    assert plan_of(lambda _, x: x, X).reason == "not used by fn"


@jax.custom_vjp
def custom_vjp(x, w):
    return x @ w


custom_vjp.defvjp(lambda x, w: (x @ w, None), lambda _, g: (g, g))


@jax.custom_jvp
def custom_jvp(x, w):
    return x @ w


custom_jvp.defjvp(lambda p, t: (p[0] @ p[1], t[0] @ p[1]))


def scan_over_layers(x, w):
    return lax.scan(lambda x, layer: (jnp.tanh(x @ layer), None), x, w)[0]


def scan_with_constants(x, w):
    return lax.scan(lambda x, _: (jnp.tanh(x @ w), None), x, None, length=3)[0]


def scan_that_carries(x, w):
    return lax.scan(lambda c, _: ((c[0] @ c[1], c[1]), None), (x, w), None, length=3)[
        0
    ][0]


def while_loop(x, w):
    return lax.while_loop(lambda x: jnp.sum(x) < 3, lambda x: x @ w, x)


def while_that_carries(x, w):
    return lax.while_loop(
        lambda c: jnp.sum(c[0]) < 3, lambda c: (c[0] @ c[1], c[1]), (x, w)
    )[0]


def branches(x, w):
    return lax.cond(jnp.sum(x) > 0, lambda: x @ w, lambda: x @ (2 * w))


def one_of_two_weights(x, w):
    chosen = lax.cond(True, lambda w: w, lambda w: -w, w)
    return x @ chosen


@pytest.mark.parametrize(
    ("fn", "w", "axis"),
    [
        (custom_vjp, (16, 16), 0),
        (custom_jvp, (16, 16), 0),
        (jax.jit(lambda x, w: x @ w), (16, 16), 0),
        (jax.checkpoint(lambda x, w: x @ w.T), (16, 16), 1),
        (jax.vmap(lambda x, w: x @ w, in_axes=(0, None)), (16, 16), 0),
        (jax.vmap(lambda x, w: x @ w, in_axes=(None, 0)), (3, 16, 8), 1),
        (jax.vmap(lambda x, w: x @ w, in_axes=(None, 2)), (16, 8, 3), 0),
        (scan_over_layers, (3, 16, 16), 1),
        (scan_with_constants, (16, 16), 0),
        (scan_that_carries, (16, 16), 0),
        (while_loop, (16, 16), 0),
        (while_that_carries, (16, 16), 0),
        (branches, (16, 16), 0),
        (one_of_two_weights, (16, 16), 0),
        (jax.grad(lambda x, w: jnp.sum(x @ w)), (16, 16), 1),  # g @ w.T
    ],
)
def test_into_control_flow_and_transformations(fn, w, axis):
    assert plan_of(lambda p, x: fn(x, p["w"]), X, w=w).axis == axis


@pytest.mark.parametrize(
    ("spec", "shards", "pattern", "fits"),
    [
        (P("i", None), 2, "4:8", True),
        (P("i", None), 2, "8:16", False),  # a group would lie on two shards
        (P(None, "i"), 2, "8:16", True),
    ],
)
def test_inside_shard_map_groups_lie_within_shards(spec, shards, pattern, fits):
    mesh = jax.sharding.AbstractMesh((shards,), ("i",), axis_types=(AxisType.Auto,))
    x_spec = P(None, spec[0])

    @functools.partial(
        jax.shard_map, mesh=mesh, in_specs=(x_spec, spec), out_specs=P(None, spec[1])
    )
    def product(x, w):
        y = x @ w
        return lax.psum(y, "i") if spec[0] else y

    leaf = plan_of(lambda p, x: product(x, p["w"]), X, pattern=pattern)
    assert (leaf.axis == 0) == fits
    if not fits:
        assert "cut at 8" in leaf.reason
