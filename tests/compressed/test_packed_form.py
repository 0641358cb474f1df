"""2:4 weights as one array, and the other form of a transposable one from it."""

from functools import partial

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import jaxsparse as js
from jaxsparse import NM, Compressed
from jaxsparse._compressed.packed_form import (
    pack_form,
    packs,
    unpack_form,
    unpack_transposed,
)
from jaxsparse.kernels import cuda_target
from tests.compressed.accelerated import calls, planned, whole
from tests.compressed.forms_oracle import best_masks, forms
from tests.compressed.layout_oracle import (
    assert_same_bits,
    compressed,
    random_mask,
    random_weight,
)
from tests.gpu import needs_hopper


DTYPES = [ml_dtypes.bfloat16, np.float16]


def packed(values, indices):
    """Both arrays together, sixteen rows of the weight after sixteen."""
    groups, out = len(indices) // 2, values.shape[1]
    pairs = indices.reshape(groups, 2, out).astype(np.uint16)
    rows = values.view(np.uint16).reshape(groups, 8, out)
    return np.concatenate([rows, (pairs[:, 0] + 256 * pairs[:, 1])[:, None]], 1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(16, 1), (48, 24), (64, 7), (0, 8), (32, 0)])
def test_all_bits_are_in_one_array(shape, dtype):
    rng = np.random.default_rng(0)
    weight = random_weight(rng, shape, dtype)
    mask = random_mask(rng, shape, 2, 4, 0, fewer=True)
    values, indices = compressed(weight, mask, 2, 4, 0)
    stored = Compressed(jnp.asarray(values), jnp.asarray(indices), NM(2, 4), -2)
    assert packs(stored)
    array = pack_form(stored)
    np.testing.assert_array_equal(array, packed(values, indices))
    result = unpack_form(array, dtype)
    assert_same_bits(np.asarray(result.values), values)
    assert_same_bits(np.asarray(result.indices), indices)


@pytest.mark.parametrize(
    ("shape", "dtype"), [((24, 8), ml_dtypes.bfloat16), ((16, 8), np.float32)]
)
def test_what_is_not_packed(shape, dtype):
    values = jnp.zeros((shape[0] // 2, shape[1]), dtype)
    indices = jnp.zeros((shape[0] // 8, shape[1]), jnp.uint8)
    assert not packs(Compressed(values, indices, NM(2, 4), -2))


def check_transposed(shape, dtype, fewer):
    rng = np.random.default_rng(sum(shape))
    weight = random_weight(rng, shape, dtype)
    mask = best_masks(random_weight(rng, shape, np.float32))
    if fewer:
        mask &= rng.random(shape) < 0.6
    weight[0, 0] = np.nan
    values, indices, *expected = forms(weight, mask & (weight != 0), dtype)
    result = jax.jit(partial(unpack_transposed, dtype=dtype))(packed(values, indices))
    for x, y in zip((result.values, result.indices), expected, strict=True):
        assert_same_bits(np.asarray(x), y)


@pytest.mark.parametrize("fewer", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(16, 8), (48, 24), (32, 12)])
def test_the_transposed_form(shape, dtype, fewer):
    check_transposed(shape, dtype, fewer)


@needs_hopper
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(16, 8), (48, 72), (272, 200), (144, 328), (32, 12)])
def test_the_transposed_form_by_the_kernel(shape, dtype):
    check_transposed(shape, dtype, False)
    check_transposed(shape, dtype, True)
    run = jax.jit(partial(unpack_transposed, dtype=dtype))
    text = run.lower(jnp.zeros((2, 9, shape[1]), jnp.uint16)).as_text()
    assert ("jaxsparse_compress_both" in text) == (shape[1] % 8 == 0)


def test_batches_of_products_take_packed_weights_along(monkeypatch):
    monkeypatch.setattr(cuda_target, "unavailable", lambda _: "")  # XLA multiplies
    fn = lambda params, x: jnp.sum(jnp.clip(x @ params["up"], -2, 2) @ params["down"])
    params = {"up": whole(32, 48, high=1), "down": whole(48, 32, high=1, seed=1)}
    params = jax.tree.map(lambda w: w.astype(ml_dtypes.bfloat16), params)
    x = whole(2, 16, 32, high=1, seed=2).astype(ml_dtypes.bfloat16)
    params, plan = planned(fn, params, x[0])
    fast = js.accelerate(fn, plan, implementation="cuda")
    assert len(calls(jax.grad(fast), params, x[0], name="pack_form")) == 2
    stacked = jax.tree.map(lambda w: jnp.stack([w, -w]), params)
    cases = {(None, 0): (params, x), (0, 0): (stacked, x), (0, None): (stacked, x[0])}
    for axes, operands in cases.items():
        got, wanted = (
            jax.jit(jax.vmap(jax.grad(f), in_axes=axes))(*operands) for f in (fast, fn)
        )
        jax.tree.map(np.testing.assert_array_equal, got, wanted)
