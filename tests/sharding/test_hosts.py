"""Two processes train one sharded network, then one of them is killed."""

import os
import random
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

import jaxsparse as js
from tests import reference, xla_flags
from tests.sharding import hosts, network


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def train_and_kill(folder):
    """Kills one process while both save; returns the other's exit code and stderr."""
    flags = f"--xla_force_host_platform_device_count=2 {xla_flags.QUICK}"
    port, environment = free_port(), os.environ | {"XLA_FLAGS": flags}
    with (folder / "stderr").open("w") as stderr:
        survivor, victim = (
            subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "tests.sharding.hosts",
                    str(i),
                    str(port),
                    folder,
                ],
                env=environment | {"JAX_PLATFORMS": "cpu"},
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
            )
            for i in range(2)
        )
    try:
        reached = f"{hosts.STEPS + 3}\n" in (victim.stdout or ())
        assert reached, (folder / "stderr").read_text()
        time.sleep(random.Random(0).uniform(0, 0.3))
        victim.kill()
        survivor.wait(timeout=60)
    finally:
        for process in (survivor, victim):
            process.kill()
            process.communicate()
    return survivor.returncode, (folder / "stderr").read_text()


def train_alone(count):
    params, tx = network.start(), network.optimizer()
    return network.train(params, tx.init(params), range(count))


@pytest.mark.sweep
def test_two_processes_train_as_one_and_a_kill_leaves_whole_checkpoints(tmp_path):
    returned, stderr = train_and_kill(tmp_path)

    masks = js.get_masks(train_alone(hosts.STEPS)[1])
    with np.load(tmp_path / "masks.npz") as together:
        for name, shape in network.SHAPES.items():
            np.testing.assert_array_equal(together[name], masks[name])
            kept = reference.unpack(together[name], shape, axis=0)
            np.testing.assert_array_equal(reference.n_per_group(kept, 4, axis=0), 2)

    fatal = "JAX distributed service detected fatal errors" in stderr
    assert fatal or "JaxRuntimeError" in stderr
    assert returned != 0

    params = network.start()
    target = params, js.abstract_state(network.optimizer(), params)
    with ocp.CheckpointManager(tmp_path / "run") as checkpoints:
        saved = checkpoints.all_steps()
        assert max(saved) > hosts.STEPS
        for step in saved:
            restore = ocp.args.StandardRestore(target)
            restored, state = checkpoints.restore(step, args=restore)
            expected, alone = train_alone(step)
            masks = js.get_masks(state), js.get_masks(alone)
            jax.tree.map(np.testing.assert_array_equal, *masks)
            close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)
            jax.tree.map(close, restored, expected)
            jax.tree.map(close, state.inner_state, alone.inner_state)
