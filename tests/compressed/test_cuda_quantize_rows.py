"""Rows quantized in one pass, by the kernel or by XLA, and which way they go."""

from functools import partial

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

import jaxsparse as js
from jaxsparse._compressed.cuda_quantize_rows import choose_threads, cuda_quantize_rows
from tests.compressed import quantization_oracle as oracle
from tests.gpu import needs_gpus, needs_hopper


EIGHT_BITS = ["int8", "float8_e4m3fn"]
BFLOAT16 = ml_dtypes.bfloat16
DTYPES = [BFLOAT16, np.float16]
# The fewest and the most threads, rows that end within their vectors, and rows for XLA.
SHAPES = [
    *[(1, 8), (1, 4096), (3, 14336), (16, 24), (5, 8200), (132, 1024), (2, 65536)],
    *[(4097, 392), (700, 4096), (400, 14336), (133, 65528)],
    *[(3, 17), (200, 4100), (2, 65544), (0, 64)],
]


def is_taken(shape):
    """Whether the kernel quantizes such rows."""
    rows, k = shape
    return rows > 0 and 0 < k <= 65536 and k % 8 == 0


def quantized_and_bits(x, name):
    """The numbers of the kernel in float64, their bits, and the scales."""
    rows, scales = jax.jit(partial(cuda_quantize_rows, dtype=name))(x)
    assert rows.dtype == name
    assert scales.dtype == jnp.float32
    rows = np.asarray(rows)
    return rows.astype(np.float64), rows.view(np.uint8), np.asarray(scales, np.float64)


def assert_quantized(x, name):
    """Every bit as by float64, whose products and quotients are rounded to float32."""
    values, bits, scales = quantized_and_bits(x, name)
    exact = oracle.absmax_scales(x, name, [1])
    np.testing.assert_array_equal(scales, np.maximum(exact, 2.0**-126))
    wide = x.astype(np.float32)
    np.testing.assert_array_equal(values, oracle.quantized(wide, scales, name))
    if name != "int8":
        np.testing.assert_array_equal(bits >> 7, np.signbit(wide))


@needs_hopper
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", EIGHT_BITS)
@pytest.mark.parametrize("shape", [s for s in SHAPES if is_taken(s)], ids=str)
def test_rows_are_rounded_exactly(shape, name, dtype):
    rng = np.random.default_rng(sum(shape))
    x = rng.normal(size=shape) * 2.0 ** rng.integers(-12, 12, (shape[0], 1))
    x = np.where(rng.random(shape) < 0.1, -0.0, x)
    if dtype == np.float16:
        x = np.clip(x, -60000, 60000)
    assert_quantized(x.astype(dtype), name)


@needs_hopper
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", EIGHT_BITS)
def test_every_number_of_sixteen_bits(name, dtype):
    """Each as the largest of a row, and smaller ones beside it, with all ties."""
    numbers = np.arange(2**15, dtype=np.uint16).view(dtype)
    numbers = numbers[np.isfinite(numbers)]
    shares = oracle.E4M3[:: 8 if name == "int8" else 1] / oracle.E4M3[-1]
    ties = (np.arange(16) + 0.5) / 127
    x = numbers.astype(np.float64)[:, None] * np.append(1, np.append(shares, ties))
    x = np.pad(x, ((0, 0), (0, -x.shape[1] % 8))) * [[1], [-1]][0]
    assert_quantized(x.astype(dtype), name)


@needs_hopper
@pytest.mark.parametrize("name", EIGHT_BITS)
@pytest.mark.parametrize("shape", [(6, 4096), (600, 264)], ids=str)
def test_rows_that_are_not_finite_are_not_hidden(shape, name):
    rng = np.random.default_rng(0)
    x = rng.normal(size=shape).astype(BFLOAT16)
    x[1, -1], x[2, 5], x[3], x[4, 1] = np.inf, np.nan, 0, -np.inf
    values, _, scales = quantized_and_bits(x, name)
    np.testing.assert_array_equal(scales[1:5, 0], [np.inf, np.nan, 1, np.inf])
    nan = np.nan if name != "int8" else 0  # int8 has none
    expected = np.zeros((4, shape[1]))
    expected[0, -1], expected[1], expected[3, 1] = nan, nan, nan
    np.testing.assert_array_equal(values[1:5], expected)


