"""Compressing in one pass: on a Hopper GPU, and the parts that run anywhere."""

import re
from functools import partial

import jax
import jax.export
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import jaxsparse as js
from jaxsparse._compressed import cuda_compress
from jaxsparse._compressed.compress_both import compress_best, compress_both
from jaxsparse._patterns import NM, best_transposable_mask
from tests.compressed.forms_oracle import assert_forms, best_masks, forms
from tests.compressed.layout_oracle import (
    as_compressed,
    assert_same_bits,
    bits,
    random_mask,
    random_weight,
)
from tests.gpu import needs_hopper
from tests.reference import best_mask_by_rank
from tests.sharding.eight_devices import run_on_eight_devices


BOTH = NM(2, 4, transposable=True)
SHAPES = [(8, 8), (8, 72), (72, 8), (64, 128), (136, 200), (3, 40, 24), (2, 1, 16, 328)]
DTYPES = [
    (ml_dtypes.bfloat16, ml_dtypes.bfloat16),
    (np.float16, np.float16),
    (np.float32, ml_dtypes.bfloat16),
    (np.float32, np.float16),
]


def packed(mask, axis):
    return jnp.asarray(np.packbits(mask, axis, bitorder="little"))


def check_reason(w, dtype):
    assert not cuda_compress.unsupported_reason(jnp.asarray(w), NM(2, 4), dtype)


@needs_hopper
@pytest.mark.parametrize("dtypes", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_given_masks(shape, dtypes):
    rng = np.random.default_rng(sum(shape))
    w = random_weight(rng, shape, dtypes[0])
    check_reason(w, dtypes[1])
    for mask in (
        best_masks(random_weight(rng, shape, np.float32)),
        random_mask(rng, shape, 2, 4, -2),  # any number along the last axis
        random_mask(rng, shape, 2, 4, -1, fewer=True),
        np.zeros(shape, bool),
        rng.random(shape) < 0.5,
    ):
        expected = forms(w, mask, dtypes[1])
        on_device = jnp.asarray(w)
        for given in (jnp.asarray(mask), packed(mask, -2), packed(mask, -1)):
            assert_forms(compress_both(on_device, given, BOTH, dtypes[1]), expected)
        for axes in ((-2,), (-1,), (-1, -2)):
            small = packed(mask, -2)
            result = compress_both(on_device, small, BOTH, dtypes[1], axes)
            assert_forms(result, forms(w, mask, dtypes[1], axes))


@needs_hopper
@pytest.mark.parametrize("dtypes", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_weights_that_are_not_zero(shape, dtypes):
    rng = np.random.default_rng(sum(shape))
    w = random_weight(rng, shape, dtypes[0])
    w = np.where(rng.random(shape) < 0.5, w, np.asarray(-0.0, w.dtype))
    tiny = ml_dtypes.finfo(w.dtype).smallest_subnormal
    w = np.where(rng.random(shape) < 0.1, -tiny, w).astype(w.dtype)
    expected = forms(w, w.astype(np.float64) != 0, dtypes[1])
    assert_forms(compress_both(jnp.asarray(w), None, BOTH, dtypes[1]), expected)


def weights_with_ties(rng, shape, dtype):
    """Weights by name for which the best mask is hard to find."""
    normal = random_weight(rng, shape, dtype)
    special = rng.choice([np.nan, np.inf, -np.inf, 0, -0.0, 1, -2, 3], shape)
    tiny = float(ml_dtypes.finfo(dtype).smallest_subnormal)
    wide = normal.astype(np.float64) * 2.0 ** -rng.integers(0, 14, shape)
    return {
        "normal": normal,
        "wide": wide.astype(dtype),
        "few": rng.integers(-3, 4, shape).astype(dtype),
        "signs": rng.choice([-1, 1], shape).astype(dtype),
        "zeros": np.zeros(shape, dtype),
        "subnormal": (tiny * rng.integers(-5, 6, shape)).astype(dtype),
        "special": np.where(rng.random(shape) < 0.3, special, normal).astype(dtype),
        "large": (normal * np.asarray(ml_dtypes.finfo(dtype).max / 64, dtype)),
    }


@needs_hopper
@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")
@pytest.mark.parametrize("axis", [-2, -1])
@pytest.mark.parametrize("dtypes", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [*SHAPES, (512, 1024)], ids=str)
def test_best_masks(shape, dtypes, axis):
    rng = np.random.default_rng(sum(shape))
    for name, w in weights_with_ties(rng, shape, dtypes[0]).items():
        check_reason(w, dtypes[1])
        best = compress_best(jnp.asarray(w), BOTH, dtypes[1], axis)
        mask = best_masks(w, axis)
        np.testing.assert_array_equal(best.mask, packed(mask, axis), name)
        if np.size(w) > 10**5:
            continue
        with np.errstate(invalid="ignore", over="ignore"):
            expected = forms(w, mask, dtypes[1])
        for form, values, indices in zip(
            best.forms, expected[::2], expected[1::2], strict=True
        ):
            np.testing.assert_array_equal(form.indices, indices, name)
            is_nan = np.isnan(values)  # of which only the kind is defined, if rounded
            np.testing.assert_array_equal(np.isnan(form.values), is_nan, name)
            exact = ~is_nan if dtypes[0] != dtypes[1] else np.ones_like(is_nan)
            found = np.asarray(form.values)
            np.testing.assert_array_equal(bits(found)[exact], bits(values)[exact], name)


@needs_hopper
def test_best_masks_are_those_of_the_search_for_any_weights():
    """Also where float64 does not hold the sums."""
    rng = np.random.default_rng(0)
    w = rng.integers(0, 2**32, (1024, 1024), np.uint32).view(np.float32)
    w = jnp.asarray(w)
    found = compress_best(w, BOTH, "bfloat16").mask
    mask = jax.jit(best_transposable_mask, static_argnums=(1, 2, 3))(
        jnp.abs(w), 2, 4, (0, 1)
    )
    np.testing.assert_array_equal(found, packed(mask, 0))


@needs_hopper
@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16], ids=str)
@pytest.mark.parametrize("shape", SHAPES[:-1], ids=str)
def test_compress_by_magnitude(shape, dtype):
    rng = np.random.default_rng(sum(shape))
    for name, w in weights_with_ties(rng, shape, dtype).items():
        axis = w.ndim - 2
        mask = best_mask_by_rank(w, 2, 4, axis)
        expected = as_compressed(w, mask, 2, 4, axis)
        for result in (js.compress(w), js.compress(w, mask=packed(mask, -1))):
            assert_same_bits(np.asarray(result.indices), expected.indices)
            np.testing.assert_array_equal(
                bits(result.values), bits(expected.values), name
            )


