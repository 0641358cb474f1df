"""Parameters and optimizer state, masks included, through Orbax."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp

import jaxsparse as js
from tests import reference


def weights(seed):
    return np.random.default_rng(seed).normal(size=(16, 8)).astype(np.float32)


def steps(tx, params, state, indices):
    for index in indices:
        grads = {"kernel": jnp.asarray(weights(100 + index))}
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def test_a_restored_run_goes_on_as_if_never_interrupted(tmp_path):
    tx = js.wrap_optimizer(optax.adamw(0.1), "2:4", schedule=js.one_shot_schedule(3))
    params = {"kernel": jnp.asarray(weights(0))}
    straight = steps(tx, params, tx.init(params), range(8))

    half = steps(tx, params, tx.init(params), range(5))
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "run", half)
        checkpointer.wait_until_finished()
        empty = jax.tree.map(ocp.utils.to_shape_dtype_struct, half)
        restored = checkpointer.restore(tmp_path / "run", empty)
    resumed = steps(tx, *restored, range(5, 8))

    for one, other in zip(
        jax.tree.leaves(straight), jax.tree.leaves(resumed), strict=True
    ):
        np.testing.assert_array_equal(one, other)
    kept = reference.unpack(
        np.asarray(js.get_masks(resumed[1])["kernel"]), (16, 8), axis=0
    )
    np.testing.assert_array_equal(np.asarray(resumed[0]["kernel"]) != 0, kept)
    np.testing.assert_array_equal(reference.n_per_group(kept, 4, axis=0), 2)
