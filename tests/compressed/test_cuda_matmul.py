"""Products on sparse tensor cores: on a Hopper GPU, and the parts that run anywhere."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

import jaxsparse as js
from jaxsparse._compressed.kernel_choice import choose_kernel
from jaxsparse.kernels import cuda_library, cuda_target
from tests.compressed.layout_oracle import as_compressed, masked, random_mask
from tests.compressed.products import assert_product, problem
from tests.gpu import needs_hopper
from tests.sharding.eight_devices import run_on_eight_devices


# Rows, k and outputs that reach each kernel, with tails in all three.
SHAPES = [
    *[(rows, 1032, 400) for rows in (1, 8, 9, 16, 17, 32, 33, 64, 65, 128, 300)],
    *[(rows, 264, 16384) for rows in (5, 20, 60, 100, 129, 257)],
    *[(rows, 136, 6992) for rows in (200, 500, 1000)],
    (1000, 4104, 6992),  # stages are reused
    *[(7, 4104, 1040), (12, 2056, 1808), (16, 8200, 528)],  # few rows, clusters of four
    *[(10, 1048, 3984), (2, 2024, 2064), (13, 712, 5008)],  # of two, and one block
    *[(rows, 520, 4016) for rows in (60, 200)],  # clusters of three
    *[(rows, 264, 6992) for rows in (60, 200)],  # of two
    (16, 264, 16384),
    *[(rows, k, 2320) for rows in (20, 200) for k in (264, 520)],
    *[(1, 8, 16), (3, 16, 48), (40, 8, 16), (700, 24, 144)],
]


@needs_hopper
@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_whole_numbers_are_exact(shape, dtype):
    rows, k, out = shape
    rng = np.random.default_rng(rows + k)
    weight = rng.integers(-3, 4, (k, out)).astype(dtype)
    mask = random_mask(rng, weight.shape, 2, 4, 0)
    x = rng.integers(-3, 4, (rows, k)).astype(dtype)
    stored = as_compressed(weight, mask, 2, 4, 0)
    result = js.nm_matmul(x, stored, implementation="cuda")
    exact = x.astype(np.float64) @ masked(weight, mask).astype(np.float64)
    np.testing.assert_array_equal(result, exact.astype(np.float32).astype(dtype))


@needs_hopper
@pytest.mark.parametrize("shape", SHAPES[::3], ids=str)
def test_products_are_within_one_rounding(shape):
    rows, k, out = shape
    rng = np.random.default_rng(rows)
    x, weight, stored = problem(rng, (rows,), k, out, ml_dtypes.bfloat16)
    assert_product(js.nm_matmul(x, stored, implementation="cuda"), x, weight)


@needs_hopper
def test_the_default_is_the_kernel_and_xla_for_other_weights():
    rng = np.random.default_rng(0)
    x, _, stored = problem(rng, (4,), 64, 32, ml_dtypes.bfloat16)
    text = jax.jit(js.nm_matmul).lower(x, stored).as_text()
    assert "jaxsparse_nm_matmul" in text
    others = [
        problem(rng, (4,), 64, 32),
        problem(rng, (4,), 64, 24, ml_dtypes.bfloat16),
        problem(rng, (4,), 64, 32, ml_dtypes.bfloat16, (1, 4)),
    ]
    for x, weight, stored in others:
        text = jax.jit(js.nm_matmul).lower(x, stored).as_text()
        assert "jaxsparse_nm_matmul" not in text
        with jax.default_matmul_precision("highest"):  # a GPU's default is TF32
            assert_product(js.nm_matmul(x, stored), x, weight)


@needs_hopper
def test_leading_axes_vmap_scan_and_gradients():
    check_transformations("cuda")


@needs_hopper
def test_a_function_for_the_cpu_uses_xla():
    x, weight, stored = problem(np.random.default_rng(0), (4,), 64, 32, np.float16)
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        assert_product(jax.jit(js.nm_matmul)(x, stored), x, weight)


@pytest.mark.sweep
@pytest.mark.gpu
@pytest.mark.usefixtures("available")
def test_transformations_anywhere():
    check_transformations("cuda")


def check_transformations(implementation, pattern=(2, 4)):
    rng = np.random.default_rng(0)
    multiply = lambda x, w: js.nm_matmul(x, w, implementation=implementation)
    x, weight, stored = problem(rng, (2, 3), 64, 32, ml_dtypes.bfloat16, pattern)
    assert_product(multiply(x, stored), x, weight)
    assert_product(jax.jit(jax.vmap(multiply, (1, None), 1))(x, stored), x, weight)
    assert_product(multiply(x[0, 0], stored), x[0, 0], weight)
    nothing = replace(stored, values=stored.values[:0], indices=stored.indices[:0])
    assert not multiply(x[0, :, :0], nothing).any()

    masks = random_mask(rng, (2, 64, 32), *pattern, 1)
    weights = rng.normal(size=(2, 64, 32)).astype(ml_dtypes.bfloat16)
    stack = as_compressed(weights, masks, *pattern, 1)
    for result in (
        jax.vmap(multiply)(x, stack),
        jax.vmap(multiply, (None, 0))(x, stack),
    ):
        for i in range(2):
            rows = x[i] if result.ndim == 3 else x
            assert_product(result[i], rows, masked(weights, masks)[i])
    _, result = jax.lax.scan(lambda _, w: (None, multiply(x[0], w)), None, stack)
    for i in range(2):
        assert_product(result[i], x[0], masked(weights, masks)[i])

    # d sum(y * c) is c w' for x and, at the positions of the values, x' c for w.
    c = rng.integers(-2, 3, (2, 3, 32)).astype(ml_dtypes.bfloat16)
    loss = lambda x, v: jnp.sum(multiply(x, replace(stored, values=v)) * c)
    for_x, for_values = jax.jit(jax.grad(loss, (0, 1)))(jnp.asarray(x), stored.values)
    assert_product(for_x, c, np.asarray(js.decompress(stored)).T)
    flat = x.reshape(6, 64).astype(np.float64).T @ c.reshape(6, 32).astype(np.float64)
    kept = np.asarray(js.decompress(stored)) != 0
    wanted = as_compressed(flat, kept, *pattern, 0)
    np.testing.assert_allclose(for_values, wanted.values, rtol=2**-8, atol=1e-3)


# As in `kernels/nm_matmul.cu`: rows of a tile, and how many blocks share one.
COMPILED = {
    "few": ({8, 16}, {1, 2, 4}),
    "split": ({32, 64, 128, 256}, {1, 2, 3, 4}),  # with 256 rows at most three
    "whole": ({128, 256}, {1, 2}),  # two with 256 rows only
}


@pytest.mark.sweep
@settings(max_examples=300, deadline=None)
@given(st.integers(1, 10**5), st.integers(1, 4000), st.integers(1, 4000))
def test_every_shape_has_a_kernel(rows, eights, sixteens):
    kernel, tile_rows, blocks, warps, wide = choose_kernel(
        rows, 8 * eights, 16 * sixteens
    )
    all_rows, all_blocks = COMPILED[kernel]
    assert tile_rows in all_rows
    assert blocks in all_blocks
    assert kernel != "few" or rows <= tile_rows
    if kernel == "few":
        assert (warps, wide) in ((8, 1), (8, 2), (16, 1))
        assert blocks == 1 or wide == 1
        assert blocks < 4 or warps == 16
    assert kernel != "whole" or blocks == 1 or tile_rows == 256
    assert kernel != "split" or blocks < 4 or tile_rows < 256
    assert kernel == "whole" or blocks == 1 or 8 * eights >= 128 * blocks


@pytest.mark.sweep
@settings(max_examples=300, deadline=None)
@given(st.integers(1, 16), st.integers(1, 4000), st.integers(1, 4000))
def test_every_shape_of_eight_bits_has_a_kernel(rows, eights, sixteens):
    choice = choose_kernel(rows, 8 * eights, 16 * sixteens, eight_bits=True)
    kernel, tile_rows, blocks, warps, wide = choice
    assert (kernel, warps) == ("few", 8)
    assert tile_rows in {8, 16}
    assert (wide, blocks) in {(1, 1), (1, 2), (1, 4), (2, 1)}


def test_no_block_is_idle():
    # 128 outputs are one tile; its neighbour would be idle.
    assert choose_kernel(65536, 4096, 128) == ("whole", 256, 1, 8, 1)
    assert choose_kernel(4096, 4096, 4096) == ("whole", 256, 2, 8, 1)


SHARDED = """
import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from ml_dtypes import bfloat16