@needs_hopper
def test_the_kernel_is_used():
    w = jnp.ones((64, 64), jnp.bfloat16)
    for fn in (
        js.compress,
        partial(compress_both, mask=None, pattern=BOTH, dtype="bfloat16"),
        partial(compress_best, pattern=BOTH, dtype="bfloat16"),
    ):
        assert "jaxsparse_compress_both" in jax.jit(fn).lower(w).as_text()
    text = jax.jit(js.compress).lower(w.astype("float32")).as_text()
    assert "jaxsparse_compress_both" not in text


@pytest.mark.gpu
@pytest.mark.usefixtures("available")
def test_an_exported_program_does_not_have_the_kernel():
    w = jnp.ones((64, 64), jnp.bfloat16)
    exported = jax.export.export(jax.jit(js.compress), platforms=["cuda"])(w)
    assert "jaxsparse_compress_both" not in exported.mlir_module()


@needs_hopper
def test_transformations():
    check_transformations()


@pytest.mark.sweep
@pytest.mark.gpu
@pytest.mark.usefixtures("available")
def test_transformations_anywhere():
    check_transformations()


def check_transformations():
    rng = np.random.default_rng(0)
    w = random_weight(rng, (2, 3, 16, 24), np.float32)
    mask = best_masks(w)
    expected = forms(w, mask, "bfloat16")
    one_mask = forms(w, np.broadcast_to(mask[:1], w.shape), "bfloat16")
    w = jnp.asarray(w)
    both = partial(compress_both, pattern=BOTH, dtype="bfloat16")
    best = lambda w: compress_best(w, BOTH, "bfloat16").forms
    small = packed(mask, -2)
    assert_forms(jax.jit(both)(w, small), expected)
    assert_forms(jax.vmap(jax.vmap(both))(w, small), expected)
    assert_forms(jax.vmap(jax.vmap(best))(w), expected)
    _, scanned = jax.lax.scan(lambda _, xs: (None, both(*xs)), None, (w, small))
    assert_forms(scanned, expected)
    assert_forms(jax.vmap(both, (0, None))(w, small[0]), one_mask)
    # Forms are constants; the kept weights of `compress` are not.
    for fn in (lambda w: both(w, small)[0], lambda w: best(w)[1]):
        of = lambda w, fn=fn: jnp.sum(fn(w).values.astype(jnp.float32))
        assert not jax.grad(of)(w).any()
    narrow = w[0, 0].astype(jnp.bfloat16)
    squares = lambda w: jnp.sum(js.compress(w).values ** 2)
    kept = js.decompress(js.compress(narrow))
    np.testing.assert_array_equal(jax.jit(jax.grad(squares))(narrow), 2 * kept)
    stack = w[0].astype(jnp.bfloat16)
    single = [js.compress(x).values for x in stack]
    np.testing.assert_array_equal(
        jax.vmap(js.compress)(stack).values, jnp.stack(single)
    )


