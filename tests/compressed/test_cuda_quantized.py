"""Products of the kernel with weights of eight bits."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

import jaxsparse as js
from jaxsparse import NM, Compressed
from jaxsparse._compressed import cuda_matmul
from jaxsparse._compressed.kernel_choice import TILES
from tests.compressed.layout_oracle import compressed, masked, random_mask
from tests.compressed.test_cuda_matmul import SHAPES
from tests.gpu import needs_gpus, needs_hopper


EIGHT_BITS = ["int8", "float8_e4m3fn"]


def quantized(weight, mask, scales, name, dtype):
    """A stored weight of `weight * scales`, whose values have eight bits."""
    values, indices = compressed(weight.astype(name), mask, 2, 4, 0)
    return Compressed(
        jnp.asarray(values),
        jnp.asarray(indices),
        NM(2, 4),
        -2,
        jnp.asarray(scales, jnp.float32)[None],
        jnp.dtype(dtype),
    )


def whole_numbers(rows, k, out, name, dtype, seed=0):
    """`x`, the stored weight, and the exact product, which the dtype holds."""
    rng = np.random.default_rng(seed + rows + k)
    weight = rng.integers(-3, 4, (k, out))
    mask, scales = (
        random_mask(rng, weight.shape, 2, 4, 0),
        2.0 ** rng.integers(-2, 3, out),
    )
    x = rng.integers(-3, 4, (rows, k)).astype(dtype)
    exact = x.astype(np.float64) @ masked(weight, mask) * scales
    return x, quantized(weight, mask, scales, name, dtype), exact


@needs_hopper
@pytest.mark.parametrize("name", EIGHT_BITS)
@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_whole_numbers_are_exact(shape, dtype, name):
    x, stored, exact = whole_numbers(*shape, name, dtype)
    result = js.nm_matmul(x, stored, implementation="cuda")
    np.testing.assert_array_equal(result, exact.astype(np.float32).astype(dtype))


@needs_hopper
@pytest.mark.parametrize("tile", TILES, ids=str)
@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16])
@pytest.mark.parametrize("name", EIGHT_BITS)
def test_every_tile_is_exact(name, dtype, tile, monkeypatch):
    monkeypatch.setattr(cuda_matmul, "choose_tile", lambda *_, **__: tile)
    x, stored, exact = whole_numbers(700, 1544, 2448, name, dtype)
    jax.clear_caches()
    result = js.nm_matmul(x, stored, implementation="cuda")
    np.testing.assert_array_equal(result, exact.astype(np.float32).astype(dtype))
    jax.clear_caches()


@needs_hopper
@pytest.mark.parametrize("name", EIGHT_BITS)
@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16])
@pytest.mark.parametrize("rows", [1, 16, 64])
def test_every_number_of_eight_bits_is_widened_exactly(rows, dtype, name):
    numbers = np.arange(256, dtype=np.uint8).view(name)
    numbers = np.where(np.isnan(numbers.astype(np.float32)), 0, numbers).astype(name)
    weight = np.random.default_rng(0).permutation(np.resize(numbers, 64 * 16))
    weight = weight.reshape(64, 16)
    mask = np.tile([[True], [True], [False], [False]], (16, 16))
    stored = quantized(weight, mask, np.ones(16), name, dtype)
    multiply = lambda x: js.nm_matmul(x, stored, implementation="cuda")
    results = [multiply(x) for x in np.split(np.eye(64, dtype=dtype), 64 // rows)]
    wanted = masked(weight, mask).astype(np.float32).astype(dtype)
    np.testing.assert_array_equal(np.concatenate(results), wanted)


@needs_hopper
@pytest.mark.parametrize("name", EIGHT_BITS)
@pytest.mark.parametrize("shape", SHAPES[::3], ids=str)
def test_products_are_within_one_rounding(shape, name):
    rows, k, out = shape
    rng = np.random.default_rng(rows)
    weight = (rng.normal(size=(k, out)) * 40).astype(name)
    mask, scales = random_mask(rng, weight.shape, 2, 4, 0), rng.random(out, np.float32)
    x = rng.normal(size=(rows, k)).astype(ml_dtypes.bfloat16)
    stored = quantized(weight, mask, scales, name, ml_dtypes.bfloat16)
    result = js.nm_matmul(x, stored, implementation="cuda")
    dense = masked(weight, mask).astype(np.float64) * scales
    exact = x.astype(np.float64) @ dense
    # Each addition and the scale round to float32, the result once more.
    added = (k + 1) * 2.0**-23 * (abs(x.astype(np.float64)) @ abs(dense))
    assert (
        abs(np.asarray(result, np.float64) - exact) <= abs(exact) * 2**-8 + added
    ).all()


@needs_hopper
def test_the_default_is_the_kernel_and_xla_for_what_it_lacks():
    x, stored, _ = whole_numbers(4, 64, 32, "int8", ml_dtypes.bfloat16)
    kernel = "jaxsparse_nm_matmul"
    assert kernel in jax.jit(js.nm_matmul).lower(x, stored).as_text()
    groups = replace(stored, scales=jnp.ones((4, 32)))
    assert kernel not in jax.jit(js.nm_matmul).lower(x, groups).as_text()


@pytest.mark.gpu
@pytest.mark.usefixtures("available")
@pytest.mark.parametrize("name", EIGHT_BITS)
def test_leading_axes_vmap_scan_and_gradients(name):
    multiply = lambda x, w: js.nm_matmul(x, w, implementation="cuda")
    dtype = ml_dtypes.bfloat16
    x, first, exact = whole_numbers(6, 64, 32, name, dtype)
    result = jax.jit(multiply)(x.reshape(2, 3, 64), first)
    np.testing.assert_array_equal(result, exact.reshape(2, 3, 32))
    _, second, _ = whole_numbers(6, 64, 32, name, dtype, seed=1)
    stack = jax.tree.map(lambda *leaves: jnp.stack(leaves), first, second)
    wanted = [
        exact,
        x.astype(np.float64) @ np.asarray(js.decompress(second), np.float64),
    ]
    np.testing.assert_array_equal(jax.vmap(multiply, (None, 0))(x, stack), wanted)
    step = lambda _, w: (None, multiply(x, w))
    np.testing.assert_array_equal(jax.lax.scan(step, None, stack)[1], wanted)
    gradient = jax.grad(lambda x: multiply(x, first).astype(jnp.float32).sum())(x)
    sums = np.asarray(js.decompress(first), np.float64).sum(1)
    np.testing.assert_array_equal(gradient, np.tile(sums, (6, 1)))


@needs_gpus(2)
@pytest.mark.parametrize("rows", [4, 64])
def test_shards_are_multiplied_where_they_are(rows):
    x, stored, exact = whole_numbers(rows, 128, 64, "int8", ml_dtypes.bfloat16)
    mesh = jax.make_mesh((2,), ("a",), axis_types=(AxisType.Auto,))
    for spec in (P("a"), P(None, "a")):
        specs = [spec, spec, P(None, *spec[1:])]
        leaves, tree = jax.tree.flatten(stored)
        placed = tree.unflatten(
            jax.device_put(leaf, NamedSharding(mesh, leaf_spec))
            for leaf, leaf_spec in zip(leaves, specs, strict=True)
        )
        result = jax.jit(js.nm_matmul)(
            jax.device_put(x, NamedSharding(mesh, P())), placed
        )
        np.testing.assert_array_equal(result, exact)
