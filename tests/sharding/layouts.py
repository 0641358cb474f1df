"""Checks of sharded trees on all available devices.

    python -m tests.sharding.layouts Auto
    python -m tests.sharding.layouts Explicit

The test suite runs it on eight CPU devices; on several GPUs run it by hand.
"""

import math
import sys
from functools import partial

import jax
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

import jaxsparse as js
from tests import reference
from tests.patterns.transposable_oracle import as_blocks, best_by_trial


COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "all-to-all",
    "collective-broadcast",
    "collective-permute",
    "reduce-scatter",
)

#: Pattern, shape and sharding of each leaf. The last two axes of a stack are those of a
#: matrix.
LAYOUTS = {
    "fsdp": ("2:4", (64, 128), P("data", None)),
    "tensor/up": ("2:4", (64, 128), P(None, "model")),
    "tensor/down": ("2:4", (128, 64), P("model", None)),
    "both/up": ("2:4", (64, 128), P("data", "model")),
    "both/down": ("8:16", (128, 64), P("model", "data")),
    "stack/up": ("2:4", (4, 64, 128), P(None, "data", "model")),
    "pipeline/down": ("2:4", (4, 128, 64), P("data", "model", None)),
}

#: Leaves whose masks depend on blocks of two axes, or on all inputs of an output.
WIDER = {
    "transposable": (js.NM(2, 4, transposable=True), (32, 64), P("data", "model")),
    "outputs": (js.PerOutput(0.5), (32, 64), P(None, ("data", "model"))),
    "heads": (js.PerOutput(0.5), (32, 8, 16), P(None, "data", "model")),
}

#: Shapes and shardings that split groups, or bytes of packed masks.
CUT = {
    "groups": ("2:4", (16, 64), P(("data", "model"), None)),
    "bytes": ("2:4", (32, 64), P(("data", "model"), None)),
    "wide groups": ("8:16", (64, 64), P(("data", "model"), None)),
    "odd groups": ("5:10", (80, 64), P(("data", "model"), None)),
    "along both": ("2:4", (8, 24), P("data", "model")),
}