import jaxsparse as js
from jaxsparse.kernels import cuda_target
from tests.compressed.layout_oracle import as_compressed, masked, random_mask

cuda_target.unavailable = lambda _: ""
mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
rng = np.random.default_rng(0)


def whole_numbers(rows, k, out):  # partial sums are exact
    weight, mask = rng.integers(-2, 3, (k, out)), random_mask(rng, (k, out), 2, 4, 0)
    x = rng.integers(-2, 3, (*rows, k))
    stored = as_compressed(weight.astype(bfloat16), mask, 2, 4, 0)
    return x.astype(bfloat16), stored, x @ masked(weight, mask)


x, stored, exact = whole_numbers((8, 4), 64, 128)
shard = lambda array, spec: jax.device_put(array, NamedSharding(mesh, spec))
multiply = jax.jit(js.nm_matmul)
for rows, columns, sent in (
    (P("a"), P(None, "b"), []),
    (P(None, "b"), P(None, "a"), []),
    (P(None, None, "a"), P("a"), ["all-reduce"]),  # k is sharded
    (P("b"), P("a"), ["all-reduce"]),
    (P(), P("a", "b"), ["all-reduce"]),
    (P(None, None, "b"), P(), ["all-reduce"]),
    (P(), P(("a", "b")), ["all-reduce"]),
    (P("a"), P("a"), ["all-gather"]),  # over the axis of the rows, too
    (P("a"), P("a", "b"), ["all-gather"]),
):
    placed = jax.tree.map(lambda leaf: shard(leaf, columns), stored)
    text = multiply.lower(shard(x, rows), placed).compile().as_text()
    kinds = ("all-gather", "all-reduce", "all-to-all", "collective-permute")
    assert [kind for kind in kinds if kind in text] == sent, (rows, columns, sent)
    np.testing.assert_array_equal(multiply(shard(x, rows), placed), exact)
