"""Products of one input in one launch: on a Hopper GPU, and what runs anywhere."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import jaxsparse as js
from tests.compressed.layout_oracle import as_compressed, masked, random_mask
from tests.compressed.test_cuda_quantized import quantized
from tests.gpu import needs_hopper
from tests.sharding.eight_devices import run_on_eight_devices


# Rows, k, and the outputs of each weight, with tails in all three, for every number of
# blocks of a cluster.
SHAPES = [
    (1, 1032, (400, 16)),
    (8, 8200, (528, 48, 80)),
    (9, 4104, (1040, 1808, 16, 400)),
    (16, 2056, (1808, 1040)),
    (3, 1048, (3984, 3984)),
    (16, 712, (5008, 5008, 5008)),
    (5, 264, (16384, 6992)),
    (1, 8, (16, 16)),
    (17, 1032, (400, 528)),
    (40, 520, (2320, 400)),
    (64, 4104, (1040, 144, 16)),
    (200, 520, (2320, 272)),
    (300, 264, (6992, 400)),
    (1000, 136, (6992, 5008, 16, 400)),  # an odd number of tiles, and two blocks share
    (100, 264, (5008, 400, 6992)),
]

multiply_all = lambda weights, x: [x @ w for w in weights]


def whole_numbers(rows, k, outs, name, dtype):
    """`x`, the stored weights, and the exact products, which the dtype holds."""
    rng = np.random.default_rng(rows + k)
    x = rng.integers(-3, 4, (rows, k)).astype(dtype)
    weights, exact = [], []
    for out in outs:
        weight = rng.integers(-3, 4, (k, out))
        mask, scales = random_mask(rng, weight.shape, 2, 4, 0), np.ones(out)
        if name is None:
            weights.append(as_compressed(weight.astype(dtype), mask, 2, 4, 0))
        else:
            scales = 2.0 ** rng.integers(-2, 3, out)
            weights.append(quantized(weight, mask, scales, name, dtype))
        exact.append(x.astype(np.float64) @ masked(weight, mask) * scales)
    return x, weights, exact


def count_launches(fn, *args):
    lowered = jax.jit(fn).trace(*args).lower(lowering_platforms=("cuda",))
    return lowered.as_text().count("custom_call @jaxsparse_nm_matmul")


@needs_hopper
@pytest.mark.parametrize("name", [None, "int8", "float8_e4m3fn"])
@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_whole_numbers_are_exact(shape, dtype, name):
    x, weights, exact = whole_numbers(*shape, name, dtype)
    run = js.sparse_apply(multiply_all, implementation="cuda")
    for result, wanted in zip(jax.jit(run)(weights, x), exact, strict=True):
        np.testing.assert_array_equal(result, wanted.astype(np.float32).astype(dtype))


@pytest.mark.gpu
@pytest.mark.usefixtures("available")
@pytest.mark.parametrize("name", [None, "int8"])
def test_products_of_one_input_are_one_launch(name):
    x, weights, exact = whole_numbers(6, 64, (32, 48, 16), name, ml_dtypes.bfloat16)
    run = js.sparse_apply(multiply_all)
    assert count_launches(run, weights, x) == 1
    assert count_launches(run, weights * 2, x) == 2  # at most four weights in each
    for result, wanted in zip(jax.jit(run)(weights, x), exact, strict=True):
        np.testing.assert_array_equal(result, wanted)
    batched = jax.jit(jax.vmap(run, (None, 0)))(weights, x.reshape(2, 3, 64))
    for result, wanted in zip(batched, exact, strict=True):
        np.testing.assert_array_equal(result, wanted.reshape(2, 3, -1))
    stacks = [jax.tree.map(lambda *w: jnp.stack(w), w, w) for w in weights]

    def scan(stacks, x):
        return jax.lax.scan(lambda _, w: (None, multiply_all(w, x)), None, stacks)[1]

    scanned = js.sparse_apply(scan)
    assert count_launches(scanned, stacks, x) == 1
    for results in (
        jax.jit(jax.vmap(run, (0, None)))(stacks, x),
        jax.jit(scanned)(stacks, x),
    ):
        for result, wanted in zip(results, exact, strict=True):
            np.testing.assert_array_equal(result, np.stack([wanted, wanted]))


@pytest.mark.gpu
@pytest.mark.usefixtures("available")
def test_weights_stored_in_different_ways_are_launched_apart():
    dtype = ml_dtypes.bfloat16
    x, (wide,), _ = whole_numbers(4, 64, (32,), None, dtype)
    _, (byte,), _ = whole_numbers(4, 64, (32,), "int8", dtype)
    dense = jnp.ones((64, 32), dtype)
    assert count_launches(js.sparse_apply(multiply_all), [wide, dense, byte], x) == 2


@pytest.mark.gpu
@pytest.mark.usefixtures("available")
def test_gradients_are_those_of_the_products_alone():
    # d sum(x w c) is c w' for x and, at the positions of the values, x' c for w.
    x, weights, _ = whole_numbers(4, 64, (32, 16), None, ml_dtypes.bfloat16)
    rng = np.random.default_rng(0)
    c = [rng.integers(-2, 3, (4, out)) for out in (32, 16)]

    def loss(x, values):
        own = [replace(w, values=v) for w, v in zip(weights, values, strict=True)]
        products = js.sparse_apply(multiply_all)(own, x)
        pairs = zip(products, c, strict=True)
        return sum(jnp.sum(y.astype(jnp.float32) * factor) for y, factor in pairs)

    values = [weight.values for weight in weights]
    for_x, for_values = jax.jit(jax.grad(loss, (0, 1)))(jnp.asarray(x), values)
    dense = [np.asarray(js.decompress(w), np.float64) for w in weights]
    wanted = sum(f @ w.T for f, w in zip(c, dense, strict=True))
    np.testing.assert_array_equal(for_x, wanted)
    for weight, factor, gradient in zip(weights, c, for_values, strict=True):
        kept = js.decompress(replace(weight, values=np.ones_like(weight.values)))
        by_weight = x.astype(np.float64).T @ factor
        wanted = as_compressed(by_weight, np.asarray(kept) != 0, 2, 4, 0)
        np.testing.assert_array_equal(gradient, wanted.values)


SHARDED = """
import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from ml_dtypes import bfloat16

