"""Products of quantized rows and weights of eight bits by the kernel."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

import jaxsparse as js
from jaxsparse._compressed import cuda_matmul_bytes
from jaxsparse._compressed.kernel_choice import TILES
from tests.compressed import quantization_oracle as oracle
from tests.compressed.layout_oracle import masked, random_mask
from tests.gpu import needs_gpus, needs_hopper
from tests.sharding.eight_devices import run_on_eight_devices


# Rows, k and outputs that reach each tile, with tails in all three.
SHAPES = [
    *[(1, 8, 16), (3, 16, 48), (40, 8, 16), (700, 24, 144), (16, 264, 2320)],
    *[(rows, 1032, 400) for rows in (8, 64, 65, 300)],
    *[(129, 264, 16384), (257, 264, 16400), (1000, 136, 6992)],
    *[(700, 4104, 2448), (4100, 1160, 784)],  # stages are reused
    *[(rows, 392, 20016) for rows in (50, 100, 200)],  # blocks have several tiles
]

EIGHT_BITS = ["int8", "float8_e4m3fn"]
LARGEST = {"int8": 127, "float8_e4m3fn": 448}
BFLOAT16 = ml_dtypes.bfloat16

multiply = partial(js.nm_matmul, implementation="cuda", quantize_activations=True)


def quantized(weight, mask, scales, name, dtype):
    """A stored weight of `weight * scales`, whose values have eight bits."""
    dense = masked(weight, mask).astype(np.float32)
    stored = js.compress(dense, "2:4", axis=0)
    scales = jnp.asarray(scales, jnp.float32)[None]
    values = stored.values.astype(name)  # exact
    return replace(
        stored, values=values, scales=scales, quantized_from=jnp.dtype(dtype)
    )


def whole_numbers(rows, k, out, name, dtype=BFLOAT16, seed=0):
    """`x`, the stored weight, and the exact product, rounded once.

    Each row of `x` has the format's largest number once, so that its scale is one.
    """
    rng = np.random.default_rng(seed + rows + k)
    weight = rng.integers(-3, 4, (k, out))
    mask = random_mask(rng, weight.shape, 2, 4, 0)
    scales = 2.0 ** rng.integers(-6, -3, out)
    x = rng.integers(-3, 4, (rows, k))
    x[np.arange(rows), rng.integers(0, k, rows)] = LARGEST[name]
    x, dense = x.astype(np.float32), masked(weight, mask).astype(np.float32)
    exact = ((x @ dense) * scales).astype(np.float32).astype(dtype)
    return x.astype(dtype), quantized(weight, mask, scales, name, dtype), exact


@needs_hopper
@pytest.mark.parametrize("name", EIGHT_BITS)
def test_each_weight_meets_its_input(name):
    """Row `i` of `x` picks row `i` of the weight; the last rows have no weights."""
    k, out = 256, 128
    rng = np.random.default_rng(0)
    numbers = np.arange(256, dtype=np.uint8).view(name)
    numbers = np.where(np.isnan(numbers.astype(np.float32)), 0, numbers).astype(name)
    weight = rng.permutation(np.resize(numbers, k * out)).reshape(k, out)
    mask = random_mask(rng, weight.shape, 2, 4, 0)
    weight[-8:] = 0
    x = np.eye(k, dtype=BFLOAT16)[:-8]
    x[:, -1] = LARGEST[name]
    stored = quantized(weight, mask, np.ones(out), name, BFLOAT16)
    result = np.asarray(multiply(x, stored), np.float64)
    wanted = masked(weight, mask)[:-8].astype(np.float64)
    wrong = np.argwhere(result != wanted)
    assert not len(wrong), (len(wrong), wrong[:40].tolist())


@needs_hopper
@pytest.mark.parametrize("name", EIGHT_BITS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_whole_numbers_are_exact(shape, name):
    dtype = np.float16 if shape[0] % 2 else BFLOAT16
    x, stored, exact = whole_numbers(*shape, name, dtype)
    np.testing.assert_array_equal(multiply(x, stored), exact)


@needs_hopper
@pytest.mark.parametrize("name", EIGHT_BITS)
@pytest.mark.parametrize(
    ("rows", "k", "outs"),
    [
        (40, 264, (400, 16, 2320)),
        (200, 392, (2320, 272, 144)),
        (300, 1544, (4112, 4112, 16)),
        (1000, 136, (6992, 5008, 16, 400)),  # an odd number of tiles, two blocks share
    ],
)
def test_products_of_one_input_are_exact(rows, k, outs, name):
    x, _, _ = whole_numbers(rows, k, 16, name)
    stored, exact = [], []
    for i, out in enumerate(outs):
        rng = np.random.default_rng(i)
        weight = rng.integers(-3, 4, (k, out))
        mask, scales = (
            random_mask(rng, weight.shape, 2, 4, 0),
            2.0 ** (i - np.ones(out)),
        )
        stored.append(quantized(weight, mask, scales, name, BFLOAT16))
        exact.append(x.astype(np.float64) @ masked(weight, mask) * scales)
    multiply_all = lambda weights, x: [x @ weight for weight in weights]
    run = js.sparse_apply(
        multiply_all, implementation="cuda", quantize_activations=True
    )
    launched = jax.jit(run).lower(stored, x).as_text().count("nm_matmul_bytes")
    assert launched == 1
    for result, wanted in zip(jax.jit(run)(stored, x), exact, strict=True):
        np.testing.assert_array_equal(
            result, wanted.astype(np.float32).astype(BFLOAT16)
        )


@needs_hopper
@pytest.mark.parametrize("tile", TILES, ids=str)
@pytest.mark.parametrize("name", EIGHT_BITS)
def test_every_tile_is_exact(name, tile, monkeypatch):
    monkeypatch.setattr(cuda_matmul_bytes, "choose_tile", lambda *_, **__: tile)
    x, stored, exact = whole_numbers(700, 1544, 2448, name)
    jax.clear_caches()
    np.testing.assert_array_equal(multiply(x, stored), exact)
    jax.clear_caches()


def random_problem(rows, k, out, name, dtype=BFLOAT16):
    """`x`, the stored weight, and both in float64 as they are multiplied.

    Rows are numbers of the format times a power of two, with the largest once, so that
    no implementation of the division rounds them.
    """
    rng = np.random.default_rng(rows)
    weight = (rng.normal(size=(k, out)) * 40).astype(name)
    mask, scales = random_mask(rng, weight.shape, 2, 4, 0), rng.random(out, np.float32)
    x = oracle.rounded(rng.normal(size=(rows, k)) * LARGEST[name] / 4, name)
    x[np.arange(rows), rng.integers(0, k, rows)] = LARGEST[name]
    x = (x * 2.0 ** rng.integers(-12, -4, (rows, 1))).astype(dtype)
    exact_weight = masked(weight, mask).astype(np.float64) * scales
    stored = quantized(weight, mask, scales, name, dtype)
    return x, stored, x.astype(np.float64), exact_weight


@needs_hopper
@pytest.mark.parametrize("name", EIGHT_BITS)
@pytest.mark.parametrize("shape", SHAPES[2::3], ids=str)
def test_products_of_random_numbers(shape, name):
    x, stored, rows, weight = random_problem(*shape, name)
    exact = rows @ weight
    # Both scales round to float32, the result once to bfloat16.
    bound = abs(exact) * (2**-8 + 2**-22)
    if name != "int8":
        bound += tensor_core_bound(rows, weight)
    assert (abs(np.asarray(multiply(x, stored), np.float64) - exact) <= bound).all()


def tensor_core_bound(rows, weight):
    """Bounds the errors of sums of float8, by how tensor cores add.

    They add 32 products to a sum at once: all 33 are cut off 13 bits below the highest
    bit of the largest.
    """
    bound, total = 0, 0
    for k in range(0, weight.shape[0], 64):
        left, right = rows[:, k : k + 64], weight[k : k + 64]
        # No product, and no part of the sum, is larger.
        largest = abs(total) + bound + abs(left) @ abs(right)
        bound = bound + 33 * 2.0**-13 * largest
        total = total + left @ right
    return bound


@needs_hopper
def test_the_default_is_the_kernel():
    x, stored, _ = whole_numbers(200, 64, 32, "int8")
    product = jax.jit(partial(js.nm_matmul, quantize_activations=True))
    assert "jaxsparse_nm_matmul_bytes" in product.lower(x, stored).as_text()
    assert "jaxsparse" not in product.lower(x.astype(np.float32), stored).as_text()


@needs_hopper
@pytest.mark.parametrize("name", EIGHT_BITS)
def test_rows_that_are_not_finite_are_not_hidden(name):
    x, stored, exact = whole_numbers(300, 64, 32, name)
    x[1, 0], x[2, 5], x[3] = np.inf, np.nan, 0
    result = np.asarray(multiply(x, stored), np.float64)
    hidden = np.isnan(result).all(1)
    np.testing.assert_array_equal(np.flatnonzero(hidden), [1, 2])
    assert not result[3].any()
    np.testing.assert_array_equal(result[4:], exact[4:])


@pytest.mark.gpu
@pytest.mark.usefixtures("available")
@pytest.mark.parametrize("name", EIGHT_BITS)
def test_leading_axes_vmap_scan_and_gradients(name):
    x, first, exact = whole_numbers(6, 64, 32, name)
    result = jax.jit(multiply)(x.reshape(2, 3, 64), first)
    np.testing.assert_array_equal(result, exact.reshape(2, 3, 32))
    batched = jax.vmap(multiply, (1, None), 1)(x.reshape(2, 3, 64), first)
    np.testing.assert_array_equal(batched, exact.reshape(2, 3, 32))
    _, second, _ = whole_numbers(6, 64, 32, name, seed=1)
    stack = jax.tree.map(lambda *leaves: jnp.stack(leaves), first, second)
    dense = np.asarray(js.decompress(second), np.float64)
    other = (x.astype(np.float64) @ dense).astype(BFLOAT16)
    wanted = np.stack([exact, other])
    np.testing.assert_array_equal(jax.vmap(multiply, (None, 0))(x, stack), wanted)
    both = jnp.stack([x, x])
    np.testing.assert_array_equal(jax.vmap(multiply)(both, stack), wanted)
    step = lambda _, w: (None, multiply(x, w))
    np.testing.assert_array_equal(jax.lax.scan(step, None, stack)[1], wanted)
    gradient = jax.grad(lambda x: multiply(x, first).astype(jnp.float32).sum())(x)
    sums = np.asarray(js.decompress(first), np.float64).sum(1)
    np.testing.assert_array_equal(gradient, np.tile(sums, (6, 1)).astype(BFLOAT16))


SHARDED = """
import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

