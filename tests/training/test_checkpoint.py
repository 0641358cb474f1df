"""Parameters and optimizer state, masks included, through Orbax."""

import os
import random
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

import jaxsparse as js
from tests import reference, xla_flags
from tests.sharding import endless, network, resuming


KILLS = 3
KILLS_IN_FULL = 30


def weights(seed):
    return np.random.default_rng(seed).normal(size=(16, 8)).astype(np.float32)


def steps(step, params, state, indices):
    for index in indices:
        grads = {"kernel": jnp.asarray(weights(100 + index))}
        params, state = step(params, state, grads)
    return params, state


@pytest.mark.sweep
def test_a_restored_run_goes_on_as_if_never_interrupted(tmp_path):
    tx = js.wrap_optimizer(optax.adamw(0.1), "2:4", schedule=js.one_shot_schedule(3))
    params = {"kernel": jnp.asarray(weights(0))}

    @jax.jit
    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    straight = steps(step, params, tx.init(params), range(8))

    half = steps(step, params, tx.init(params), range(5))
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "run", half)
        checkpointer.wait_until_finished()
        empty = jax.tree.map(ocp.utils.to_shape_dtype_struct, half)
        restored = checkpointer.restore(tmp_path / "run", empty)
    resumed = steps(step, *restored, range(5, 8))

    for one, other in zip(
        jax.tree.leaves(straight), jax.tree.leaves(resumed), strict=True
    ):
        np.testing.assert_array_equal(one, other)
    kept = reference.unpack(
        np.asarray(js.get_masks(resumed[1])["kernel"]), (16, 8), axis=0
    )
    np.testing.assert_array_equal(np.asarray(resumed[0]["kernel"]) != 0, kept)
    np.testing.assert_array_equal(reference.n_per_group(kept, 4, axis=0), 2)


@pytest.mark.sweep
def test_a_sharded_run_resumes_bit_for_bit_and_on_other_devices(tmp_path):
    """On eight devices, two and four there; and here, on one."""
    flags = f"--xla_force_host_platform_device_count=8 {xla_flags.QUICK}"
    run = subprocess.run(
        [sys.executable, "-W", "error", "-m", "tests.sharding.resuming", tmp_path],
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]

    params, tx = network.start(), network.optimizer()
    steps = range(resuming.MIDDLE, resuming.END)
    with ocp.StandardCheckpointer() as checkpointer:
        target = params, js.abstract_state(tx, params)
        resumed = network.train(*checkpointer.restore(tmp_path / "run", target), steps)
    straight = network.train(params, tx.init(params), range(resuming.END))
    with np.load(tmp_path / "params.npz") as there:
        for name, shape in network.SHAPES.items():
            kept = reference.unpack(
                np.asarray(js.get_masks(straight[1])[name]), shape, axis=0
            )
            np.testing.assert_array_equal(reference.n_per_group(kept, 4, axis=0), 2)
            for found in (there[name], resumed[0][name], straight[0][name]):
                np.testing.assert_array_equal(np.asarray(found) != 0, kept)
                np.testing.assert_allclose(found, there[name], rtol=1e-3, atol=1e-5)


def test_masks_that_do_not_fit_are_refused_by_the_leaf_of_a_restored_state(tmp_path):
    tx = js.wrap_optimizer(optax.adamw(0.1), "2:4")
    params = {"a": {"kernel": weights(0)}, "b": {"kernel": weights(1)}}
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", tx.init(params))
        checkpointer.wait_until_finished()
        state = checkpointer.restore(tmp_path / "state", js.abstract_state(tx, params))
    wider = params | {"b": {"kernel": np.ones((16, 16), np.float32)}}
    with pytest.raises(ValueError, match=r"\(2, 8\) .* not fit leaf 'b/kernel'"):
        tx.update(wider, state, wider)
    more = params | {"c": {"kernel": weights(2)}}
    with pytest.raises(ValueError, match="no entry for leaf 'c/kernel'"):
        js.mask_params(more, js.get_masks(state))
    with pytest.raises(ValueError, match="no mask for leaf 'c/kernel'"):
        tx.update(more, state, more)
    rules = [js.Rule("a/.*", None), js.Rule(".*", "2:4")]
    for make in (
        lambda: js.wrap_optimizer(optax.adamw(0.1), rules),
        lambda: js.regrow_by_gradient(optax.adamw(0.1), rules, fraction=lambda _: 0.3),
    ):
        tx = make()
        given = tx.init(params)._replace(masks=state.masks)
        with pytest.raises(ValueError, match=r"a mask for leaf 'a/kernel'.* anew"):
            tx.update(params, given, params)
    other = [js.Rule(".*", "2:4", axis=1, sizes=None)]
    half = {"fraction": lambda _: 0.5}
    for tx in (
        js.wrap_optimizer(optax.adamw(0.1), other),
        js.regrow_by_gradient(optax.adamw(0.1), other, **half),
        js.add_sr_ste_decay(other),
    ):
        along_rows = tx.init(params)._replace(masks=state.masks)
        with pytest.raises(ValueError, match=r"'a/kernel' of .* packed along axis 0"):
            tx.update(params, along_rows, params)
        dense = optax.adamw(0.1).init(params)
        with pytest.raises(TypeError, match=r"State that tx\.init\(params\) makes"):
            tx.update(params, dense, params)


def run_until_killed(folder, after):
    """Kills the endless training some time after its first checkpoints."""
    devices = f"--xla_force_host_platform_device_count=4 {xla_flags.QUICK}"
    with subprocess.Popen(
        [sys.executable, "-m", "tests.sharding.endless", folder],
        env=os.environ | {"XLA_FLAGS": devices, "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert "3\n" in (process.stdout or ()), "it ended by itself"
            time.sleep(after)
        finally:
            process.kill()


@pytest.mark.sweep
def test_a_kill_while_saving_leaves_the_last_complete_checkpoint(tmp_path, request):
    kills = KILLS_IN_FULL if request.config.getoption("--full") else KILLS
    params = {"kernel": jnp.zeros(endless.SHAPE)}
    target = params, endless.optimizer().init(params)
    packed = reference.pack(endless.KEPT[:, :1], 0)
    random_time = random.Random(0)
    for kill in range(kills):
        folder = tmp_path / str(kill)
        run_until_killed(folder, after=random_time.uniform(0, 0.5))
        with endless.manager(folder) as checkpoints:
            # Only the last: Orbax may have been at deleting an older one.
            k = checkpoints.latest_step()
            assert k >= 2
            restore = ocp.args.StandardRestore(target)
            params, state = checkpoints.restore(k, args=restore)
        kernel = np.where(endless.KEPT, endless.WEIGHT - k * (k + 1) / 2, 0)
        np.testing.assert_array_equal(params["kernel"], kernel)
        (momentum,) = jax.tree.leaves(state.inner_state)
        np.testing.assert_array_equal(momentum, np.where(endless.KEPT, k, 0))
        masks = js.get_masks(state)["kernel"]
        np.testing.assert_array_equal(masks, np.broadcast_to(packed, masks.shape))
        assert state.count == k
