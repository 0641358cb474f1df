"""Squared ReLUs on compressed activations: the masked function and its gradients."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import jaxsparse as js
from tests.compressed.accelerated import BOTH, calls, primitives
from tests.compressed.squared_relus import (
    HIDDEN,
    ROWS,
    SIGNS,
    assert_exact,
    by_hand,
    loss,
    whole,
)


@pytest.mark.sweep(keep=["bfloat16-xla", "float16-None"])
@pytest.mark.parametrize("implementation", [None, "xla"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_whole_numbers_are_exact(dtype, implementation):
    params, x = whole(dtype)
    value, gradients, squares, kept = by_hand(params, x)
    assert (squares * ~kept).sum() > 0  # something is dropped
    fast = js.accelerate(loss, None, activations=True, implementation=implementation)
    step = jax.value_and_grad(fast, argnums=(0, 1))
    got = jax.jit(step)(params, x)
    assert float(got[0]) == value
    assert_exact(got[1], gradients, dtype)
    # The product with the squares, and the gradients of both weights and of the rows.
    sparse = 4 if implementation else 0
    assert len(calls(step, params, x, name="decompress")) == sparse


def test_with_sparse_weights_all_six_products_are_sparse():
    params, x = whole()
    rules = [js.Rule("bias", None), js.Rule(".*", BOTH, axis=0)]
    plan = js.plan_sparsity(params, rules)
    params = js.mask_params(params, js.create_masks(params, plan))
    value, gradients, *_ = by_hand(params, x)
    fast = js.accelerate(loss, plan, activations=True, implementation="xla")
    step = jax.value_and_grad(fast, argnums=(0, 1))
    got = jax.jit(step)(params, x)
    assert float(got[0]) == value
    assert_exact(got[1], gradients, "bfloat16")
    assert len(calls(step, params, x, name="decompress")) == 6


@pytest.mark.usefixtures("available")
@pytest.mark.parametrize("weights", [False, True])
def test_the_way_of_the_kernels(weights):
    params, x = whole()
    rules = [js.Rule("bias", None), js.Rule(".*", BOTH, axis=0)]
    plan = js.plan_sparsity(params, rules) if weights else None
    if plan is not None:
        params = js.mask_params(params, js.create_masks(params, plan))
    fast = js.accelerate(loss, plan, activations=True)
    value, gradients, *_ = by_hand(params, x)
    step = jax.value_and_grad(fast, argnums=(0, 1))
    got = jax.jit(step)(params, x)
    assert float(got[0]) == value
    assert_exact(got[1], gradients, "bfloat16")
    multiplied = calls(step, params, x, name="cuda_matmuls")
    compressed = calls(step, params, x, name="_best_by_kernel")
    assert (len(multiplied), len(compressed)) == (6 if weights else 4, 1)


@pytest.mark.sweep
def test_random_gradients_are_within_rounding():
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
    params = {"up": draw(16, 48) / 4, "bias": draw(48) - 1, "down": draw(48, 16) / 4}
    params, x = jax.tree.map(
        lambda w: w.astype(ml_dtypes.bfloat16), (params, draw(32, 16))
    )
    # What is kept is decided as in bfloat16, but for nearly equal masks.
    fast = js.accelerate(loss, None, activations=True, implementation="xla")
    got = jax.jit(jax.grad(fast))(params, x)
    _, (wanted, _), *_ = by_hand(params, x)
    for name, exact in wanted.items():
        error = np.linalg.norm(np.asarray(got[name], np.float64) - exact)
        assert error <= 0.02 * np.linalg.norm(exact), name


@pytest.mark.parametrize(
    ("implementation", "name"), [(None, "squared_relu_mask"), ("xla", "_best_by_xla")]
)
def test_equal_products_share_the_trace_of_their_search(implementation, name):
    params, x = whole()

    def fn(params, x):
        for _ in range(3):
            x = jax.nn.relu(x @ params["up"]) ** 2 @ params["down"]
        return x

    fast = js.accelerate(fn, None, activations=True, implementation=implementation)
    closed = jax.make_jaxpr(fast)(params, x)
    searches = [
        id(eqn.params["jaxpr"])
        for _, eqn in primitives(closed.jaxpr)
        if eqn.params.get("name") == name
    ]
    assert len(searches) == 3
    assert len({*searches}) == 1


def test_batches_under_vmap():
    params, x = whole()
    fast = js.accelerate(loss, None, activations=True, implementation="xla")
    batch = jnp.stack([x, -x])
    got = jax.jit(jax.vmap(jax.grad(fast, argnums=(0, 1)), (None, 0)))(params, batch)
    for i in range(2):
        _, exact, *_ = by_hand(params, np.asarray(batch[i]))
        assert_exact(jax.tree.map(lambda g, i=i: g[i], got), exact, "bfloat16")


def test_other_uses_keep_their_gradients():
    params, x = whole()

    def fn(params, x):
        h = x @ params["up"] + params["bias"]
        y = (jax.nn.relu(h) ** 2 @ params["down"]).astype(jnp.float32)
        return jnp.sum(y * SIGNS) + jnp.sum(h.astype(jnp.float32))

    fast = js.accelerate(fn, None, activations=True, implementation="xla")
    step = jax.grad(fast, argnums=(0, 1))
    got = jax.jit(step)(params, x)
    _, (exact, by_x), *_ = by_hand(params, x)
    wide = lambda a: np.asarray(a, np.float64)
    ones = np.ones((ROWS, HIDDEN))
    exact["up"] += wide(x).T @ ones
    exact["bias"] += ROWS
    assert_exact(got, (exact, by_x + ones @ wide(params["up"]).T), "bfloat16")
    # The gradient of `h` has no zeros.
    assert len(calls(step, params, x, name="decompress")) == 2


@pytest.mark.sweep
@pytest.mark.parametrize("weights", [False, True])
def test_second_derivatives(weights):
    params, x = whole()
    plan = None
    if weights:
        plan = js.plan_sparsity(
            params, [js.Rule("bias", None), js.Rule(".*", BOTH, axis=0)]
        )
        params = js.mask_params(params, js.create_masks(params, plan))
    _, _, _, kept = by_hand(params, x)

    def masked(params, x):
        square = lambda h: jnp.where(kept, jax.nn.relu(h) ** 2, 0)
        return loss(params, x, square=square)

    fast = js.accelerate(loss, plan, activations=True, implementation="xla")
    # The gradient of a sum of gradients is linear in the weights, so it is exact.
    total = lambda fn: (
        lambda x: sum(
            jnp.sum(g.astype(jnp.float32))
            for g in jax.tree.leaves(jax.grad(fn)(params, x))
        )
    )
    np.testing.assert_array_equal(
        jax.jit(jax.grad(total(fast)))(x), jax.jit(jax.grad(total(masked)))(x)
    )


def test_a_function_that_computes_gradients_is_refused():
    params, x = whole()
    for fn in (jax.grad(loss), jax.grad(jax.checkpoint(loss))):
        fast = js.accelerate(fn, None, activations=True)
        with pytest.raises(
            ValueError, match="give the function that is differentiated"
        ):
            fast(params, x)


def test_inside_a_gradient_that_is_accelerated():
    params, x = whole()
    rules = [js.Rule("bias", None), js.Rule(".*", BOTH, axis=0)]
    plan = js.plan_sparsity(params, rules)
    params = js.mask_params(params, js.create_masks(params, plan))
    inner = js.accelerate(loss, None, activations=True, implementation="xla")
    fast = js.accelerate(jax.grad(inner), plan, implementation="xla")
    _, (exact, _), *_ = by_hand(params, x)
    assert_exact(jax.jit(fast)(params, x), exact, "bfloat16")


def test_neither_a_plan_nor_activations():
    with pytest.raises(ValueError, match="nothing to accelerate"):
        js.accelerate(loss, None)