from jaxsparse.kernels import cuda_target
from tests.compressed.test_cuda_matmul_bytes import multiply, whole_numbers

cuda_target.unavailable = lambda _: ""
mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
place = lambda array, spec: jax.device_put(array, NamedSharding(mesh, spec))
product = jax.jit(multiply)


def check(count, name, rows, columns, sent):
    x, stored, exact = whole_numbers(count, 64, 128, name)
    of_scales = P(None, *columns[1:])
    placed = jax.tree.map(place, jax.tree.leaves(stored), [columns, columns, of_scales])
    placed = jax.tree.unflatten(jax.tree.structure(stored), placed)
    compiled = product.lower(place(x, rows), placed).compile()
    kinds = ("all-gather", "all-reduce", "all-to-all", "collective-permute")
    found = [kind for kind in kinds if kind in compiled.as_text()]
    assert found == sent, (rows, columns, found)
    # Of a sharded k each part is rounded to eight bits, too.
    result = np.asarray(product(place(x, rows), placed), float)
    error = abs(result - np.asarray(exact, float))
    assert (error <= 2**-6 * abs(np.asarray(exact, float)) + 0.5).all(), error.max()


for count, name in ((32, "int8"), (8, "float8_e4m3fn")):
    check(count, name, P("a"), P(None, "b"), [])
    check(count, name, P(), P(None, ("a", "b")), [])
    check(count, name, P(("a", "b")), P(), [])
    check(count, name, P(None, "b"), P(None, "a"), ["all-reduce"])
    check(count, name, P(None, "a"), P("a"), ["all-reduce"])  # k is sharded
    check(count, name, P(), P("a", "b"), ["all-reduce"])
"""


@pytest.mark.sweep
def test_shards_have_the_scales_of_whole_rows():
    run_on_eight_devices("-c", SHARDED)


@needs_gpus(2)
@pytest.mark.parametrize("rows", [4, 200])
def test_shards_are_multiplied_where_they_are(rows):
    x, stored, exact = whole_numbers(rows, 128, 64, "int8")
    mesh = jax.make_mesh((2,), ("a",), axis_types=(AxisType.Auto,))
    place = lambda x, spec: jax.device_put(x, NamedSharding(mesh, spec))
    for of_x, spec in ((P(), P("a")), (P(), P(None, "a")), (P("a"), P())):
        leaves, tree = jax.tree.flatten(stored)
        specs = [spec, spec, P(None, *spec[1:])]
        placed = tree.unflatten(map(place, leaves, specs))
        result = jax.jit(multiply)(place(x, of_x), placed)
        np.testing.assert_allclose(
            np.asarray(result, float), np.asarray(exact, float), 2**-7, 2**-5
        )
