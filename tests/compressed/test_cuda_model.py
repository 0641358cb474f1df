"""Models whose matmuls use the CUDA kernel, or raise."""

import flax.linen as nn
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsparse as js
from tests.compressed.layout_oracle import as_compressed, masked, random_mask
from tests.compressed.products import problem


pytestmark = pytest.mark.gpu


@pytest.mark.usefixtures("available")
def test_an_exported_model_has_the_kernel_only_if_asked_to():
    x, _, stored = problem(np.random.default_rng(0), (4,), 64, 32, np.float16)
    fn = lambda params, x: x @ params["w"]

    def export(implementation):
        run = jax.jit(js.sparse_apply(fn, implementation=implementation))
        return jax.export.export(run, platforms=["cuda"])({"w": stored}, x)

    for implementation in (None, "xla"):
        assert "jaxsparse_nm_matmul" not in export(implementation).mlir_module()
    with pytest.raises(ValueError, match="custom_call @jaxsparse_nm_matmul"):
        export("cuda")


@pytest.mark.usefixtures("without_annotations")
def test_an_unknown_implementation_is_refused_at_once():
    with pytest.raises(ValueError, match="implementation 'CUDA' is unknown"):
        js.sparse_apply(lambda p, x: x @ p["w"], implementation="CUDA")


def test_a_model_requires_the_kernel():
    params = {"w": problem(np.random.default_rng(0), (4,), 64, 32)[2]}
    run = js.sparse_apply(lambda p, x: x @ p["w"], implementation="cuda")
    with (
        jax.default_matmul_precision(None),
        pytest.raises(
            ValueError, match="'cuda' is not available: the dtype is float32"
        ),
    ):
        run(params, jnp.ones((4, 64)))


@pytest.mark.sweep
@pytest.mark.usefixtures("available")
@pytest.mark.parametrize("precision", [None, "highest"])
def test_all_of_attention_uses_the_kernel(precision):
    model = nn.MultiHeadDotProductAttention(2, dtype=np.float16, precision=precision)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 32)), np.float16)
    narrow = lambda leaf: leaf.astype(np.float16)
    params = jax.tree.map(narrow, jax.jit(model.init)(jax.random.key(0), x))
    plan = js.plan_sparsity(params, [js.Rule(".*kernel", "2:4", sizes=None)])
    pruned = js.mask_params(params, js.create_masks(params, plan))
    small = js.compress_params(params, plan)
    wide = jax.tree.map(lambda leaf: leaf.astype(np.float32), pruned)
    apply = jax.jit(nn.MultiHeadDotProductAttention(2).apply)
    exact = apply(wide, x.astype(np.float32))
    sparse = js.sparse_apply(model.apply, plan, implementation="cuda")
    result = jax.jit(sparse)(small, x)
    np.testing.assert_allclose(result, exact, rtol=2**-7, atol=2**-9)


@pytest.mark.sweep(keep=["shape4"])
@pytest.mark.usefixtures("available")
@pytest.mark.parametrize("on_the_right", [True, False])
@pytest.mark.parametrize(
    ("shape", "groups", "contracted"),
    [
        ((16, 2, 8), 0, (0,)),  # query, key and value
        ((2, 16, 16), 1, (0, 1)),  # the output projection
        ((2, 16, 16), 1, (1, 0)),
        ((16, 2, 16), 0, (1, 0)),
        ((2, 16, 3, 8), 3, (3, 0)),
        ((2, 8, 16), 1, (1,)),
    ],
)
def test_products_over_any_axes(shape, groups, contracted, on_the_right):
    rng = np.random.default_rng(0)
    weight = rng.integers(1, 4, shape).astype(np.float16)
    sizes = [shape[i] for i in contracted]
    x, axes = rng.integers(-3, 4, (5, *sizes, 3)), tuple(range(1, len(sizes) + 1))
    x = x.astype(np.float16)
    mask = random_mask(rng, shape, 2, 4, groups)
    both = ((x, axes), (masked(weight, mask), contracted))
    if on_the_right:
        fn = lambda w, x: jax.lax.dot_general(x, w, ((axes, contracted), ((), ())))
    else:
        fn = lambda w, x: jax.lax.dot_general(w, x, ((contracted, axes), ((), ())))
        both = both[::-1]
    (a, a_axes), (b, b_axes) = both
    exact = np.tensordot(a.astype(int), b.astype(int), (a_axes, b_axes))
    stored = as_compressed(weight, mask, 2, 4, groups)
    for implementation in ("cuda", "xla", None):
        run = js.sparse_apply(fn, implementation=implementation)
        np.testing.assert_array_equal(run(stored, x), exact)


@pytest.mark.parametrize(
    ("fn", "why"),
    [
        (
            lambda w, x: jnp.einsum("kho,bo->bkh", w, x),
            "an axis that is not contracted",
        ),
        (
            lambda w, x: jnp.einsum("kho,ko->kho", w, x),  # a batch axis
            "an axis that is not contracted",
        ),
        (
            lambda w, x: jnp.dot(x, w[:, 0], preferred_element_type=jnp.float32),
            "dtypes float16, float16 and float32, not one",
        ),
        (
            lambda w, x: jnp.dot(x, w.reshape(16, 16).T),
            "an axis that is not contracted",
        ),
    ],
)
def test_errors_name_the_product_that_the_kernel_does_not_support(fn, why):
    weight, x = np.zeros((16, 1, 16), np.float16), np.zeros((16, 16), np.float16)
    small = js.compress_params(weight, [js.Rule(".*", "2:4", axis=0, sizes=None)])
    with pytest.raises(ValueError, match=rf"'cuda' is not available: .*{why}"):
        js.sparse_apply(fn, implementation="cuda")(small, x)


@pytest.mark.parametrize(
    ("shape", "why"),
    [((12, 16), "multiples of 8 and 16"), ((2, 12, 16), "end within a byte")],
)
def test_codes_that_end_within_a_byte_are_multiplied_by_xla(shape, why):
    rng, groups = np.random.default_rng(0), len(shape) - 2
    weight = rng.integers(1, 4, shape).astype(np.float16)
    x = rng.integers(-3, 4, (5, *shape[:-1])).astype(np.float16)
    mask = random_mask(rng, shape, 2, 4, groups)
    stored = as_compressed(weight, mask, 2, 4, groups)
    fn = lambda w, x: jnp.tensordot(x, w, w.ndim - 1)
    exact = np.tensordot(x.astype(int), masked(weight, mask), len(shape) - 1)
    np.testing.assert_array_equal(js.sparse_apply(fn)(stored, x), exact)
    with pytest.raises(ValueError, match=rf"'cuda' is not available: .*{why}"):
        js.sparse_apply(fn, implementation="cuda")(stored, x)