import jaxsparse as js
from jaxsparse.kernels import cuda_target
from tests.compressed.test_cuda_joint import multiply_all, whole_numbers

cuda_target.unavailable = lambda _: ""
mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
run = js.sparse_apply(multiply_all)
multiply = jax.jit(run)
shard = lambda array, spec: jax.device_put(array, NamedSharding(mesh, spec))
x, weights, exact = whole_numbers(8, 64, (128, 64), None, bfloat16)
for rows, columns, sent in (
    (P("a"), [P(None, "b"), P(None, "b")], []),
    (P(), [P(None, "a"), P(None, "b")], []),
    (P(None, "a"), [P("a"), P("a")], ["all-reduce"]),  # k is sharded
    (P(), [P("a", "b"), P("a", "b")], ["all-reduce"]),
):
    placed = [
        jax.tree.map(lambda leaf: shard(leaf, spec), weight)
        for weight, spec in zip(weights, columns, strict=True)
    ]
    args = placed, shard(x, rows)
    text = multiply.lower(*args).compile().as_text()
    kinds = ("all-gather", "all-reduce", "all-to-all", "collective-permute")
    assert [kind for kind in kinds if kind in text] == sent, (rows, columns, text)
    for result, wanted in zip(multiply(*args), exact, strict=True):
        np.testing.assert_array_equal(result, wanted)
"""


@pytest.mark.sweep
def test_joint_products_of_shards():
    run_on_eight_devices("-c", SHARDED)
