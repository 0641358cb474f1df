"""An interrupted run on several devices that is resumed on these and on others.

python -m tests.sharding.resuming FOLDER
"""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import NamedSharding

import jaxsparse as js
from tests.sharding import network


MIDDLE, END = 5, 12  # 3:4 in the middle, 2:4 from the seventh step on


def abstract(mesh):
    """Returns what to restore: the shape, dtype and sharding of each array."""
    params = {
        name: jax.ShapeDtypeStruct(
            shape, jnp.float32, sharding=NamedSharding(mesh, spec)
        )
        for (name, shape), spec in zip(
            network.SHAPES.items(), network.SPECS.values(), strict=True
        )
    }
    return params, js.abstract_state(network.optimizer(), params)


def assert_same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def main():
    folder, devices = Path(sys.argv[1]) / "run", jax.devices()
    auto = (jax.sharding.AxisType.Auto,) * 2
    make = lambda shape, devices: jax.make_mesh(
        shape, ("data", "model"), axis_types=auto, devices=devices
    )
    mesh = make((4, 2), devices)
    params, tx = network.start(mesh), network.optimizer()
    half = network.train(params, tx.init(params), range(MIDDLE), mesh)
    middle = jax.tree.map(np.array, half)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder, half)
        # The run continues in the same memory while the checkpoint is written.
        straight = network.train(*half, range(MIDDLE, END), mesh)
        checkpointer.wait_until_finished()
        resumed = checkpointer.restore(folder, abstract(mesh))
        moved = lambda name: js.get_masks(straight[1])[name] != middle[1].masks[name]
        assert moved("up").any()
        assert moved("down").any()
        assert_same(network.train(*resumed, range(MIDDLE, END), mesh), straight)
        for shape, subset in (((1, 2), devices[:2]), ((2, 2), devices[2:6])):
            other = make(shape, subset)
            wanted = abstract(other)
            restored = checkpointer.restore(folder, wanted)
            assert_same(restored, middle)
            shardings = lambda tree: [x.sharding for x in jax.tree.leaves(tree)]
            assert shardings(restored) == shardings(wanted)
            _, state = network.train(*restored, range(MIDDLE, END), other)
            assert_same(js.get_masks(state), js.get_masks(straight[1]))
    np.savez(folder.parent / "params.npz", **straight[0])


if __name__ == "__main__":
    main()
