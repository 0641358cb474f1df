"""One of two processes that train together and save as they go.

    python -m tests.sharding.hosts PROCESS PORT FOLDER

It prints the number of each step. After the twentieth it writes the masks to
`FOLDER/masks.npz` and continues to train until one of the processes is killed.
"""

import itertools
import sys
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

import jaxsparse as js
from tests.sharding import network


STEPS = 20


def main():
    process, port, folder = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(
        f"127.0.0.1:{port}", 2, process, heartbeat_timeout_seconds=10
    )
    kinds = (jax.sharding.AxisType.Auto,) * 2
    mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=kinds)
    assert {d.process_index for d in mesh.devices[process]} == {process}
    params, tx = network.start(mesh), network.optimizer()
    shardings = jax.tree.map(lambda x: x.sharding, js.abstract_state(tx, params))
    state = jax.jit(tx.init, out_shardings=shardings)(params)
    with ocp.CheckpointManager(folder / "run") as checkpoints:
        for i in itertools.count():
            params, state = network.step(params, state, network.batch(i, mesh))
            jax.block_until_ready(params)
            if i + 1 == STEPS:
                masks = multihost_utils.process_allgather(
                    js.get_masks(state), tiled=True
                )
                if process == 0:
                    np.savez(folder / "masks.npz", **masks)
            if (i + 1) % 5 == 0 or i + 1 > STEPS:
                checkpoints.save(i + 1, args=ocp.args.StandardSave((params, state)))
            print(i + 1, flush=True)


if __name__ == "__main__":
    main()