@needs_hopper
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(16, 4096), (3, 264)], ids=str)
def test_float8_is_widened(shape, dtype):
    x = np.random.default_rng(0).normal(size=shape).astype(dtype)
    quantize = partial(cuda_quantize_rows, dtype="float8_e4m3fn")
    rows, scales = jax.jit(quantize)(x)
    wide, same = jax.jit(partial(quantize, widened=True))(x)
    assert wide.dtype == dtype
    np.testing.assert_array_equal(scales, same)
    np.testing.assert_array_equal(np.asarray(rows, float), np.asarray(wide, float))


@pytest.mark.gpu
@pytest.mark.usefixtures("available")
@pytest.mark.parametrize("name", EIGHT_BITS)
def test_leading_axes_and_scan(name):
    x = np.random.default_rng(0).normal(size=(3, 2, 64)).astype(BFLOAT16)
    quantize = partial(cuda_quantize_rows, dtype=name)
    scales = oracle.absmax_scales(x, name, [2])
    rows = oracle.quantized(x.astype(np.float32), scales, name)
    over_scan = lambda x: jax.lax.scan(lambda _, row: (None, quantize(row)), None, x)[1]
    for fn in (quantize, over_scan):
        found, found_scales = jax.jit(fn)(x)
        np.testing.assert_array_equal(found_scales, scales)
        np.testing.assert_array_equal(np.asarray(found, np.float64), rows)


def lowered(fn, *args):
    """How often a program for a GPU has the kernel, before XLA sees it."""
    text = jax.jit(fn).trace(*args).lower(lowering_platforms=("cuda",)).as_text()
    return text.count("custom_call @jaxsparse_quantize_rows")


@pytest.mark.usefixtures("available")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_kernel_is_used_for_what_it_takes(shape):
    x = jnp.zeros(shape, jnp.bfloat16)
    assert lowered(partial(cuda_quantize_rows, dtype="int8"), x) == is_taken(shape)


@pytest.mark.usefixtures("available")
def test_products_quantize_by_the_kernel():
    x = jnp.ones((4, 64), jnp.bfloat16)
    dense = np.random.default_rng(0).normal(size=(64, 32)).astype(BFLOAT16)
    stored = js.quantize_compressed(js.compress(dense, "2:4", axis=0), "int8")
    multiply = partial(js.nm_matmul, quantize_activations=True)
    assert lowered(multiply, x, stored) == 1
    assert lowered(js.nm_matmul, x, stored) == 0
    assert lowered(partial(multiply, implementation="xla"), x, stored) == 0
    assert lowered(multiply, x.astype(jnp.float32), stored) == 0


def test_without_a_gpu_xla_quantizes():
    x = jnp.ones((4, 64), jnp.bfloat16)
    if jax.default_backend() != "gpu":
        assert lowered(partial(cuda_quantize_rows, dtype="int8"), x) == 0


@needs_hopper
def test_rows_of_products_apart_are_quantized_once():
    x = jnp.ones((40, 64), jnp.bfloat16)
    rng = np.random.default_rng(0)
    dense = [rng.normal(size=(64, 32)).astype(BFLOAT16) for _ in range(3)]
    small = [js.quantize_compressed(js.compress(w, axis=0), "int8") for w in dense]
    multiply = partial(js.nm_matmul, quantize_activations=True)
    products = jax.jit(lambda weights, x: [multiply(x, w) for w in weights])
    text = products.lower(small, x).compile().as_text()
    assert text.count('custom_call_target="jaxsparse_nm_matmul_bytes"') == 3
    assert text.count('custom_call_target="jaxsparse_quantize_rows"') == 1


@pytest.mark.sweep
@settings(max_examples=300, deadline=None)
@given(st.integers(1, 65536))
def test_a_block_holds_every_row(k):
    threads = choose_threads(k)
    assert threads % 32 == 0
    assert 0 < threads <= 1024
    assert threads * 8 * 8 >= k  # each holds up to eight vectors of eight numbers


@needs_gpus(2)
@pytest.mark.parametrize("spec", [P("a"), P(None, "a"), P()], ids=str)
def test_shards_of_rows(spec):
    """Scales are those of whole rows also if `k` is sharded."""
    x = np.random.default_rng(0).normal(size=(64, 128)).astype(BFLOAT16)
    mesh = jax.make_mesh((2,), ("a",), axis_types=(AxisType.Auto,))
    placed = jax.device_put(x, NamedSharding(mesh, spec))
    rows, scales = jax.jit(partial(cuda_quantize_rows, dtype="int8"))(placed)
    exact = oracle.absmax_scales(x, "int8", [1])
    np.testing.assert_allclose(scales, exact, 2**-22)
    expected = oracle.quantized(x.astype(np.float32), exact, "int8")
    np.testing.assert_allclose(np.asarray(rows, float), expected, 0, 1)
