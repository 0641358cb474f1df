"""Training by the CUDA kernel: gradients are those of the masked dense function."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from jax import lax

import jaxsparse as js
from tests.compressed.accelerated import BOTH, primitives, whole
from tests.gpu import needs_gpus, needs_hopper


pytestmark = pytest.mark.gpu
RULES = [js.Rule("w.*", BOTH, axis=-2), js.Rule(".*", None)]


def kernels(fn, *args):
    """How many products of a compiled function are the kernel's."""
    text = jax.jit(fn).lower(*args).compile().as_text()
    return text.count('custom_call_target="jaxsparse_nm_matmul"')


def masked(params, rules=RULES):
    plan = js.plan_sparsity(params, rules)
    return js.mask_params(params, js.create_masks(params, plan)), plan


def signs(shape):
    """The gradient of what `two` sums: -1, 0 and 1."""
    i, j = np.indices(shape)
    return (i * i + 2 * i * j + j) % 3 - 1.0


def two(params, x):
    h = jax.nn.relu(x @ params["w1"].astype(x.dtype))
    y = h @ params["w2"].astype(x.dtype)
    return jnp.sum(y.astype(jnp.float32) * signs(y.shape).astype(np.float32))


@needs_hopper
@pytest.mark.parametrize(
    ("sizes", "stored", "dtype"),
    [
        ((4, 64, 32), "float32", "bfloat16"),
        ((100, 144, 272), "same", "float16"),
        ((300, 1024, 512), "float32", "float16"),
        ((300, 1024, 512), "same", "bfloat16"),
    ],
)
def test_whole_numbers_are_exact(sizes, stored, dtype):
    rows, k, hidden = sizes
    rng = np.random.default_rng(0)
    few = lambda *shape: rng.choice([-1, 0, 0, 0, 0, 0, 0, 1], shape).astype(np.float32)
    params = {"w1": few(k, hidden), "w2": few(hidden, k)}
    params, plan = masked(params)
    if stored == "same":
        params = jax.tree.map(lambda w: w.astype(dtype), params)
    x = few(rows, k).astype(dtype)
    step = jax.grad(js.accelerate(two, plan, implementation="cuda"))
    gradient = jax.jit(step)(params, x)
    w1, w2, wide = (np.asarray(a, np.float64) for a in (*params.values(), x))
    before = wide @ w1
    h = np.maximum(before, 0)
    c = signs((rows, k))
    back = (c @ w2.T) * (before > 0)
    assert max(np.abs(back).max(), h.max()) <= 256
    # A sum of products of whole numbers in float32, rounded once.
    for name, exact in {"w1": wide.T @ back, "w2": h.T @ c}.items():
        rounded = exact.astype(np.float32).astype(dtype).astype(np.float32)
        np.testing.assert_array_equal(np.asarray(gradient[name], np.float32), rounded)
    # `h` and its gradient; nobody asks for the result, nor for the gradient of `x`.
    assert kernels(step, params, x) == 2


@needs_hopper
@pytest.mark.parametrize(("remat", "implementation"), [(False, None), (True, "cuda")])
def test_scanned_layers_in_bfloat16_of_float32_masters(remat, implementation):
    rng = np.random.default_rng(0)
    params = {"w": rng.normal(size=(3, 256, 256)).astype(np.float32) / 16}
    plan = js.plan_sparsity(params, [js.Rule("w", BOTH, axis=1)])
    params = js.mask_params(params, js.create_masks(params, plan))
    x = rng.normal(size=(64, 256)).astype(np.float32)

    def fn(params, x, dtype="bfloat16"):
        def layer(h, w):
            return h + jnp.tanh(h @ w.astype(dtype)), None

        layer = jax.checkpoint(layer) if remat else layer
        return jnp.sum(lax.scan(layer, x.astype(dtype), params["w"])[0] ** 2) / 64

    fast = js.accelerate(fn, plan, implementation=implementation)
    got = jax.jit(jax.grad(fast))(params, x)["w"]
    plain = jax.jit(jax.grad(fn))(params, x)["w"]
    with jax.default_matmul_precision("highest"):
        exact = jax.jit(jax.grad(lambda p, x: fn(p, x, "float32")))(params, x)["w"]
    error = lambda a: np.linalg.norm(a - exact) / np.linalg.norm(exact)
    assert error(got) <= 1.2 * error(plain)
    # In each step of a scan: forward, perhaps once more, and backward.
    assert kernels(jax.grad(fast), params, x) >= 2 + remat


