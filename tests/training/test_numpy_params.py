"""Parameters that are arrays of NumPy, such as those of a file, in its float64."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsparse as js


RULES = [js.Rule(".*", "2:4", axis=0)]
WRAPPED = {
    "wrapped": lambda tx: js.wrap_optimizer(tx, RULES),
    "last": lambda tx: optax.chain(tx, js.keep_params_sparse(RULES)),
    "gradual": lambda tx: js.wrap_optimizer(
        tx, RULES, schedule=js.one_shot_schedule(0)
    ),
    "SET": lambda tx: js.regrow_at_random(
        tx, RULES, key=jax.random.key(0), fraction=lambda _: 0.3
    ),
    "RigL": lambda tx: js.regrow_by_gradient(tx, RULES, fraction=lambda _: 0.3),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("wrap", WRAPPED)
def test_float64_of_numpy_becomes_float32_without_a_warning(wrap):
    params = {"w": np.random.default_rng(0).normal(size=(16, 16))}
    tx = WRAPPED[wrap](optax.sgd(0.1, momentum=0.9))
    state, new = tx.init(params), params

    @jax.jit
    def step(params, state):
        updates, state = tx.update({"w": jnp.ones((16, 16))}, state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(2):
        new, state = step(new, state)
    js.check_sparsity(new, RULES)
    assert new["w"].dtype == jnp.float32
