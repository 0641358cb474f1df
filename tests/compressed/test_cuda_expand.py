"""Products with 4:8 and 8:16 weights by the kernel that expands them."""

import jax
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, strategies as st

import jaxsparse as js
from jaxsparse._compressed import cuda_expand
from tests.compressed.layout_oracle import as_compressed, masked, random_mask
from tests.compressed.products import assert_product, problem
from tests.gpu import needs_hopper
from tests.sharding.eight_devices import run_on_eight_devices


PATTERNS = [(4, 8), (8, 16)]

# Rows, k and outputs that reach each tile, with tails in all three.
SHAPES = [
    *[(rows, 1040, 400) for rows in (1, 8, 9, 16, 17, 32, 33, 64, 65, 200)],
    *[(7, 4112, 1040), (12, 2064, 1808), (16, 8208, 528), (60, 2064, 272)],
    *[(10, 528, 3984), (2, 272, 8208), (13, 720, 40016)],  # of two, and one block
    *[(1, 16, 16), (3, 32, 48), (40, 16, 16), (70, 48, 144)],
]


def whole_numbers(rng, rows, k, out, pattern, dtype):
    """Returns operands and their product: partial sums are exact, and rounded once."""
    weight = rng.integers(-3, 4, (k, out)).astype(dtype)
    mask = random_mask(rng, weight.shape, *pattern, 0)
    x = rng.integers(-3, 4, (*rows, k)).astype(dtype)
    exact = x.astype(np.float64) @ masked(weight, mask).astype(np.float64)
    stored = as_compressed(weight, mask, *pattern, 0)
    return x, stored, exact.astype(np.float32).astype(dtype)


@needs_hopper
@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16])
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_whole_numbers_are_exact(shape, pattern, dtype):
    rows, k, out = shape
    rng = np.random.default_rng(rows + k)
    x, stored, exact = whole_numbers(rng, (rows,), k, out, pattern, dtype)
    result = js.nm_matmul(x, stored, implementation="cuda")
    np.testing.assert_array_equal(result, exact)


@needs_hopper
def test_every_mask_of_a_group():
    """All 12,870 masks of 8:16: one for each output of one group, among others."""
    every = np.array([[i >> b & 1 for b in range(16)] for i in range(2**16)], bool)
    mask = np.pad(every[every.sum(1) == 8].T, ((0, 0), (0, -12870 % 16)), mode="edge")
    mask = np.tile(mask, (4, 1))
    weight = np.random.default_rng(0).normal(size=mask.shape).astype(ml_dtypes.bfloat16)
    stored = as_compressed(weight, mask, 8, 16, 0)
    x = np.eye(64, dtype=ml_dtypes.bfloat16)  # the product is the weight
    result = js.nm_matmul(x, stored, implementation="cuda")
    np.testing.assert_array_equal(result, masked(weight, mask))


@needs_hopper
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("shape", SHAPES[::3], ids=str)
def test_products_are_within_one_rounding(shape, pattern):
    rows, k, out = shape
    rng = np.random.default_rng(rows)
    x, weight, stored = problem(rng, (rows,), k, out, ml_dtypes.bfloat16, pattern)
    assert_product(js.nm_matmul(x, stored, implementation="cuda"), x, weight)


@pytest.mark.gpu
@pytest.mark.usefixtures("available")
def test_few_rows_are_the_kernels_by_default():
    rng = np.random.default_rng(0)
    _, _, stored = problem(rng, (1,), 64, 32, ml_dtypes.bfloat16, (8, 16))

    def uses_kernel(rows, **options):
        x = jax.ShapeDtypeStruct((rows, 64), ml_dtypes.bfloat16)
        multiply = jax.jit(lambda x: js.nm_matmul(x, stored, **options))
        traced = multiply.trace(x).lower(lowering_platforms=("cuda",))
        return "jaxsparse_nm_expand" in traced.as_text()

    most = cuda_expand.MAX_ROWS
    assert uses_kernel(most)
    assert not uses_kernel(most + 1)
    assert uses_kernel(most + 1, implementation="cuda")
    assert not uses_kernel(1, implementation="xla")


def test_errors_name_what_the_kernel_does_not_support():
    rng = np.random.default_rng(0)
    x, _, stored = problem(rng, (4,), 64, 32, ml_dtypes.bfloat16, (8, 16))
    small = js.quantize_compressed(stored)
    _, _, half = problem(rng, (4,), 24, 32, ml_dtypes.bfloat16, (4, 8))
    for rows, weight, why in (
        (x, small, "the weight is 8:16 and quantized"),
        (x.astype(np.float32), stored, "the dtype is float32"),
        (x[:, :24], half, "the weight's k of 24 is not a multiple of 16"),
    ):
        with pytest.raises(ValueError, match=rf"'cuda' is not available: {why}"):
            js.nm_matmul(rows, weight, implementation="cuda")


@given(st.integers(1, 10**5), st.integers(1, 2000), st.integers(1, 4000))
def test_every_shape_has_a_tile(rows, groups, sixteens):
    tile = cuda_expand.choose_tile(rows, 16 * groups, 16 * sixteens)
    assert tile.tile_rows in {8, 16, 32, 64}  # as in kernels/nm_expand.cu
    assert tile.blocks in {1, 2, 4, 8}
    assert tile.blocks == 1 or 16 * groups >= 64 * tile.blocks  # no block is idle


SHARDED = """
import jax
import ml_dtypes
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

import jaxsparse as js
from jaxsparse.kernels import cuda_target
from tests.compressed.test_cuda_expand import whole_numbers

cuda_target.unavailable = lambda _: ""
mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
rng = np.random.default_rng(0)
shard = lambda array, spec: jax.device_put(array, NamedSharding(mesh, spec))
multiply = jax.jit(js.nm_matmul)
for pattern, k, rows, columns, sent in (
    ((8, 16), 64, P("a"), P(None, "b"), []),
    ((8, 16), 64, P(None, "b"), P("b"), ["all-reduce"]),
    ((4, 8), 64, P(None, "a"), P("a", "b"), ["all-reduce"]),
    ((8, 16), 48, P(None, "b"), P("b"), ["all-gather"]),  # three groups of 16
    ((4, 8), 48, P(None, "b"), P("b"), ["all-reduce"]),
):
    args = whole_numbers(rng, (8,), k, 128, pattern, ml_dtypes.bfloat16)
    x, stored, exact = args
    placed = jax.tree.map(lambda leaf: shard(leaf, columns), stored)
    text = multiply.lower(shard(x, rows), placed).compile().as_text()
    kinds = ("all-gather", "all-reduce", "all-to-all", "collective-permute")
    found = [kind for kind in kinds if kind in text]
    assert found == sent, (pattern, k, rows, columns, found)
    np.testing.assert_array_equal(multiply(shard(x, rows), placed), exact)
"""


@pytest.mark.sweep
def test_shards_are_multiplied_where_they_are():
    run_on_eight_devices("-c", SHARDED)