# Partial sums that overflow float16, with a total of zero.
opposite = np.repeat([[200, -200]], 32, 1).astype(np.float16)
high = js.compress(np.full((64, 16), 800, np.float16))
placed = jax.tree.map(lambda leaf: shard(leaf, P("b")), high)
assert not multiply(shard(opposite, P(None, "b")), placed).any()
x, stored, exact = whole_numbers((4,), 40, 32)  # 5 bytes of indices: not divisible
placed = jax.tree.map(lambda leaf: shard(leaf, P()), stored)
np.testing.assert_array_equal(multiply(shard(x, P(None, ("a", "b"))), placed), exact)
"""


@pytest.mark.sweep
def test_shards_of_rows_and_outputs_are_multiplied_where_they_are():
    run_on_eight_devices("-c", SHARDED)


@pytest.fixture
def fresh():
    """Logs and warnings that appear once appear again."""
    cuda_target.unavailable.cache_clear()
    yield
    cuda_target.unavailable.cache_clear()


@pytest.mark.usefixtures("fresh")
@pytest.mark.skipif(jax.default_backend() == "gpu", reason="there is a GPU")
def test_without_a_gpu_xla_is_used_and_logged_once(caplog):
    x, weight, stored = problem(np.random.default_rng(0), (4,), 64, 32, np.float16)
    with caplog.at_level("INFO", "jaxsparse"):
        for _ in range(2):
            assert_product(js.nm_matmul(x, stored), x, weight)
    assert len(caplog.records) == 1
    assert "compute capability 9.0" in caplog.text
    with pytest.raises(ValueError, match=r"'cuda' is not available: .* not a GPU"):
        js.nm_matmul(x, stored, implementation="cuda")


@pytest.mark.usefixtures("fresh")
def test_without_a_compiler_xla_is_used_with_one_warning(monkeypatch):
    def load(_):
        raise cuda_library.BuildError("no CUDA compiler")

    monkeypatch.setattr(cuda_library, "load", load)
    monkeypatch.setattr(cuda_target, "compute_capability", lambda: (9, 0))
    x, weight, stored = problem(np.random.default_rng(0), (4,), 64, 32, np.float16)
    with pytest.warns(UserWarning, match="uses XLA: no CUDA compiler") as said:
        result = [js.nm_matmul(x, stored) for _ in range(2)]
    assert_product(result[1], x, weight)
    assert len(said) == 1


@pytest.mark.parametrize(
    ("k", "out", "dtype", "pattern", "why"),
    [
        (64, 32, np.float16, (1, 4), "the pattern is 1:4"),
        (64, 32, np.float32, (2, 4), "the dtype is float32"),
        (60, 32, np.float16, (2, 4), "not multiples of 8 and 16"),
        (64, 24, np.float16, (2, 4), "not multiples of 8 and 16"),
    ],
)
def test_errors_name_what_the_kernel_does_not_support(k, out, dtype, pattern, why):
    rng = np.random.default_rng(0)
    x, _, stored = problem(rng, (4,), k, out, dtype, pattern)
    with pytest.raises(ValueError, match=why):
        js.nm_matmul(x, stored, implementation="cuda")


def test_more_rows_than_the_kernel_counts_are_refused():
    _, _, stored = problem(np.random.default_rng(0), (4,), 64, 32, np.float16)
    x = jax.ShapeDtypeStruct((2**16, 2**15, 64), np.float16)
    with pytest.raises(
        ValueError, match=r"counts in 32 bits, but x .*\(65536, 32768, 64\)"
    ):
        jax.eval_shape(partial(js.nm_matmul, implementation="cuda"), x, stored)
