"""Stacks of weights of eight bits, by quantized rows, in one launch."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

import jaxsparse as js
from tests.compressed.test_cuda_matmul_bytes import (
    BFLOAT16,
    EIGHT_BITS,
    multiply,
    whole_numbers,
)
from tests.gpu import needs_gpus, needs_hopper
from tests.sharding.eight_devices import run_on_eight_devices


# Weights, rows of each, k and outputs that reach each kind of tile, with tails in all.
SHAPES = [
    *[(3, rows, 1032, 400) for rows in (1, 16, 17, 33, 64, 100, 300)],
    *[(7, 20, 264, 2320), (2, 64, 520, 4016), (9, 100, 264, 1040)],
    *[(6, 300, 136, 2320), (5, 257, 72, 1424), (3, 1000, 1032, 2064)],
    *[(1, 40, 8, 16), (4, 17, 24, 16), (100, 3, 72, 16)],
]

vmapped = jax.vmap(multiply)


def count_calls(fn, target, *args):
    lowered = jax.jit(fn).trace(*args).lower(lowering_platforms=("cuda",))
    return lowered.as_text().count(f"custom_call @jaxsparse_{target}(")


def stacked_numbers(stack, rows, k, out, name):
    """`x`, the stored weights and the exact products of each, rounded once."""
    each = [whole_numbers(rows, k, out, name, seed=i) for i in range(stack)]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *each)


@needs_hopper
@pytest.mark.parametrize("name", EIGHT_BITS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_whole_numbers_are_exact(shape, name):
    x, stored, exact = stacked_numbers(*shape, name)
    np.testing.assert_array_equal(jax.jit(vmapped)(x, stored), exact)


@needs_hopper
@pytest.mark.parametrize("shape", [s for s in SHAPES if s[0] > 2], ids=str)
def test_nothing_of_another_weight_is_used(shape):
    """Not even beyond the last of `k` or the last row, where its numbers follow."""
    x, stored, exact = stacked_numbers(*shape, "float8_e4m3fn")
    x[1::2], values = np.nan, stored.values.copy()
    values[1::2] = np.nan
    y = jax.jit(vmapped)(x, replace(stored, values=values))
    np.testing.assert_array_equal(y[::2], exact[::2])


@pytest.mark.gpu
@pytest.mark.usefixtures("available")
@pytest.mark.parametrize("name", EIGHT_BITS)
def test_any_vmap_over_weights_is_one_launch(name):
    x, stored, exact = stacked_numbers(6, 20, 64, 32, name)
    nested = lambda tree: jax.tree.map(lambda a: a.reshape(2, 3, *a.shape[1:]), tree)
    for fn, args, wanted in (
        (vmapped, (x, stored), exact),
        (jax.vmap(multiply, (1, 0)), (x.swapaxes(0, 1), stored), exact),
        (jax.vmap(vmapped), nested((x, stored)), nested(exact)),
        (jax.vmap(vmapped, (0, None)), (np.stack([x, x]), stored), [exact, exact]),
        (jax.vmap(vmapped, (2, None), 2), (x[:, :, None], stored), exact[:, :, None]),
    ):
        assert count_calls(fn, "nm_matmul_bytes", *args) == 1
        assert count_calls(fn, "quantize_rows", *args) == 1
        np.testing.assert_array_equal(jax.jit(fn)(*args), wanted)
    products = partial(js.sparse_apply, quantize_activations=True)
    run = products(lambda w, x: jnp.einsum("etd,edf->etf", x, w))
    np.testing.assert_array_equal(jax.jit(run)(stored, x), exact)


@needs_gpus(2)
@pytest.mark.parametrize("rows", [5, 200])
def test_each_gpu_multiplies_by_its_own_experts(rows):
    x, stored, exact = stacked_numbers(6, rows, 136, 400, "int8")
    mesh = jax.make_mesh((2,), ("a",), axis_types=(AxisType.Auto,))
    place = partial(jax.device_put, device=NamedSharding(mesh, P("a")))
    args = jax.tree.map(place, (x, stored))
    np.testing.assert_array_equal(jax.jit(vmapped)(*args), exact)


@pytest.mark.gpu
@pytest.mark.usefixtures("available")
def test_a_weight_that_all_share_is_not_stacked():
    x, stored, exact = stacked_numbers(6, 20, 64, 32, "int8")
    _, shared, _ = whole_numbers(20, 64, 48, "int8")
    both = lambda weights, x: [x @ weight for weight in weights]
    run = js.sparse_apply(both, quantize_activations=True)
    fn = jax.vmap(run, ([None, 0], 0))
    products = jax.jit(fn)([shared, stored], x)
    one = x.astype(np.float64) @ np.asarray(js.decompress(shared), np.float64)
    wanted = one.astype(np.float32).astype(BFLOAT16), exact
    for y, product in zip(products, wanted, strict=True):
        np.testing.assert_array_equal(y, product)
    assert "6x32x48" not in jax.jit(fn).lower([shared, stored], x).as_text()


@pytest.mark.usefixtures("available")
@pytest.mark.parametrize("name", EIGHT_BITS)
def test_there_may_be_no_experts(name):
    x, stored, _ = stacked_numbers(2, 20, 64, 32, name)
    none = jax.tree.map(lambda array: array[:0], (x, stored))
    assert jax.jit(vmapped)(*none).shape == (0, 20, 32)


SHARDED = """
import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

from jaxsparse.kernels import cuda_target
from tests.compressed.test_cuda_stacked_bytes import stacked_numbers, vmapped

cuda_target.unavailable = lambda _: ""
mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
place = lambda array, spec: jax.device_put(array, NamedSharding(mesh, spec))
multiply = jax.jit(vmapped)
kinds = ("all-gather", "all-reduce", "all-to-all", "collective-permute")
x, stored, exact = stacked_numbers(8, 20, 64, 64, "int8")
for rows, weight, sent in (
    (P("a"), P("a"), []),  # each device has its own experts
    (P(), P(("a", "b")), []),
    (P("a", "b"), P("a"), []),
    (P("a"), P("a", None, "b"), []),
):
    specs = [weight, weight, P(weight[0] if weight else None, None, *weight[2:])]
    leaves, tree = jax.tree.flatten(stored)
    args = place(x, rows), tree.unflatten(map(place, leaves, specs))
    text = multiply.lower(*args).compile().as_text()
    assert [kind for kind in kinds if kind in text] == sent, (rows, weight)
    np.testing.assert_array_equal(multiply(*args), exact)
"""


@pytest.mark.sweep
def test_experts_are_multiplied_where_they_are():
    run_on_eight_devices("-c", SHARDED)