SHARDED = """
import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

from jaxsparse._compressed.compress_both import compress_best, compress_both
from jaxsparse._patterns import NM, best_transposable_mask
from jaxsparse.kernels import cuda_target
from tests.compressed.forms_oracle import assert_forms, best_masks, forms

cuda_target.unavailable = lambda _: ""
mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
shard = lambda array, spec: jax.device_put(array, NamedSharding(mesh, spec))
w = np.random.default_rng(0).normal(size=(2, 32, 64)).astype(np.float32)
mask = best_masks(w)
small = np.packbits(mask, -2, bitorder="little")
expected = forms(w, mask, "bfloat16")
pattern = NM(2, 4, transposable=True)
both = jax.jit(lambda w, mask: compress_both(w, mask, pattern, "bfloat16"))
best = jax.jit(lambda w: compress_best(w, pattern, "bfloat16"))
KINDS = ("all-gather", "all-reduce", "all-to-all", "collective-permute")


def check(fn, *arrays, sent=()):
    text = fn.lower(*arrays).compile().as_text()
    assert [kind for kind in KINDS if kind in text] == [*sent], arrays[0].sharding
    return fn(*arrays)


for spec in (P(None, "a"), P(None, None, "a"), P("b", "a"), P(None, "b", "a"), P()):
    placed = shard(w, spec), shard(small, spec)
    given = check(both, *placed)
    assert_forms(given, expected)
    result = check(best, placed[0])
    assert_forms(result.forms, expected)
    np.testing.assert_array_equal(result.mask, small)
    stack, rows, columns = (*spec, None, None, None)[:3]
    turned = NamedSharding(mesh, P(stack, columns, rows))
    assert given[0].values.sharding.is_equivalent_to(placed[0].sharding, 3)
    assert given[1].values.sharding.is_equivalent_to(turned, 3)
w, mask = w[:, :8], mask[:, :8]
few = shard(w, P(None, "a"))  # two rows on each device: not one group
result = check(best, few, sent=["all-gather"])
assert_forms(result.forms, forms(w, mask, "bfloat16"))
"""


@pytest.mark.sweep
def test_shards_are_compressed_where_they_are():
    run_on_eight_devices("-c", SHARDED)


@pytest.mark.parametrize(
    ("shape", "dtype", "values", "pattern", "why"),
    [
        ((8, 8), np.float32, np.float32, (2, 4), "the dtypes are float32 and"),
        ((8, 8), np.float16, ml_dtypes.bfloat16, (2, 4), "the dtypes are float16 and"),
        ((8, 12), np.float16, np.float16, (2, 4), r"the shape is \(8, 12\)"),
        ((0, 8, 8), np.float16, np.float16, (2, 4), r"the shape is \(0, 8, 8\)"),
        ((8, 8), np.float16, np.float16, (4, 8), "the pattern is 4:8"),
    ],
)
def test_what_the_kernel_does_not_support(shape, dtype, values, pattern, why):
    w = jnp.zeros(shape, dtype)
    reason = cuda_compress.unsupported_reason(w, NM(*pattern), values)
    assert re.match(why, reason)