def drawn(seed, shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def put(tree, shardings, mesh):
    device_put = lambda x, spec: jax.device_put(x, NamedSharding(mesh, spec))
    return jax.tree.map(device_put, tree, shardings)


def sent(compiled):
    """Returns the collective instructions of a compiled function."""
    lines = compiled.as_text().splitlines()
    return [line for line in lines if any(name in line for name in COLLECTIVES)]


def assert_alone(fn, *args):
    """Asserts that `fn` compiles to no collectives, and returns its result."""
    compiled = jax.jit(fn).lower(*args).compile()
    assert not sent(compiled), sent(compiled)[0]
    return compiled(*args)


def assert_sharded_alike(tree, params):
    def check(mask, leaf):
        same = mask.sharding.is_equivalent_to(leaf.sharding, leaf.ndim)
        assert same, (leaf.shape, mask.sharding, leaf.sharding)

    jax.tree.map(check, tree, params)


def check_whole_groups(mesh):
    """No collectives if groups lie within shards; results as on one device."""
    weights, expected, rules = {}, {}, []
    for seed, (path, (pattern, shape, _)) in enumerate(LAYOUTS.items()):
        weights[path], axis = drawn(seed, shape), len(shape) - 2
        n, m = map(int, pattern.split(":"))
        expected[path] = reference.top_n_mask(weights[path], n, m, axis)
        rules.append(js.Rule(path, pattern, axis=axis, sizes=None))
    params = put(weights, {path: spec for path, (*_, spec) in LAYOUTS.items()}, mesh)
    assert not any(leaf.cut for leaf in js.sharding_report(params, rules))

    masks = assert_alone(partial(js.create_masks, plan=rules), params)
    packed = assert_alone(partial(js.create_masks, plan=rules, packed=True), params)
    for made in (masks, packed):
        assert_sharded_alike(made, params)
        pruned = assert_alone(js.mask_params, params, made)
        assert_sharded_alike(pruned, params)
        for path, mask in expected.items():
            kept = np.where(mask, weights[path], 0)
            np.testing.assert_array_equal(pruned[path], kept, err_msg=path)
    jax.tree.map(np.testing.assert_array_equal, masks, expected)

    def step(params, state, gradients):
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    for schedule in (None, js.one_shot_schedule(0)):  # evaluated at each step
        tx = js.wrap_optimizer(optax.adamw(0.1), rules, schedule=schedule)
        shardings = jax.tree.map(lambda x: x.sharding, js.abstract_state(tx, params))
        state = jax.jit(tx.init, out_shardings=shardings)(params)
        assert_sharded_alike(js.get_masks(state), params)
        assert_sharded_alike(state.inner_state[0].nu, params)
        after, state = assert_alone(step, params, state, params)
        assert_sharded_alike(after, params)
        for path, leaf in after.items():
            np.testing.assert_array_equal(np.asarray(leaf) != 0, expected[path])


def check_wider_patterns(mesh):
    """No collectives for blocks or outputs that lie within shards, either."""
    weights = {path: drawn(0, shape) for path, (_, shape, _) in WIDER.items()}
    params = put(weights, {path: spec for path, (*_, spec) in WIDER.items()}, mesh)
    rules = [
        js.Rule(path, pattern, axis=0, sizes=None)
        for path, (pattern, _, _) in WIDER.items()
    ]
    assert not any(leaf.cut for leaf in js.sharding_report(params, rules))
    masks = assert_alone(partial(js.create_masks, plan=rules), params)
    assert_sharded_alike(masks, params)
    for path in ("outputs", "heads"):
        weight = abs(weights[path])
        expected = weight >= np.median(weight, axis=0)  # of 32: above the middle of two
        np.testing.assert_array_equal(masks[path], expected)
    block_masks = as_blocks(np.asarray(masks["transposable"]), 4)
    blocks = as_blocks(abs(weights["transposable"]), 4)
    for mask, block in zip(block_masks, blocks, strict=True):
        np.testing.assert_array_equal(mask, best_by_trial(block, 2))


def check_cut_groups(mesh):
    """Masks are right for any sharding, and the report predicts collectives."""
    weights = {path: drawn(0, shape) for path, (_, shape, _) in CUT.items()}
    params = put(weights, {path: spec for path, (*_, spec) in CUT.items()}, mesh)
    rules, expected, packed = [], {}, {}
    for path, (pattern, _, _) in CUT.items():
        rules.append(js.Rule(path, pattern, axis=0, sizes=None))
        n, m = map(int, pattern.split(":"))
        expected[path] = reference.top_n_mask(weights[path], n, m, 0)
        packed[path] = reference.pack(expected[path], 0)
    masks = js.create_masks(params, rules)
    assert_sharded_alike(masks, params)
    jax.tree.map(np.testing.assert_array_equal, masks, expected)
    masks = js.create_masks(params, rules, packed=True)
    jax.tree.map(np.testing.assert_array_equal, masks, packed)

    report = js.sharding_report(params, rules)
    for leaf in report:
        pattern, shape, spec = CUT[leaf.path]
        rows = shape[0] // math.prod(mesh.shape[axis] for axis in np.ravel(spec[0]))
        m = int(pattern.split(":")[1])
        assert (leaf.cut == "") == (rows % m == 0 and rows % 8 == 0), leaf
    instead = {leaf.path: leaf.instead or LAYOUTS["fsdp"][-1] for leaf in report}
    search = jax.jit(partial(js.create_masks, plan=rules, packed=True))
    cut = any(leaf.cut for leaf in report)
    assert cut or len(jax.devices()) < 8  # shards of two devices hold more
    assert bool(sent(search.lower(params).compile())) == cut
    assert not sent(search.lower(put(weights, instead, mesh)).compile())

    tx = js.wrap_optimizer(optax.sgd(0.1), rules)
    shardings = jax.tree.map(lambda x: x.sharding, js.abstract_state(tx, params))
    state = jax.jit(tx.init, out_shardings=shardings)(params)
    updates, _ = assert_alone(tx.update, params, state, params)
    for path, mask in expected.items():
        after = np.asarray(params[path]) + np.asarray(updates[path])
        np.testing.assert_array_equal(after != 0, mask, err_msg=path)
    state = js.wrap_optimizer(optax.sgd(0.1), masks=expected).init(params)
    for path, mask in js.get_masks(state).items():  # packed along the last axis
        np.testing.assert_array_equal(mask, reference.pack(expected[path], 1))


def main():
    kind = AxisType[sys.argv[1]]
    devices = len(jax.devices())
    assert devices > 1, "one device shards nothing"
    shapes = (
        {(devices // 2, 2), (2, devices // 2)} if devices < 4 else {(devices // 2, 2)}
    )
    for shape in shapes:
        mesh = jax.make_mesh(shape, ("data", "model"), axis_types=(kind, kind))
        check_whole_groups(mesh)
        check_wider_patterns(mesh)
        check_cut_groups(mesh)
    print(f"{devices} x {jax.devices()[0].device_kind}, {kind.name}: as on one device")


if __name__ == "__main__":
    main()
