"""Stacks of weights in one launch: on a Hopper GPU, and what runs anywhere."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import jaxsparse as js
from jaxsparse._compressed.kernel_choice import choose_kernel
from tests.compressed.layout_oracle import as_compressed, masked, random_mask
from tests.compressed.products import assert_product, problem
from tests.compressed.test_cuda_joint import count_launches
from tests.compressed.test_cuda_quantized import quantized
from tests.gpu import needs_hopper
from tests.sharding.eight_devices import run_on_eight_devices


# Weights, rows of each, k and outputs that reach each kernel, with tails in all three.
SHAPES = [
    *[(3, rows, 1032, 400) for rows in (1, 8, 9, 16, 17, 32, 33, 64, 100, 300)],
    (2, 8, 4104, 528),  # few rows, clusters of four
    *[(5, 9, 1048, 1040), (7, 16, 1048, 528)],  # of two
    *[(3, 16, 712, 5008), (7, 5, 264, 6992), (300, 3, 72, 16)],  # one block
    *[(7, 20, 264, 2320), (2, 64, 520, 4016)],
    (9, 100, 264, 1040),  # whole tiles of 128 rows
    *[(2, 200, 520, 2320), (2, 200, 520, 400)],
    *[(6, 300, 136, 2320), (5, 257, 72, 1424), (3, 1000, 1032, 2064)],  # of 256
    *[(1, 40, 8, 16), (4, 17, 24, 16), (2, 700, 24, 144)],
]

multiply = partial(js.nm_matmul, implementation="cuda")
vmapped = jax.vmap(multiply)


def stacked(*weights):
    return jax.tree.map(lambda *leaves: np.stack(leaves), *weights)


def whole_numbers(stack, rows, k, out, dtype, name=None, pattern=(2, 4)):
    """`x`, the stored weights, and the exact products, which the dtype holds."""
    rng = np.random.default_rng(rows + k)
    x = rng.integers(-3, 4, (stack, rows, k)).astype(dtype)
    weight = rng.integers(-3, 4, (stack, k, out))
    mask = random_mask(rng, weight.shape, *pattern, 1)
    scales = np.ones((stack, 1, out))
    if name is None:
        stored = as_compressed(weight.astype(dtype), mask, *pattern, 1)
    else:
        scales = 2.0 ** rng.integers(-2, 3, scales.shape)
        each = zip(weight, mask, scales[:, 0], strict=True)
        own = [quantized(w, m, s, name, dtype) for w, m, s in each]
        stored = stacked(*own)
    exact = x.astype(np.float64) @ masked(weight, mask) * scales
    return x, stored, exact.astype(np.float32).astype(dtype)


@needs_hopper
@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_whole_numbers_are_exact(shape, dtype):
    x, stored, exact = whole_numbers(*shape, dtype)
    np.testing.assert_array_equal(jax.jit(vmapped)(x, stored), exact)


@needs_hopper
@pytest.mark.parametrize("name", ["int8", "float8_e4m3fn"])
@pytest.mark.parametrize("shape", SHAPES[::2], ids=str)
def test_whole_numbers_of_eight_bits_are_exact(shape, name):
    x, stored, exact = whole_numbers(*shape, ml_dtypes.bfloat16, name)
    np.testing.assert_array_equal(jax.jit(vmapped)(x, stored), exact)


@needs_hopper
@pytest.mark.parametrize("pattern", [(4, 8), (8, 16)])
@pytest.mark.parametrize(
    "shape",
    [(3, 1, 1040, 400), (2, 9, 4112, 528), (7, 16, 272, 6992), (5, 20, 16, 16)],
    ids=str,
)
def test_whole_numbers_of_other_patterns_are_exact(shape, pattern):
    x, stored, exact = whole_numbers(*shape, ml_dtypes.bfloat16, None, pattern)
    np.testing.assert_array_equal(jax.jit(vmapped)(x, stored), exact)


@needs_hopper
@pytest.mark.parametrize("shape", [s for s in SHAPES if s[0] > 2], ids=str)
@pytest.mark.parametrize("pattern", [(2, 4), (8, 16)])
def test_nothing_of_another_weight_is_used(shape, pattern):
    """Not even beyond the last of `k` or the last row, where its numbers follow."""
    stack, rows, k, out = shape
    if pattern != (2, 4):
        rows, k = min(rows, 20), k // 16 * 16 or 16
    x, stored, exact = whole_numbers(
        stack, rows, k, out, ml_dtypes.bfloat16, None, pattern
    )
    x[1::2], values = np.nan, stored.values.copy()
    values[1::2] = np.nan
    y = jax.jit(vmapped)(x, replace(stored, values=values))
    np.testing.assert_array_equal(y[::2], exact[::2])


@needs_hopper
@pytest.mark.parametrize("rows", [3, 60, 300])
def test_products_are_within_one_rounding(rows):
    rng = np.random.default_rng(rows)
    each = [problem(rng, (rows,), 1024, 1536, ml_dtypes.bfloat16) for _ in range(5)]
    x, stored = (np.stack([p[0] for p in each]), stacked(*[p[2] for p in each]))
    y = jax.jit(vmapped)(x, stored)
    for result, (own, weight, _) in zip(y, each, strict=True):
        assert_product(result, own, weight)


def test_the_tiles_of_all_weights_are_counted():
    assert choose_kernel(1, 4096, 4096) != choose_kernel(1, 4096, 4096, stack=8)
    assert choose_kernel(1, 4096, 512, stack=8) == choose_kernel(1, 4096, 4096)
    assert choose_kernel(300, 4096, 512, stack=8) == choose_kernel(300, 4096, 4096)


@pytest.mark.gpu
@pytest.mark.usefixtures("available")
@pytest.mark.parametrize("name", [None, "int8"])
def test_any_vmap_over_weights_is_one_launch(name):
    x, stored, exact = whole_numbers(6, 3, 64, 32, ml_dtypes.bfloat16, name)
    dense = np.asarray(jax.vmap(js.decompress)(stored), np.float64)
    nested = lambda tree: jax.tree.map(lambda a: a.reshape(2, 3, *a.shape[1:]), tree)
    product = lambda x, w: x.astype(np.float64) @ w
    for fn, args, wanted in (
        (vmapped, (x, stored), exact),
        (jax.vmap(multiply, (1, 0)), (x.swapaxes(0, 1), stored), exact),
        (jax.vmap(multiply, (None, 0)), (x[0], stored), product(x[0], dense)),
        (jax.vmap(vmapped), nested((x, stored)), nested(exact)),
        (jax.vmap(vmapped, (0, None)), (np.stack([x, x]), stored), [exact, exact]),
        (
            jax.vmap(vmapped, (None, 0)),
            (x[:3], nested(stored)),
            product(x[:3], nested(dense)),
        ),
        (jax.vmap(vmapped, (2, None), 2), (x[:, :, None], stored), exact[:, :, None]),
    ):
        assert count_launches(fn, *args) == 1
        np.testing.assert_array_equal(jax.jit(fn)(*args), wanted)


@pytest.mark.gpu
@pytest.mark.usefixtures("available")
def test_gradients_are_those_of_each_product():
    # d sum(x w c) is c w' for x and, at the positions of the values, x' c for w.
    x, stored, _ = whole_numbers(3, 4, 64, 32, ml_dtypes.bfloat16)
    stored = jax.tree.map(jnp.asarray, stored)
    c = np.random.default_rng(0).integers(-2, 3, (3, 4, 32))
    loss = lambda x, v: jnp.sum(vmapped(x, replace(stored, values=v)) * c)
    for_x, for_values = jax.jit(jax.grad(loss, (0, 1)))(jnp.asarray(x), stored.values)
    dense = np.asarray(jax.vmap(js.decompress)(stored), np.float64)
    np.testing.assert_array_equal(for_x, c @ dense.swapaxes(1, 2))
    kept = jax.vmap(js.decompress)(replace(stored, values=np.ones_like(stored.values)))
    by_weight = x.astype(np.float64).swapaxes(1, 2) @ c
    wanted = as_compressed(by_weight, np.asarray(kept) != 0, 2, 4, 1)
    np.testing.assert_array_equal(for_values, wanted.values)


def mixture(params, x):
    """The experts of a mixture, each with tokens of its own."""
    gate = jnp.einsum("etd,edf->etf", x, params["gate"])
    up = jnp.einsum("etd,edf->etf", x, params["up"])
    return jnp.einsum("etf,efd->etd", jax.nn.relu(gate) * up, params["down"])


def mixture_problem(name=None):
    """Parameters, compressed and dense, `x`, and the exact result."""
    rng, (e, t, d, f) = np.random.default_rng(0), (4, 3, 64, 32)
    sizes = {"gate": (e, d, f), "up": (e, d, f), "down": (e, f, d)}
    few = lambda shape: rng.integers(-1, 2, shape) * (rng.random(shape) < 0.2)
    dense = {leaf: few(size).astype(np.float32) for leaf, size in sizes.items()}
    rules = [js.Rule(".*", "2:4", axis=1, sizes=None)]
    masks = js.create_masks(dense, rules)
    dense = jax.tree.map(np.asarray, js.mask_params(dense, masks))
    halves = jax.tree.map(lambda w: w.astype(ml_dtypes.bfloat16), dense)
    small = js.compress_params(halves, rules, quantize=name)
    x = few((e, t, d))
    wide = jax.tree.map(lambda w: w.astype(np.float64), dense)
    hidden = np.maximum(x @ wide["gate"], 0) * (x @ wide["up"])
    exact = hidden @ wide["down"]
    assert max(abs(hidden).max(), abs(exact).max()) <= 256
    assert exact.any()
    return small, x.astype(ml_dtypes.bfloat16), exact


@pytest.mark.gpu
@pytest.mark.usefixtures("available")
@pytest.mark.parametrize("implementation", ["cuda", None])
def test_a_mixture_of_experts_is_two_launches(implementation):
    small, x, exact = mixture_problem()
    run = js.sparse_apply(mixture, implementation=implementation)
    assert count_launches(run, small, x) == 2  # the first of gate and up
    np.testing.assert_array_equal(jax.jit(run)(small, x), exact)

    def layers(params, x):
        return jax.lax.scan(lambda _, p: (None, mixture(p, x)), None, params)[1]

    run = js.sparse_apply(layers, implementation=implementation)
    assert count_launches(run, stacked(small, small), x) == 2
    both = jax.jit(run)(stacked(small, small), x)
    np.testing.assert_array_equal(both, [exact, exact])


@pytest.mark.parametrize("name", [None, "int8"])
def test_a_mixture_of_experts_without_a_kernel(name):
    small, x, exact = mixture_problem(name)
    y = jax.jit(js.sparse_apply(mixture, implementation="xla"))(small, x)
    # Scales round twice, and bfloat16 three times on the way.
    bound = 0 if name is None else 2**-5 * abs(exact).max()
    np.testing.assert_allclose(np.asarray(y, float), exact, rtol=0, atol=bound)


@pytest.mark.gpu
@pytest.mark.usefixtures("available")
@pytest.mark.parametrize("order", ["etd,edf->etf", "edf,etd->eft", "tde,dfe->etf"])
@pytest.mark.parametrize("implementation", ["cuda", "xla", None])
def test_batch_axes_may_be_anywhere(order, implementation):
    x, stored, exact = whole_numbers(4, 3, 64, 32, np.float16)
    weight = jax.vmap(js.decompress)(stored)
    first, second = order.split("->")[0].split(",")
    name_x = first if "t" in first else second
    name_w = second if name_x == first else first
    x = np.einsum(f"etd->{name_x}", x.astype(np.float32)).astype(np.float16)
    weight = np.einsum(f"edf->{name_w}", np.float32(weight)).astype(np.float16)
    small = js.compress(weight, axis=name_w.index("d"))
    pair = lambda w, x: (x, w) if name_x == first else (w, x)
    fn = lambda w, x: jnp.einsum(order, *pair(w, x))
    run = js.sparse_apply(fn, implementation=implementation)
    wanted = np.einsum(f"etf->{order[-3:]}", np.float32(exact))
    np.testing.assert_array_equal(jax.jit(run)(small, x), wanted)


@pytest.mark.usefixtures("available")
def test_what_a_stack_does_not_fit_is_said():
    x = jax.ShapeDtypeStruct((2, 4, 64), np.float16)
    stored = js.compress(np.ones((2, 64, 24), np.float16), axis=1)
    fn = lambda w, x: jnp.einsum("etd,edf->etf", x, w)
    assert count_launches(js.sparse_apply(fn), stored, x) == 0  # decompressed
    with pytest.raises(ValueError, match=r"'cuda' .*: .* \(64, 24\) are not multiples"):
        jax.eval_shape(js.sparse_apply(fn, implementation="cuda"), stored, x)
    x = jax.ShapeDtypeStruct((2**14, 1, 64), np.float16)
    many = jax.eval_shape(
        lambda w: js.compress(jnp.repeat(w, 2**14, 0), axis=1),
        jnp.ones((1, 64, 32), np.float16),
    )
    assert count_launches(jax.vmap(js.nm_matmul), x, many) == 0  # more than a grid has
    words = r"16384 weights, more than 16383.*\(16384, 1, 64\).*\(16384, 64, 32\).*None"
    with pytest.raises(ValueError, match=words):
        jax.eval_shape(vmapped, x, many)
    halve = lambda a: a.update(shape=(2, 2**13, *a.shape[1:]))
    with pytest.raises(ValueError, match=words):
        jax.eval_shape(jax.vmap(vmapped), *jax.tree.map(halve, (x, many)))


SHARDED = """
import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from ml_dtypes import bfloat16

