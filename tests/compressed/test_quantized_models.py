"""A model returns the same for quantized weights as for what they decompress to."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxsparse as js
from jaxsparse._compressed.lax_ops import reshape, transpose
from tests.compressed import quantization_oracle as oracle


def normal(*sizes, seed=0):
    return np.random.default_rng(seed).normal(size=sizes).astype(np.float32)


def planned(fn, params, *args):
    rules = [js.Rule(".*", "2:4", sizes=None)]
    return js.plan_sparsity(params, rules, fn=fn, args=args, dense_head=False)


def is_compressed(leaf):
    return isinstance(leaf, js.Compressed)


MOVES = {
    "transpose and reshape": lambda w: (
        w.T.reshape(4, 8, 32).transpose(2, 0, 1).reshape(32, 32)
    ),
    "a group axis that is split": lambda w: w.reshape(2, 16, 4, 8).reshape(32, 32),
    "casts": lambda w: w.astype(jnp.bfloat16).astype(jnp.float32),
    "sign and views": lambda w: -w[None].squeeze(0),
    "a cast to an integer": lambda w: (4 * w).astype(jnp.int32).astype(jnp.float32),
    "a factor": lambda w: w * jnp.arange(32.0),
    "a branch": lambda w: lax.cond(w[0, 0] > 9, lambda w: w, lambda w: 2 * w, w),
}


@pytest.mark.sweep(whole=True)
@pytest.mark.parametrize("group_size", [None, 16])
@pytest.mark.parametrize("move", MOVES)
def test_weights_that_are_moved_and_changed_before_their_product(move, group_size):
    params, x = {"w": normal(32, 32)}, normal(5, 32)
    fn = lambda params, x: x @ MOVES[move](params["w"])
    small = js.compress(params["w"], axis=0)
    small = {"w": js.quantize_compressed(small, group_size=group_size)}
    got = js.sparse_apply(fn)(small, x)
    # Weights that stay quantized skip the rounding of a cast.
    tolerance = 0.1 if move == "casts" else 1e-4
    expected = fn(js.decompress_params(small), x)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=tolerance)


@pytest.mark.sweep(whole=True, keep=["new1"])
@pytest.mark.parametrize(
    ("options", "old", "new"),
    [
        ({}, (4, 16, 6), (64, 6)),
        ({"contracted": (0,)}, (4, 16, 6), (64, 6)),
        ({"contracted": (0,)}, (4, 16, 6), (2, 32, 2, 3)),
        ({"group_size": 8}, (4, 16, 6), (64, 3, 2)),
        ({"group_size": 16}, (64, 6), (2, 32, 6)),
        ({"group_size": 32}, (2, 96, 6), (4, 48, 6)),
        ({}, (64, 6), (4, 16, 3, 2)),
        ({"contracted": (2,)}, (64, 6), (64, 2, 3)),
    ],
)
def test_reshaped_scales(options, old, new):
    axis = len(old) - 2
    weight = js.compress(normal(*old), axis=axis)
    options = {"contracted": (1,)} if options == {"contracted": (2,)} else options
    small = js.quantize_compressed(weight, **options)
    moved = reshape(small, new)
    expected = np.asarray(js.decompress(small)).reshape(new)
    np.testing.assert_array_equal(js.decompress(moved), expected)
    back = reshape(moved, old)
    np.testing.assert_array_equal(js.decompress(back), js.decompress(small))
    if options == {"contracted": (0,)}:  # still one scale for each output
        assert moved.scales.size == 6


def test_transposed_scales():
    small = js.quantize_compressed(js.compress(normal(4, 16, 6), axis=1), group_size=8)
    expected = np.asarray(js.decompress(small)).transpose(1, 2, 0)
    moved = transpose(small, (1, 2, 0))
    np.testing.assert_array_equal(js.decompress(moved), expected)


def attention(params, x):
    heads = jnp.einsum("btd,dhk->bthk", x, params["value"])
    return jnp.einsum("bthk,hkd->btd", jnp.tanh(heads), params["out"])


@pytest.mark.parametrize("contracted", [(), (0,)])
@pytest.mark.parametrize("quantize_activations", [False, True])
def test_experts(quantize_activations, contracted):
    weight, x = js.compress(normal(3, 16, 8), axis=1), normal(3, 5, 16)
    small = js.quantize_compressed(weight, contracted=(*contracted, 1))
    fn = lambda w, x: jnp.einsum("etd,edf->etf", x, w)
    run = js.sparse_apply(fn, quantize_activations=quantize_activations)
    if quantize_activations:
        scales = oracle.absmax_scales(x, "int8", [-1])
        rows = oracle.quantized(x, scales, "int8") * scales
    else:
        rows = np.asarray(x, np.float64)
    expected = rows @ np.asarray(js.decompress(small), np.float64)
    np.testing.assert_allclose(jax.jit(run)(small, x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.sweep
@pytest.mark.parametrize("quantize_activations", [False, True])
def test_projections_of_attention(quantize_activations):
    params = {"value": normal(16, 2, 8), "out": normal(2, 8, 16, seed=1)}
    x = normal(3, 4, 16, seed=2)
    plan = planned(attention, params, x)
    small = js.compress_params(params, plan, quantize="int8")
    options = {"quantize_activations": quantize_activations}
    got = jax.jit(js.sparse_apply(attention, plan, **options))(small, x)

    def product(x, w):
        if quantize_activations:
            scales = oracle.absmax_scales(x, "int8", [-1])
            x = oracle.quantized(x, scales, "int8") * scales
        return np.asarray(x, np.float64) @ np.asarray(w, np.float64)

    dense = js.decompress_params(small)
    heads = np.tanh(product(x, np.reshape(dense["value"], (16, 16))))
    expected = product(np.float32(heads), np.reshape(dense["out"], (16, 16)))
    # The activations may lie on two sides of a tie.
    tolerance = 0.02 * abs(expected).max() if quantize_activations else 1e-4
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=tolerance)


def stack(params, x):
    step = jax.checkpoint(lambda x, w: (jnp.tanh(x @ w), None))
    return lax.scan(step, x, params["w"])[0]


@pytest.mark.sweep(keep=["False"])
@pytest.mark.parametrize("quantize_activations", [False, True])
def test_a_scanned_stack_stays_quantized(quantize_activations):
    params, x = {"w": normal(3, 16, 16) / 4}, normal(5, 16)
    plan = planned(stack, params, x)
    small = js.compress_params(params, plan, quantize="float8_e4m3fn")
    run = js.sparse_apply(stack, plan, quantize_activations=quantize_activations)
    program = jax.make_jaxpr(run)(small, x)
    (scan,) = [eqn for eqn in program.eqns if eqn.primitive.name == "scan"]
    shapes = {(v.aval.shape, v.aval.dtype.name) for v in scan.invars}
    stored = {((3, 8, 16), "float8_e4m3fn"), ((3, 1, 16), "float32")}
    assert stored <= shapes
    if not quantize_activations:
        expected = stack(js.decompress_params(small), x)
        np.testing.assert_allclose(run(small, x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.sweep
def test_a_scan_over_heads_that_share_scales():
    w, x = normal(4, 16, 8), normal(4, 5, 16)
    small = js.quantize_compressed(js.compress(w, axis=1), contracted=(0,))
    assert small.scales.shape == (1, 1, 8)

    def summed(params, x):
        step = lambda total, head: (total + head[0] @ head[1], None)
        return lax.scan(step, jnp.zeros((5, 8)), (x, params["w"]))[0]

    got = js.sparse_apply(summed)({"w": small}, x)
    expected = np.einsum("hbk,hko->bo", x, np.asarray(js.decompress(small)))
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.sweep
def test_a_cast_leaves_the_weight_quantized_and_skips_a_rounding():
    params, x = {"w": normal(32, 8)}, normal(5, 32).astype(jnp.bfloat16)
    fn = lambda params, x: x @ params["w"].astype(x.dtype)
    small = js.compress_params(params, [js.Rule(".*", "2:4", axis=0)], quantize="int8")
    got = js.sparse_apply(fn)(small, x)
    np.testing.assert_array_equal(got, js.nm_matmul(x, small["w"]))


@pytest.mark.sweep
def test_gradients_flow_through_a_model():
    params, x = {"w": normal(3, 16, 16) / 4}, normal(5, 16)
    small = js.compress_params(params, planned(stack, params, x), quantize="int8")
    dense = js.decompress_params(small)
    got = jax.grad(lambda x: js.sparse_apply(stack)(small, x).sum())(x)
    expected = jax.grad(lambda x: stack(dense, x).sum())(x)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_what_cannot_quantize_activations_says_so():
    small = {"w": js.quantize_compressed(js.compress(normal(2, 16, 16), axis=1))}
    across = lambda params, x: jnp.einsum("ebk,edk->ebd", x, params["w"])
    run = js.sparse_apply(across, quantize_activations=True)
    with pytest.raises(ValueError, match=r"be quantized: .* not contracted; .*False"):
        run(small, normal(2, 5, 16))
    heads = js.quantize_compressed(js.compress(normal(2, 16, 8), axis=1))
    summed = lambda params, x: jnp.einsum("bhk,hko->bo", x, params["w"])
    run = js.sparse_apply(summed, quantize_activations=True)
    with pytest.raises(ValueError, match=r"\(2, 8\): quantize .* in contracted="):
        run({"w": heads}, normal(5, 2, 16))
    plain = {"w": js.compress(normal(16, 8))}
    run = js.sparse_apply(lambda p, x: x @ p["w"], quantize_activations=True)
    with pytest.raises(ValueError, match=r"\(16, 8\) .* is not quantized"):
        run(plain, normal(5, 16))
