"""Statistics of transposed convolutions, whose kernels are reversed in space."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

import jaxsparse as js
from tests.calibration.statistics_oracle import collect, normal


def outputs_agree(fn, params, path, x):
    """Sums of squared outputs, by the second moment and by the function itself."""
    statistics = collect(fn, params, x)[path]
    leaf = next(iter(jax.tree.leaves(params)))
    w = np.asarray(statistics.columns.to_matrices(jnp.asarray(leaf)), np.float64)
    moment = np.asarray(statistics.second_moment, np.float64)
    squares = np.einsum("pio,pij,pjo->po", w, moment, w) * statistics.tokens[0]
    expected = np.asarray(fn(params, x), np.float64)
    expected = (expected**2).sum(tuple(range(expected.ndim - 1)))
    np.testing.assert_allclose(squares.ravel(), expected, rtol=2e-5)
    return statistics


@pytest.mark.sweep(keep=["SAME-strides1-True"])
@pytest.mark.parametrize("transposed", [True, False])
@pytest.mark.parametrize("strides", [(1, 1), (2, 3)])
@pytest.mark.parametrize("padding", ["SAME", "VALID"])
def test_linen_transposed_convolutions(transposed, strides, padding):
    model = nn.ConvTranspose(
        8, (3, 2), strides, padding, use_bias=False, transpose_kernel=transposed
    )
    x = normal(2, 5, 4, 16)
    params = model.init(jax.random.key(0), x)["params"]
    fn = lambda params, x: model.apply({"params": params}, x)
    statistics = outputs_agree(fn, params, "kernel", x)
    assert statistics.columns.inputs == (0, 1, 3 if transposed else 2)


@pytest.mark.sweep
def test_an_nnx_transposed_convolution():
    model = nnx.ConvTranspose(
        16, 8, (4,), strides=2, use_bias=False, transpose_kernel=True, rngs=nnx.Rngs(0)
    )
    outputs_agree(lambda model, x: model(x), model, "kernel", normal(2, 5, 16))


def test_the_derivative_of_a_convolution():
    conv = lambda w, x: lax.conv_general_dilated(x, w, (2, 1), ((1, 1), (0, 2)))
    shape = jax.ShapeDtypeStruct((2, 8, 9, 6), jnp.float32)

    def fn(params, y):
        (x,) = jax.linear_transpose(lambda x: conv(params["w"], x), shape)(y)
        return x.transpose(0, 2, 3, 1)

    params = {"w": normal(16, 8, 3, 3, seed=1)}  # (out, in, height, width)
    y = jax.eval_shape(conv, params["w"], shape)
    statistics = outputs_agree(fn, params, "w", normal(*y.shape))
    assert statistics.columns.inputs == (2, 3, 0)


@pytest.mark.parametrize(
    "change",
    [
        lambda w: w[:, ::-1],
        lambda w: w[::-1][::-1],
        lambda w: jnp.flip(w.reshape(4, 4, 8), (0, 1)).reshape(16, 8)[::-1],
        lambda w: jnp.concatenate([w[:, 4:][:, ::-1], w[:, :4]], 1),
    ],
)
def test_outputs_in_another_order_have_the_same_inputs(change):
    x, params = normal(20, 16), {"w": normal(16, 8, seed=1)}
    statistics = collect(lambda p, x: x @ change(p["w"]), params, x)["w"]
    np.testing.assert_allclose(statistics.second_moment[0], x.T @ x / 20, rtol=1e-4)


def test_reversed_inputs_are_read_in_the_order_of_the_leaf():
    """Blocks of a merged axis may be reversed, as long as groups are not."""
    x, params = normal(20, 16), {"w": normal(4, 4, 8, seed=1)}
    fn = lambda p, x: x @ p["w"][::-1].reshape(16, 8)
    statistics = collect(fn, params, x)["w"]
    own = x.reshape(20, 4, 4)[:, ::-1].reshape(20, 16)
    np.testing.assert_allclose(
        statistics.second_moment[0], own.T @ own / 20, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(
    ("kernel", "axis"), [((3, 3, 16, 32), 2), ((3, 3, 32, 16), 3), ((5, 32, 16), 2)]
)
def test_names_tell_a_transposed_kernel_by_its_bias(kernel, axis):
    shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, "float32")
    layer = {"kernel": shape(*kernel), "bias": shape(32)}
    axes = js.flax_axes({"ConvTranspose_0": layer})
    assert axes["ConvTranspose_0"] == {"kernel": axis, "bias": None}
