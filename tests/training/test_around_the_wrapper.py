"""What is exactly sparse when Optax puts more around a wrapped optimizer."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsparse as js


X, Y = (
    np.random.default_rng(seed).normal(size=(32, size)).astype(np.float32)
    for seed, size in ((0, 16), (1, 8))
)
DENSE = {"kernel": jax.random.normal(jax.random.key(0), (16, 8))}
MASKS = js.create_masks(DENSE, "2:4")
MASKED = js.mask_params(DENSE, MASKS)


def loss(params):
    return jnp.mean((X @ params["kernel"] - Y) ** 2)


gradient = jax.jit(jax.grad(loss))


def wrapped():
    return js.wrap_optimizer(optax.adam(1e-2), masks=MASKS)


def is_sparse(params):
    """Whether every pruned weight is exactly zero, in plain NumPy."""
    pruned = ~np.asarray(MASKS["kernel"])
    return not np.asarray(params["kernel"])[pruned].any()


@pytest.mark.sweep
@pytest.mark.parametrize("start", [DENSE, MASKED], ids=["dense", "masked"])
def test_lookahead(start):
    tx = optax.lookahead(wrapped(), sync_period=3, slow_step_size=0.5)
    pair = optax.LookaheadParams.init_synced(start)
    state = tx.init(pair)
    pruned = ~np.asarray(MASKS["kernel"])
    before = np.asarray(start["kernel"])[pruned]
    for step in range(1, 10):
        updates, state = tx.update(gradient(pair.fast), state, pair)
        pair = optax.apply_updates(pair, updates)
        is_synchronised = step % 3 == 0
        assert is_sparse(pair.fast) == (start is MASKED or not is_synchronised)
        assert is_sparse(pair.slow) == (start is MASKED)
        if is_synchronised:  # slow weights go halfway to zero
            slow = np.asarray(pair.slow["kernel"])[pruned]
            np.testing.assert_allclose(slow, before / 2 ** (step // 3), rtol=1e-5)


@pytest.mark.parametrize("opaque", [False, True])
@pytest.mark.parametrize("keeps", [False, True])
def test_sam(opaque, keeps):
    adversary = optax.chain(optax.contrib.normalize(), optax.sgd(0.05))
    if keeps:
        adversary = optax.chain(adversary, js.keep_params_sparse(masks=MASKS))
    tx = optax.contrib.sam(wrapped(), adversary, sync_period=2, opaque_mode=opaque)
    params, state = MASKED, tx.init(MASKED)
    more = {"grad_fn": lambda params, _: gradient(params)} if opaque else {}
    for step in range(1, 9):
        updates, state = tx.update(gradient(params), state, params, **more)
        params = optax.apply_updates(params, updates)
        is_adversarial = not opaque and step % 2
        assert is_sparse(params) == (keeps or not is_adversarial)
    assert js.get_masks(state.opt_state)["kernel"].dtype == jnp.uint8


@pytest.mark.parametrize("start", [DENSE, MASKED], ids=["dense", "masked"])
def test_averages(start):
    tx, ema = wrapped(), optax.ema(0.9)
    params, state = start, tx.init(start)
    average, ema_state = start, ema.init(start)
    for _ in range(4):
        updates, state = tx.update(gradient(params), state, params)
        params = optax.apply_updates(params, updates)
        mean, ema_state = ema.update(params, ema_state)  # begins with zeros
        average = optax.incremental_update(params, average, 0.1)
        assert is_sparse(mean)
        assert is_sparse(average) == (start is MASKED)
    assert is_sparse(js.mask_params(average, MASKS))


@pytest.mark.parametrize("start", [DENSE, MASKED], ids=["dense", "masked"])
def test_an_average_of_updates_after_the_wrapper(start):
    tx = optax.chain(wrapped(), optax.ema(0.9))
    params, state = start, tx.init(start)
    for _ in range(4):
        updates, state = tx.update(gradient(params), state, params)
        params = optax.apply_updates(params, updates)
        assert is_sparse(params) == (start is MASKED)