@needs_hopper
def test_attention_whose_kernels_have_three_axes():
    params = {"w1": whole(64, 2, 32, high=1), "w2": whole(2, 32, 64, high=1, seed=1)}
    params = jax.tree.map(lambda w: w.astype(ml_dtypes.bfloat16), params)

    def fn(params, x):
        heads = jnp.einsum("te,ehd->thd", x, params["w1"])
        y = jnp.einsum("thd,hde->te", jnp.clip(heads, -1, 1), params["w2"])
        return jnp.sum(jnp.clip(y, -8, 8).astype(jnp.float32))

    x = whole(32, 64, high=1, seed=2).astype(ml_dtypes.bfloat16)
    rules = [js.Rule(".*", BOTH, sizes=None)]
    plan = js.plan_sparsity(params, rules, fn=fn, args=(x,), dense_head=False)
    params = js.mask_params(params, js.create_masks(params, plan))
    fast = js.accelerate(fn, plan, implementation="cuda")
    wide = jax.tree.map(lambda w: np.asarray(w, np.float32), params)
    with jax.default_matmul_precision("highest"):
        exact = jax.grad(fn)(wide, np.asarray(x, np.float32))
    got = jax.jit(jax.grad(fast))(params, x)
    for name, wanted in exact.items():
        rounded = np.asarray(wanted).astype(ml_dtypes.bfloat16)
        np.testing.assert_array_equal(np.asarray(got[name]), rounded)
    assert kernels(jax.grad(fast), params, x) == 3


@needs_hopper
def test_masks_and_accumulated_gradients_in_one_program():
    params = {"w1": whole(64, 64, high=1), "w2": whole(64, 64, high=1, seed=1)}
    params = jax.tree.map(lambda w: w.astype(np.float32) / 4, params)
    plan = js.plan_sparsity(params, RULES)
    batches = whole(4, 32, 64, high=1, seed=2).astype(ml_dtypes.bfloat16)

    def gradient(params, batches):
        def add(total, x):
            return jax.tree.map(jnp.add, total, jax.grad(two)(params, x)), None

        return lax.scan(add, jax.tree.map(jnp.zeros_like, params), batches)[0]

    fast = js.accelerate(gradient, plan, masks="best", implementation="cuda")
    got = jax.jit(fast)(params, batches)
    wanted = jax.jit(lambda p, x: gradient(js.straight_through(p, plan), x))(
        params, batches
    )
    for name in params:
        scale = np.abs(wanted[name]).max()
        np.testing.assert_allclose(got[name], wanted[name], atol=2**-6 * scale)
    closed = jax.make_jaxpr(fast)(params, batches)
    names = {"compress_best", "_best_by_kernel"}
    found = [
        inside
        for inside, eqn in primitives(closed.jaxpr)
        if eqn.params.get("name") in names
    ]
    assert found == [(), ()]


