"""A model returns the same for compressed weights as for masked dense ones."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

import jaxsparse as js


KEY = jax.random.key(0)


def normal(*sizes, seed=0):
    return np.random.default_rng(seed).normal(size=sizes).astype(np.float32)


def compressed(fn, params, *args, pattern="2:4"):
    """Returns masked parameters, the same compressed, and their plan."""
    rules = [js.Rule(".*", pattern, sizes=None)]
    plan = js.plan_sparsity(params, rules, fn=fn, args=args, dense_head=False)
    masked = js.mask_params(params, js.create_masks(params, plan))
    small = js.compress_params(params, plan)
    assert any(isinstance(x, js.Compressed) for x in leaves(small))
    return masked, small, plan


def leaves(tree):
    return jax.tree.leaves(tree, is_leaf=lambda x: isinstance(x, js.Compressed))


def agree(fn, params, *args, pattern="2:4"):
    masked, small, plan = compressed(fn, params, *args, pattern=pattern)
    expected = fn(masked, *args)
    for run in (js.sparse_apply(fn, plan), eqx.filter_jit(js.sparse_apply(fn))):
        jax.tree.map(
            lambda got, wanted: np.testing.assert_allclose(
                got, wanted, rtol=1e-5, atol=1e-5
            ),
            run(small, *args),
            expected,
        )
    return small


@pytest.mark.sweep
@pytest.mark.parametrize("pattern", ["2:4", "4:8", "1:16"])
def test_linen(pattern):
    model, x = nn.Sequential([nn.Dense(32), nn.relu, nn.Dense(16)]), normal(3, 16)
    params = model.init(KEY, x)["params"]
    agree(lambda p, x: model.apply({"params": p}, x), params, x, pattern=pattern)


@pytest.mark.sweep
def test_equinox_whose_weights_are_left_operands():
    net, x = eqx.nn.MLP(16, 16, 32, depth=2, key=KEY), normal(3, 16)
    agree(lambda net, x: jax.vmap(net)(x), net, x)
    agree(lambda net, x: net(x), net, x[0])


@pytest.mark.sweep
def test_attention_in_nnx_and_results_of_any_structure():
    model = nnx.MultiHeadAttention(2, 16, decode=False, rngs=nnx.Rngs(0))
    graph, params = nnx.split(model, nnx.Param)

    def fn(params, x):
        y = nnx.merge(graph, params)(x)
        return {"y": y, "parts": (y.sum(), None), "two": 2}

    agree(fn, params, normal(2, 5, 16))


def test_results_that_are_no_arrays_are_returned_as_they_are():
    fn = lambda p, x, mode: (x @ p["w"], {"mode": mode, "n": 3, "none": None})
    weight, x = normal(16, 16), normal(2, 16)
    rules = [js.Rule("w", "2:4", axis=0)]
    run = js.sparse_apply(fn, rules)
    y, others = run(js.compress_params({"w": weight}, rules), x, mode="eval")
    masked = js.mask_params({"w": weight}, js.create_masks({"w": weight}, rules))
    np.testing.assert_allclose(y, x @ np.asarray(masked["w"]), rtol=1e-5, atol=1e-5)
    assert others == {"mode": "eval", "n": 3, "none": None}
    assert type(others["n"]) is int


@pytest.mark.sweep
def test_convolutions_and_embeddings_are_decompressed():
    params = {"conv": normal(3, 3, 8, 16), "table": normal(16, 8, seed=1)}

    def fn(params, x, ids):
        y = lax.conv_general_dilated(
            x,
            params["conv"],
            (1, 1),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return y @ params["table"], jnp.sin(params["table"])[ids]

    rules = [js.Rule("conv", "2:4", axis=2), js.Rule("table", "2:4", axis=0)]
    plan = js.plan_sparsity(params, rules)
    args = normal(2, 5, 5, 8, seed=2), jnp.array([3, 1])
    masked = js.mask_params(params, js.create_masks(params, plan))
    got = js.sparse_apply(fn, plan)(js.compress_params(params, plan), *args)
    for mine, wanted in zip(got, fn(masked, *args), strict=True):
        np.testing.assert_allclose(mine, wanted, rtol=1e-5, atol=1e-5)


def stack(params, x):
    step = jax.checkpoint(lambda x, w: (jnp.tanh(x @ w), None))
    return lax.scan(step, x, params["w"])[0]


def test_a_scanned_stack_stays_compressed():
    params, x = {"w": normal(3, 16, 16) / 4}, normal(5, 16)
    small = agree(stack, params, x)
    program = jax.make_jaxpr(js.sparse_apply(stack))(small, x)
    (scan,) = [eqn for eqn in program.eqns if eqn.primitive.name == "scan"]
    shapes = {(v.aval.shape, v.aval.dtype.name) for v in scan.invars}
    # Half of the values and one bit per weight: 4 codes of 4 bits are 2 bytes.
    assert {((3, 8, 16), "float32"), ((3, 2, 16), "uint8")} <= shapes
    assert not any(v.aval.shape == (3, 16, 16) for v in scan.invars)


@pytest.mark.sweep
@pytest.mark.parametrize(
    "move",
    [
        lambda w: w.T.reshape(4, 8, 32).transpose(2, 0, 1).reshape(32, 32),
        lambda w: w.reshape(2, 16, 4, 8).reshape(32, 32),
        lambda w: w.astype(jnp.bfloat16).astype(jnp.float32),
        lambda w: -w[None].squeeze(0),
        lambda w: w * jnp.arange(32.0),
        lambda w: w.ravel("F").reshape(32, 32),
        lambda w: lax.reshape(w, (16, 64), (1, 0)).reshape(32, 32),
        lambda w: jnp.concatenate([w[8:], w[:8]]),
        lambda w: lax.cond(w[0, 0] > 9, lambda w: w, lambda w: 2 * w, w),
        lambda w: lax.fori_loop(0, 2, lambda _, w: w * 0.5, w),
    ],
)
def test_weights_that_are_moved_and_changed_before_their_product(move):
    params, x = {"w": normal(32, 32), "sure": normal(32, 8, seed=1)}, normal(5, 32)
    fn = lambda params, x: x @ move(params["w"]) @ params["sure"]
    rules = [js.Rule(".*", "2:4", axis=0)]
    masked = js.mask_params(params, js.create_masks(params, rules))
    small = js.compress_params(params, rules)
    got = js.sparse_apply(fn, rules)(small, x)
    np.testing.assert_allclose(got, fn(masked, x), rtol=1e-4, atol=1e-4)


def test_a_scan_over_the_group_axis_and_weights_as_carries():
    params, x = {"w": normal(16, 16)}, normal(16)

    def fn(params, x):
        rows = lax.scan(lambda c, row: (c + row, row * 2), x, params["w"])
        carried = lax.scan(lambda w, _: (w * 0.5, w.sum()), params["w"], None, length=2)
        return rows, carried

    rules = [js.Rule(".*", "2:4", axis=0)]
    masked = js.mask_params(params, js.create_masks(params, rules))
    got = js.sparse_apply(fn)(js.compress_params(params, rules), x)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    jax.tree.map(close, got, fn(masked, x))


@pytest.mark.sweep
def test_loops_that_carry_a_weight():
    params, x = {"w": normal(16, 16)}, normal(3, 16)

    def scanned(params, x):
        step = lambda carry, x: (2 * params["w"], x @ carry)
        return lax.scan(step, jnp.zeros((16, 16)), jnp.stack([x, x]))

    def repeated(params, x):
        step = lambda carry: (carry[0] + 1, params["w"], x @ carry[1])
        start = 0, jnp.zeros((16, 16)), jnp.zeros((3, 16))
        return lax.while_loop(lambda carry: carry[0] < 3, step, start), x @ params["w"]

    for fn in (scanned, repeated):
        rules = [js.Rule(".*", "2:4", axis=0, sizes=None)]
        small = js.compress_params(params, rules)
        expected = fn({"w": np.asarray(js.decompress(small["w"]))}, x)
        result = jax.jit(js.sparse_apply(fn))(small, x)
        close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
        jax.tree.map(close, result, expected)


@pytest.mark.sweep
def test_gradients_of_the_values_are_those_of_the_kept_weights():
    params, x = {"w": normal(3, 16, 16) / 4}, normal(5, 16)
    masked, small, plan = compressed(stack, params, x)
    loss = lambda params: jnp.sum(stack(params, x) ** 2)
    slopes = jax.grad(loss)(masked)
    expected = js.compress_params(slopes, plan, masks=js.create_masks(params, plan))

    def sparse_loss(values):
        weight = small["w"]
        whole = js.Compressed(values, weight.indices, weight.pattern, weight.axis)
        return jnp.sum(js.sparse_apply(stack)({"w": whole}, x) ** 2)

    result = jax.grad(sparse_loss)(small["w"].values)
    np.testing.assert_allclose(result, expected["w"].values, rtol=1e-4, atol=1e-5)


@pytest.mark.sweep
def test_custom_derivatives_of_functions_without_weights_are_kept():
    @jax.custom_vjp
    def straight(x):
        return jnp.round(x)

    straight.defvjp(lambda x: (jnp.round(x), None), lambda _, slope: (slope,))
    params, rules = {"w": normal(16, 16)}, [js.Rule(".*", "2:4", axis=0)]
    small = js.compress_params(params, rules)
    masked = js.mask_params(params, js.create_masks(params, rules))
    fn = lambda p, x: jnp.sum(jax.nn.relu(straight(3 * x)) @ p["w"])
    for x in (normal(16), np.zeros(16, np.float32)):
        expected = jax.grad(fn, argnums=1)(masked, x)
        result = jax.grad(js.sparse_apply(fn), argnums=1)(small, x)
        np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-5)


def test_int8_products_wrap_as_without_compression():
    weight = (40 * normal(32, 16)).astype(np.int8)
    rules, x = [js.Rule(".*", "2:4", axis=0)], np.full((1, 32), 100, np.int8)
    fn = lambda p, x: x @ p["w"]
    masked = js.mask_params({"w": weight}, js.create_masks({"w": weight}, rules))
    result = js.sparse_apply(fn)(js.compress_params({"w": weight}, rules), x)
    assert result.dtype == jnp.int8
    wide = x.astype(int) @ np.asarray(masked["w"]).astype(int)
    np.testing.assert_array_equal(result, wide.astype(np.int8))


def test_a_leaf_compressed_by_another_plan_is_refused():
    params = {"w": normal(16, 16)}
    small = js.compress_params(params, [js.Rule(".*", "2:4", axis=0)])
    run = js.sparse_apply(lambda p, x: x @ p["w"], [js.Rule(".*", "1:4", axis=0)])
    with pytest.raises(ValueError, match=r"leaf 'w' of shape \(16, 16\) is compressed"):
        run(small, normal(2, 16))


def test_a_leaf_whose_arrays_were_cast_is_refused_without_a_plan():
    small = {"w": js.compress(normal(16, 16), axis=0)}
    cast = jax.tree.map(lambda x: x.astype(jnp.bfloat16), small)
    with pytest.raises(ValueError, match=r"leaf 'w' .*indices of bfloat16, expected"):
        js.sparse_apply(lambda p, x: x @ p["w"])(cast, normal(2, 16))
