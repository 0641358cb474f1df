"""Packed masks against the oracle's mask, packed by NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsparse as js
from jaxsparse._patterns import nm_kernel
from jaxsparse._patterns.nm_search import best_nm_mask
from jaxsparse._patterns.packed_nm_search import (
    _keep_distinct,
    _keep_with_ties,
    best_packed_nm_mask,
)
from jaxsparse._patterns.ranking import rank_by_magnitude
from tests import reference
from tests.gpu import needs_hopper


def weight_with_ties(shape, dtype, seed=0):
    rng = np.random.default_rng(seed)
    weight = np.round(3 * rng.normal(size=shape)) / 4
    weight.flat[:4] = np.nan, np.inf, -np.inf, -0.0
    return jnp.asarray(weight).astype(dtype)


@pytest.mark.sweep(keep=["float32"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float8_e4m3fn"])
@pytest.mark.parametrize("pattern", [(1, 2), (2, 4), (1, 4), (4, 8), (3, 8), (8, 16)])
@pytest.mark.parametrize(
    ("shape", "axis"), [((32, 6), 0), ((6, 32), 1), ((2, 48, 3), 1), ((36, 5), 0)]
)
def test_packed_masks_are_the_oracles(dtype, pattern, shape, axis):
    n, m = pattern
    weight = weight_with_ties(shape, dtype)
    mask = reference.top_n_mask(weight, n, m, axis)
    find = jax.jit(lambda x: best_packed_nm_mask(rank_by_magnitude(x), n, m, axis))
    np.testing.assert_array_equal(find(weight), reference.pack(mask, axis))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float8_e5m2"])
@pytest.mark.parametrize("keep", [_keep_distinct, _keep_with_ties])
def test_both_ways_to_keep_the_first_of_equal_keys(keep, dtype):
    weight = weight_with_ties((8, 500), dtype)
    for n in range(1, 9):
        mask = reference.top_n_mask(weight, n, 8, 0)
        kept = keep(list(rank_by_magnitude(weight).keys), n)
        np.testing.assert_array_equal(jnp.stack(kept), mask)


@pytest.mark.parametrize("m", [2, 4, 8, 16, 32])
def test_the_number_kept_may_be_traced(m):
    weight = weight_with_ties((64, 3), "float32")
    find = jax.jit(lambda n: best_packed_nm_mask(rank_by_magnitude(weight), n, m, 0))
    for n in range(1, m + 1):
        mask = reference.top_n_mask(np.asarray(weight), n, m, 0)
        np.testing.assert_array_equal(find(jnp.int32(n)), reference.pack(mask, 0))


@pytest.mark.sweep(keep=["shape0-0-16"])
@pytest.mark.parametrize("m", [8, 16, 32, 64])
@pytest.mark.parametrize(("shape", "axis"), [((128, 24), 0), ((3, 128), 1)])
def test_the_kernel_is_traced_where_a_gpu_would_run_it(monkeypatch, m, shape, axis):
    monkeypatch.setattr(nm_kernel, "supports", lambda *_: True)
    weight = jax.ShapeDtypeStruct(shape, "bfloat16")
    mask = lambda x: best_nm_mask(rank_by_magnitude(x), 3, m, axis)
    bits = lambda x: best_packed_nm_mask(rank_by_magnitude(x), 3, m, axis)
    traced = jax.make_jaxpr(mask)(weight)
    assert "custom_partitioning" in str(traced)
    assert jax.eval_shape(mask, weight) == jax.ShapeDtypeStruct(shape, "bool")
    packed = [n // 8 if i == axis else n for i, n in enumerate(shape)]
    assert jax.eval_shape(bits, weight) == jax.ShapeDtypeStruct(packed, "uint8")
    stacked = jax.ShapeDtypeStruct((2, *shape), "bfloat16")
    batch = jax.eval_shape(jax.vmap(bits), stacked)
    assert batch == jax.ShapeDtypeStruct((2, *packed), "uint8")


@pytest.mark.sweep(keep=["float32"])
@needs_hopper
@pytest.mark.parametrize("pattern", [(4, 8), (2, 8), (8, 16), (16, 32), (20, 64)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float8_e5m2", "int8"])
@pytest.mark.parametrize(("shape", "axis"), [((128, 24), 0), ((24, 128), 1)])
def test_the_kernel_finds_the_oracles_mask(pattern, dtype, shape, axis):
    n, m = pattern
    weight = weight_with_ties(shape, "float32")
    weight = jnp.nan_to_num(4 * weight) if dtype == "int8" else weight
    weight = weight.astype(dtype)
    mask = reference.top_n_mask(np.asarray(weight), n, m, axis)
    find = lambda x: js.create_asp_mask(x, pattern, axis=axis)
    np.testing.assert_array_equal(find(weight), mask)
    np.testing.assert_array_equal(jax.vmap(find)(jnp.stack([weight, -weight]))[1], mask)
    rules = [js.Rule(".*", pattern, axis=axis, sizes=None)]
    bits = js.create_masks({"kernel": weight}, rules, packed=True)["kernel"]
    np.testing.assert_array_equal(bits, reference.pack(mask, axis))
