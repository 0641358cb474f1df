"""Masks of sharded weights, over automatic and explicit axes, equal one device's."""

import os
import subprocess
import sys
import textwrap

import pytest


# A process of its own: the number of devices is fixed once JAX has started.
CODE = """
import sys

import jax
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

import jaxsparse as js
from tests import reference

kind, pattern = AxisType[sys.argv[1]], (int(sys.argv[2]), int(sys.argv[3]))
mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(kind, kind))
weight = np.random.default_rng(0).normal(size=(32, 16)).astype("float32")
expected = reference.top_n_mask(weight, *pattern, 0)
rules = [js.Rule(".*", pattern, axis=0, sizes=None)]
specs = P("a", "b"), P(("a", "b"), None), P(None, ("a", "b")), P("b", None)
for spec in specs:  # 32 rows on 8 devices: no group of 8 is whole on any of them
    params = {"w": jax.device_put(weight, NamedSharding(mesh, spec))}
    for packed in (False, True):
        masks = js.create_masks(params, rules, packed=packed)
        mask = np.asarray(masks["w"])
        wanted = reference.pack(expected, 0) if packed else expected
        np.testing.assert_array_equal(mask, wanted, err_msg=str((spec, packed)))
        pruned = js.mask_params(params, masks)["w"]
        assert pruned.sharding.is_equivalent_to(params["w"].sharding, 2)
        np.testing.assert_array_equal(pruned, np.where(expected, weight, 0))
    tx = js.wrap_optimizer(optax.adamw(0.1), rules)
    state = jax.jit(tx.init)(params)
    updates, state = jax.jit(tx.update)(params, state, params)
    stepped = jax.jit(optax.apply_updates)(params, updates)["w"]
    assert np.array_equal(np.asarray(stepped) != 0, expected)
    for other in (weight, params["w"]):  # weights or masks that are not sharded alike
        pruned = js.mask_params({"w": other}, {"w": jax.numpy.asarray(expected)})["w"]
        np.testing.assert_array_equal(pruned, np.where(expected, weight, 0))
"""


@pytest.mark.parametrize("pattern", ["2 4", "4 8", "8 16", "16 32"])
@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
def test_sharded_masks_equal_those_of_one_device(kind, pattern):
    devices = "--xla_force_host_platform_device_count=8"
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(CODE), kind, *pattern.split()],
        env=os.environ | {"XLA_FLAGS": devices, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
