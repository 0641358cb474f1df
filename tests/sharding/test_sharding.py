"""Masks of sharded weights, over automatic and explicit axes, as on one device."""

import pytest

from tests.sharding.eight_devices import run_on_eight_devices


# In a separate process, since the number of devices is fixed once JAX has started.
CODE = """
import itertools
import sys

import jax
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

import jaxsparse as js
from jaxsparse._patterns.nm_kernel import nm_mask_on_gpu
from jaxsparse._patterns.ranking import RankKeys, rank_by_magnitude
from jaxsparse.kernels import nm_mask
from tests import reference

kind = AxisType[sys.argv[1]]
mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(kind, kind))
weight = np.random.default_rng(0).normal(size=(32, 16)).astype("float32")
# 32 rows on 8 devices: every group of 8 is split.
specs = P("a", "b"), P(("a", "b"), None), P(None, ("a", "b")), P("b", None)
for pattern, spec in itertools.product([(4, 8), (16, 32)], specs):
    expected = reference.top_n_mask(weight, *pattern, 0)
    rules = [js.Rule(".*", pattern, axis=0, sizes=None)]
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


def by_xla(groups, *, n, axis, packed, **options):  # in place of the GPU kernel
    keys = RankKeys(groups, **options).keys
    mask = jax.numpy.argsort(jax.numpy.argsort(-keys, axis), axis) < n
    return jax.numpy.packbits(mask, axis, "little") if packed else mask


nm_mask.nm_mask = by_xla
line = jax.make_mesh((8,), ("a",), axis_types=(AxisType.Auto,))
for rows in (48, 64, 128):
    weight = np.random.default_rng(0).normal(size=(rows, 4)).astype("float32")
    expected = reference.top_n_mask(weight, 8, 16, 0)
    ranked = rank_by_magnitude(jax.device_put(weight, NamedSharding(line, P("a"))))
    for packed in (False, True):

        def find(bits):
            groups = ranked._replace(bits=bits.reshape(-1, 16, 4))
            return nm_mask_on_gpu(groups, 8, 1, packed=packed).reshape(-1, 4)

        wanted = reference.pack(expected, 0) if packed else expected
        np.testing.assert_array_equal(jax.jit(find)(ranked.bits), wanted)
"""


@pytest.mark.sweep(full=["Auto"])
@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
def test_sharded_masks_equal_those_of_one_device(kind):
    run_on_eight_devices("-c", CODE, kind)


@pytest.mark.sweep(full=["Auto"])
@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
def test_whole_groups_are_searched_masked_and_trained_without_communication(kind):
    run_on_eight_devices("-m", "tests.sharding.layouts", kind)


@pytest.mark.sweep
def test_the_guide_to_several_devices_runs():
    run_on_eight_devices(
        "-W", "error", "-m", "tests.docs.guide", "docs/several_devices.md"
    )


PATTERNS = """
import itertools
import sys

import jax
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

import jaxsparse as js

weight = np.random.default_rng(0).normal(size=(32, 16)).astype("float32")


def top(scores, kept):
    order = np.argsort(-scores.ravel(), kind="stable")[:kept]
    return np.isin(np.arange(scores.size), order).reshape(scores.shape)


def greatest(block):  # of all masks with 2 of 4 in every row and column
    rows = [c for c in itertools.product((0, 1), repeat=4) if sum(c) == 2]
    every = np.array(list(itertools.product(rows, repeat=4)))
    valid = every[(every.sum(1) == 2).all(1)]
    return valid[(valid * abs(block)).sum((1, 2)).argmax()] == 1


both = [[greatest(b) for b in np.hsplit(rows, 4)] for rows in np.vsplit(weight, 8)]
blocks = top(abs(weight).reshape(4, 8, 8, 2).sum((1, 3)), 16)
wanted = {
    js.Unstructured(0.9): top(abs(weight), 51),
    js.Block((8, 2), 0.5): blocks.repeat(8, 0).repeat(2, 1),
    "2:4 transposable": np.block(both),
    js.Channel(0.25): np.broadcast_to(top(abs(weight).sum(0), 12), (32, 16)),
}
moving = js.Unstructured(0.9), "2:4"


def trained(tree, slopes, of):  # some wrappers by each pattern, for three steps
    grow = {"fraction": lambda _: 0.5, "every": 1}
    key = jax.random.key(0)
    for i, pattern in enumerate(moving):
        rules = [js.Rule(".*", pattern, axis=0, sizes=None)]
        every_tx = (
            js.wrap_optimizer(
                optax.adam(0.1), rules, schedule=js.cubic_schedule(0, 2)
            ),
            js.regrow_by_gradient(optax.adam(0.1), rules, **grow),
            js.regrow_at_random(optax.adam(0.1), rules, key=key, **grow),
            optax.chain(js.add_sr_ste_decay(rules), optax.adam(0.1)),
        )
        for tx in (every_tx[j] for j in range(4) if (i + j) % 2 in of):
            params, state = tree, jax.jit(tx.init)(tree)
            for _ in range(3):
                updates, state = jax.jit(tx.update)(slopes, state, params)
                params = jax.jit(optax.apply_updates)(params, updates)
            yield np.asarray(params["w"])


# Of kinds, patterns, placements and wrappers all pairs, not all combinations.
kinds = AxisType.Auto, AxisType.Explicit
alone = {
    k: list(trained({"w": weight}, {"w": weight[::-1]}, [k]))
    for k, kind in enumerate(kinds)
    if kind.name in sys.argv
}
specs = P("a", "b"), P(("a", "b"), None), P(None, ("a", "b")), P("b", None)
for k, kind in enumerate(kinds):
    if kind.name not in sys.argv:
        continue
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(kind, kind))
    line = jax.make_mesh((8,), ("a",), axis_types=(kind,))
    placements = [*((mesh, spec) for spec in specs), (line, P("a"))]
    for j, (mesh, spec) in enumerate(placements):
        put = lambda x: {"w": jax.device_put(x, NamedSharding(mesh, spec))}
        params, gradients = put(weight), put(weight[::-1].copy())
        for i, (pattern, expected) in enumerate(wanted.items()):
            if (i + j + k) % 2:
                continue
            rules = [js.Rule(".*", pattern, axis=0, sizes=None)]
            for packed in (False, True) if spec == specs[0] else (False,):
                masks = js.create_masks(params, rules, packed=packed)
                pruned = js.mask_params(params, masks)["w"]
                np.testing.assert_array_equal(pruned, np.where(expected, weight, 0))
        if spec == specs[0]:
            together = trained(params, gradients, [k])
            for one, many in zip(alone[k], together, strict=True):
                np.testing.assert_array_equal(one != 0, many != 0)
                np.testing.assert_allclose(one, many, rtol=1e-5, atol=1e-6)
    abstract = js.abstract_state(optax.adam(0.1), {"u": jax.numpy.ones(8)} | params)
    device_sets = [x.sharding.device_set for x in jax.tree.leaves(abstract)]
    assert all(devices == set(mesh.devices.flat) for devices in device_sets)
    with jax.set_mesh(mesh):  # an array need not be on the current mesh
        for pattern, expected in wanted.items():
            rules = [js.Rule(".*", pattern, axis=0, sizes=None)]
            mask = js.create_masks({"w": weight}, rules)["w"]
            np.testing.assert_array_equal(mask, expected)
"""


