"""Products with 4:8 and 8:16 weights by the kernel that expands them."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, strategies as st

import jaxsparse as js
from jaxsparse._compressed.kernel_choice import choose_expanding
from tests.compressed.layout_oracle import as_compressed, masked, random_mask
from tests.compressed.products import assert_product, problem
from tests.compressed.test_cuda_joint import multiply_all
from tests.compressed.test_cuda_matmul import check_transformations
from tests.gpu import needs_hopper
from tests.sharding.eight_devices import run_on_eight_devices


PATTERNS = [(4, 8), (8, 16)]

# As in `kernels/nm_expand.cu`: by the width of a tile, the blocks of a cluster.
COMPILED = {1: {1, 2, 4}, 2: {1, 2}}

# Rows, k and outputs that reach each tile, with tails in all three.
SHAPES = [
    *[(rows, 1040, 400) for rows in (1, 8, 9, 16, 17, 33, 65)],
    *[(7, 4112, 1040), (12, 2064, 1808)],  # clusters of four
    *[(3, 8208, 528), (16, 8208, 528)],  # stages are reused
    *[(2, 528, 3984), (10, 528, 3984)],  # one block
    *[(3, 4112, 4304), (9, 4112, 4304)],  # wide tiles, clusters of two
    *[(5, 1040, 8528), (13, 1040, 8528)],  # one block
    *[(1, 16, 16), (3, 32, 48), (40, 16, 16)],
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


@needs_hopper
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("outs", [(1040, 16, 80, 400), (400, 4304, 16)], ids=str)
@pytest.mark.parametrize("rows", [1, 16])
def test_products_of_one_input(rows, outs, pattern):
    rng = np.random.default_rng(rows)
    dtype = ml_dtypes.bfloat16
    x, *_ = whole_numbers(rng, (rows,), 2064, 16, pattern, dtype)
    weights = [whole_numbers(rng, (1,), 2064, out, pattern, dtype)[1] for out in outs]
    run = jax.jit(js.sparse_apply(multiply_all, implementation="cuda"))
    for result, weight in zip(run(weights, x), weights, strict=True):
        exact = x.astype(np.float64) @ np.asarray(js.decompress(weight), np.float64)
        np.testing.assert_array_equal(result, exact.astype(np.float32).astype(dtype))


@pytest.mark.gpu
@pytest.mark.usefixtures("available")
def test_products_of_one_input_and_pattern_are_one_launch():
    rng = np.random.default_rng(0)
    dtype = ml_dtypes.bfloat16
    x, wide, _ = whole_numbers(rng, (4,), 64, 32, (8, 16), dtype)
    _, narrow, _ = whole_numbers(rng, (4,), 64, 32, (4, 8), dtype)
    run = js.sparse_apply(multiply_all)
    for weights, launches in (([wide, wide], 1), ([wide, narrow], 2)):
        traced = jax.jit(run).trace(weights, x)
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
        assert text.count("custom_call @jaxsparse_nm_expand") == launches


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

    assert uses_kernel(32)
    assert not uses_kernel(33)
    assert uses_kernel(33, implementation="cuda")
    assert not uses_kernel(1, implementation="xla")


@pytest.mark.sweep
@pytest.mark.gpu
@pytest.mark.usefixtures("available")
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_leading_axes_vmap_scan_and_gradients(pattern):
    check_transformations("cuda", pattern)


@pytest.mark.gpu
@pytest.mark.usefixtures("available")
def test_training_on_many_rows_stays_dense():
    kernel = jnp.arange(64 * 64, dtype=jnp.bfloat16).reshape(64, 64)
    params = {"dense": {"kernel": kernel}}
    plan = js.plan_sparsity(params, "4:8 transposable")
    params = js.mask_params(params, js.create_masks(params, plan))
    run = js.accelerate(lambda params, x: x @ params["dense"]["kernel"], plan)

    def count_launches(rows):
        x = jax.ShapeDtypeStruct((rows, 64), jnp.bfloat16)
        traced = jax.jit(run).trace(params, x)
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
        return text.count("custom_call @jaxsparse_nm_expand")

    assert count_launches(32) == 1
    assert count_launches(33) == 0


def test_errors_name_what_the_kernel_does_not_support():
    rng = np.random.default_rng(0)
    x, _, stored = problem(rng, (4,), 64, 32, ml_dtypes.bfloat16, (8, 16))
    small = js.quantize_compressed(stored)
    _, _, half = problem(rng, (4,), 24, 32, ml_dtypes.bfloat16, (4, 8))
    for rows, weight, why in (
        (x, small, "the pattern is 8:16, and the weight is quantized"),
        (x.astype(np.float32), stored, "the dtype is float32"),
        (x[:, :24], half, r"the weight's sizes \(24, 32\) are not multiples of 16"),
    ):
        with pytest.raises(ValueError, match=rf"'cuda' is not available: {why}"):
            js.nm_matmul(rows, weight, implementation="cuda")


@given(st.integers(1, 10**5), st.integers(1, 2000), st.integers(1, 4000))
def test_every_shape_has_a_tile(rows, groups, sixteens):
    tile_rows, blocks, wide = choose_expanding(rows, 16 * groups, 16 * sixteens)
    assert tile_rows == (8 if rows <= 8 else 16)
    assert blocks in COMPILED[wide]
    assert blocks == 1 or 16 * groups >= 512 * blocks  # no warp is idle


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
    ((8, 16), 64, P(), P(("a", "b")), ["all-gather", "all-reduce"]),  # half groups
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