@needs_hopper
def test_batches_of_inputs_and_of_parameters():
    params, plan = masked({"w1": whole(64, 64, high=1), "w2": whole(64, 64, seed=1)})
    params = jax.tree.map(lambda w: w.astype(ml_dtypes.bfloat16), params)
    x = np.sign(whole(2, 16, 64, seed=2)).astype(ml_dtypes.bfloat16)
    fast = js.accelerate(two, plan, implementation="cuda")
    stacked = jax.tree.map(lambda w: jnp.stack([w, -w]), params)
    for axes, operands in {(None, 0): (params, x), (0, 0): (stacked, x)}.items():
        got, wanted = (
            jax.jit(jax.vmap(jax.grad(f), in_axes=axes))(*operands) for f in (fast, two)
        )
        for name in params:
            a, b = (np.asarray(g[name], np.float32) for g in (got, wanted))
            np.testing.assert_allclose(a, b, atol=2**-7 * np.abs(b).max())


@needs_hopper
def test_products_that_the_kernel_lacks_are_dense_or_refused():
    params, plan = masked({"w1": whole(64, 64), "w2": whole(64, 64, seed=1)})
    x = whole(4, 64)
    assert kernels(jax.grad(js.accelerate(two, plan)), params, x) == 0
    with pytest.raises(ValueError, match=r"leaf 'w1'.*the dtype is float32"):
        js.accelerate(two, plan, implementation="cuda")(params, x)


@needs_hopper
def test_losses_follow_those_of_the_plain_function():
    rng = np.random.default_rng(0)
    params = {"w1": rng.normal(size=(128, 256)), "w2": rng.normal(size=(256, 128))}
    params = jax.tree.map(lambda w: w.astype(np.float32) / 16, params)
    plan = js.plan_sparsity(params, RULES)
    x = rng.normal(size=(256, 128)).astype(np.float32)
    wanted = np.roll(x, 1, 1)

    def loss(params, x):
        h = jax.nn.relu(x.astype(jnp.bfloat16) @ params["w1"].astype(jnp.bfloat16))
        y = h @ params["w2"].astype(jnp.bfloat16)
        return jnp.mean((y.astype(jnp.float32) - wanted) ** 2)

    def train(loss):
        tx = js.wrap_optimizer(optax.adamw(1e-2), plan)

        def step(carry, _):
            params, state = carry
            value, grads = jax.value_and_grad(loss)(params, x)
            updates, state = tx.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), value

        start = js.mask_params(params, js.create_masks(params, plan))
        run = jax.jit(lambda carry: lax.scan(step, carry, length=200))
        (end, _), losses = run((start, tx.init(start)))
        js.check_sparsity(end, plan)
        return np.asarray(losses)

    plain, fast = train(loss), train(js.accelerate(loss, plan))
    assert plain[-1] < 0.7 * plain[0]
    np.testing.assert_allclose(fast, plain, rtol=0.02, atol=0.002)


@needs_gpus(2)
@needs_hopper
@pytest.mark.parametrize("kind", ["data", "fsdp", "tensor"])
def test_two_gpus(kind):
    from jax.sharding import PartitionSpec as P

    from tests.compressed.test_cuda_sharded import collectives, placed

    specs = {
        "data": (P(), P(), P("m")),
        "fsdp": (P("m"), P("m"), P("m")),
        "tensor": (P(None, "m"), P("m"), P()),
    }
    params, plan = masked(
        {"w1": whole(256, 512, high=1), "w2": whole(512, 256, seed=1)}
    )
    x = np.sign(whole(64, 256, seed=2)).astype(ml_dtypes.bfloat16)
    up, down, rows = specs[kind]
    sharded = {"w1": placed(params["w1"], up), "w2": placed(params["w2"], down)}
    fast = jax.grad(js.accelerate(two, plan, implementation="cuda"))
    mine = collectives(fast, sharded, placed(x, rows))
    plain = collectives(jax.grad(two), sharded, placed(x, rows))
    assert sum(mine.values()) <= sum(plain.values()), (mine, plain)
    got = jax.jit(fast)(sharded, placed(x, rows))
    wanted = jax.jit(jax.grad(two))(params, x)
    for name in params:
        scale = np.abs(wanted[name]).max()
        np.testing.assert_allclose(got[name], wanted[name], atol=2**-6 * scale)