@pytest.mark.sweep(full=["test_other_patterns"])
def test_other_patterns_and_moving_masks_equal_those_of_one_device(request):
    kinds = (
        ("Auto", "Explicit") if request.config.getoption("--full") else ("Explicit",)
    )
    run_on_eight_devices("-c", PATTERNS, *kinds)


CALIBRATION = """
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

import jaxsparse as js

rng = np.random.default_rng(0)
draw = lambda *sizes: rng.normal(size=sizes).astype("float32")
tree = {
    "up": draw(16, 32),
    "down": draw(32, 16),
    "experts": draw(2, 16, 8),
    "out": draw(2, 8, 8),
}
x = draw(8, 12, 16)


def fn(params, x):
    up = params["up"] * np.linspace(0.5, 2, 16, dtype="float32")[:, None]
    y = jnp.tanh(jnp.einsum("bsd,df->bsf", x, up))
    # A contraction of explicitly sharded axes must name the sharding of its result.
    to = P("data") if explicit and batch is not x else None
    y = jnp.einsum("bsf,fd->bsd", y, params["down"], out_sharding=to)
    y = jnp.einsum("bsd,edh->bseh", y, params["experts"])
    return jnp.einsum("bseh,eho->bso", y, params["out"])


rules = [
    js.Rule("experts", "2:4", axis=1),
    js.Rule("out", js.Unstructured(0.5), axis=1),
    js.Rule("up", js.PerOutput(0.5), axis=0),
    js.Rule(".*", "2:4", axis=0),
]
specs = {"up": P(None, "model"), "down": P("model", None), "experts": P("model")}
specs["out"] = P()


def calibrated(params, update):
    statistics = js.collect_statistics(fn, params, [batch, batch], plan=rules)
    wanda = js.WandaSearcher(rules).search(params, statistics)
    searcher = js.SparseGPTSearcher(rules, update_weights=update)
    sparsegpt = searcher.search(params, statistics)
    moments = {path: leaf.second_moment for path, leaf in statistics.items()}
    masks = wanda.masks, sparsegpt.masks
    # Least squares are solved either by the searcher, or for Wanda's masks.
    fitted = js.fit_weights(params, wanda.masks, statistics) if update is True else None
    return moments, *masks, sparsegpt.params, wanda.params, fitted


close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
settings = (AxisType.Auto, True), (AxisType.Explicit, "optimal")
for kind, update in settings:
    if kind.name not in sys.argv:
        continue
    batch, explicit = x, False
    alone = calibrated(tree, update)
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(kind, kind))
    put = lambda x, spec: jax.device_put(x, NamedSharding(mesh, spec))
    params = {name: put(leaf, specs[name]) for name, leaf in tree.items()}
    batch, explicit = put(x, P("data")), kind == AxisType.Explicit
    with jax.set_mesh(mesh):
        together = calibrated(params, update)
    jax.tree.map(close, alone, together)
    _, wanda_masks, sparsegpt_masks, sparsegpt, wanda, _ = together
    for name, leaf in params.items():
        for after in (sparsegpt, sparsegpt_masks, wanda, wanda_masks):
            same = after[name].sharding.is_equivalent_to(leaf.sharding, leaf.ndim)
            assert same, name
"""


@pytest.mark.sweep
def test_calibration_of_sharded_batches_and_weights_equals_that_of_one_device(request):
    kinds = (
        ("Auto", "Explicit") if request.config.getoption("--full") else ("Explicit",)
    )
    run_on_eight_devices("-c", CALIBRATION, *kinds)