import jaxsparse as js
from jaxsparse.kernels import cuda_target
from tests.compressed import test_cuda_stacks as stacks

cuda_target.unavailable = lambda _: ""
mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
shard = lambda array, spec: jax.device_put(array, NamedSharding(mesh, spec))
multiply = jax.jit(jax.vmap(js.nm_matmul))
x, stored, exact = stacks.whole_numbers(8, 3, 64, 64, bfloat16)
kinds = ("all-gather", "all-reduce", "all-to-all", "collective-permute")
for rows, weight, sent in (
    (P("a"), P("a"), []),  # each device has its own experts
    (P(("a", "b")), P(("a", "b")), []),
    (P(), P("a"), []),
    (P("a"), P("a", None, "b"), []),
    (P("a", None, "b"), P("a", "b"), ["all-reduce"]),  # k is sharded
):
    args = shard(x, rows), jax.tree.map(lambda leaf: shard(leaf, weight), stored)
    text = multiply.lower(*args).compile().as_text()
    assert [kind for kind in kinds if kind in text] == sent, (rows, weight, text)
    np.testing.assert_array_equal(multiply(*args), exact)
small, x, exact = stacks.mixture_problem()
run = jax.jit(js.sparse_apply(stacks.mixture))
args = jax.tree.map(lambda leaf: shard(leaf, P("a")), (small, x))
text = run.lower(*args).compile().as_text()
assert not any(kind in text for kind in kinds), text
np.testing.assert_array_equal(run(*args), exact)
"""


@pytest.mark.sweep
def test_experts_are_multiplied_where_they_are():
    run_on_eight_devices("-c", SHARDED)
