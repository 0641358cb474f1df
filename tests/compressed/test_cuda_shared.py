"""Stacks and weights that share rows, and weights that a stack of rows shares."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import jaxsparse as js
from tests.compressed.layout_oracle import as_compressed, masked, random_mask
from tests.compressed.test_cuda_joint import count_launches
from tests.compressed.test_cuda_stacks import whole_numbers


@pytest.mark.gpu
@pytest.mark.usefixtures("available")
@pytest.mark.parametrize("name", [None, "int8"])
def test_a_weight_that_all_share_is_not_stacked(name):
    x, stored, _ = whole_numbers(6, 3, 64, 32, ml_dtypes.bfloat16, name)
    other, shared, _ = whole_numbers(1, 3, 64, 48, ml_dtypes.bfloat16, name)
    shared = jax.tree.map(lambda array: array[0], shared)
    one = np.asarray(js.decompress(shared), np.float64)
    each = np.asarray(jax.vmap(js.decompress)(stored), np.float64)
    both = js.sparse_apply(lambda weights, x: [x @ w for w in weights])
    for axis, rows in ((0, x), (None, other[0])):
        fn = jax.vmap(both, ([None, 0, None], axis))
        args = [shared, stored, shared], rows
        assert count_launches(fn, *args) == 3
        for y, w in zip(jax.jit(fn)(*args), [one, each, one], strict=True):
            wanted = np.broadcast_to(rows.astype(np.float64) @ w, y.shape)
            np.testing.assert_array_equal(y, wanted)
        text = jax.jit(fn).lower(*args).as_text()
        assert "6x32x48" not in text  # the stored values of `shared`, six times


@pytest.mark.gpu
@pytest.mark.usefixtures("available")
@pytest.mark.parametrize(
    ("order", "x_shape", "shape", "axis", "moves"),
    [
        ("td,edf->etf", (3, 64), (4, 64, 32), 1, False),
        ("td,edf->tfe", (3, 64), (4, 64, 32), 1, False),
        ("std,endf->sentf", (2, 3, 64), (4, 2, 64, 16), 2, False),
        ("std,esdf->setf", (3, 2, 64), (4, 3, 64, 32), 2, True),  # a batch axis second
        ("tdg,edgf->etf", (3, 8, 16), (4, 8, 16, 32), 2, False),
        ("td,edf->etf", (17, 64), (4, 64, 32), 1, True),  # copies of rows are larger
        ("td,fd->tf", (3, 64), (32, 64), 1, True),
    ],
)
def test_weights_of_the_same_few_rows_stay_in_place(order, x_shape, shape, axis, moves):
    rng = np.random.default_rng(0)
    x, weight = (rng.integers(-2, 3, sizes) for sizes in (x_shape, shape))
    mask = random_mask(rng, shape, 2, 4, axis)
    small = as_compressed(weight.astype(np.float16), mask, 2, 4, axis)
    exact = np.einsum(order, x, masked(weight, mask))
    first, second, result = order.replace("->", ",").split(",")
    swapped = f"{second},{first}->{result}"
    for fn in (
        js.sparse_apply(lambda w, x: jnp.einsum(order, x, w)),
        js.sparse_apply(lambda w, x: jnp.einsum(swapped, w, x)),
    ):
        args = small, x.astype(np.float16)
        np.testing.assert_array_equal(jax.jit(fn)(*args), exact)
        assert count_launches(fn, *args) == 1
        text = jax.jit(fn).trace(*args).lower(lowering_platforms=("cuda",)).as_text()
        lines = [line for line in text.splitlines() if "stablehlo.transpose" in line]
        assert any("xui8>" in line for line in lines) == moves  # the indices


@pytest.mark.gpu
@pytest.mark.usefixtures("available")
@pytest.mark.parametrize("quantizes", [False, True])
def test_weights_of_eight_bits_may_have_the_same_rows(quantizes):
    x, stored, _ = whole_numbers(4, 3, 64, 32, ml_dtypes.bfloat16, "int8")
    x[0, :, 0] = 127  # the largest magnitude, so that quantized rows are exact
    dense = np.asarray(jax.vmap(js.decompress)(stored), np.float64)
    fn = lambda w, x: jnp.einsum("td,edf->etf", x, w)
    run = jax.jit(js.sparse_apply(fn, quantize_activations=quantizes))
    exact = x[0].astype(np.float64) @ dense
    wanted = exact.astype(np.float32).astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(run(stored, x[0]), wanted)
