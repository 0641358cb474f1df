"""The inner optimizer's state when masks change: what it is handed is looked at.

A spy around the inner optimizer sees the state before each of its updates. Which leaf
of it is whose is told by shapes alone, of which no two parameters share one.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

import jaxsparse as js
from tests import reference
from tests.training.masked import grads_at


SHAPES = {"a": {"kernel": (16, 8)}, "b": {"kernel": (32, 24), "bias": (40,)}}


def label(tree):
    return jax.tree.map(lambda x: "matrix" if x.ndim > 1 else "vector", tree)


OPTIMIZERS = {
    "adamw": (lambda: optax.adamw(1e-2), 2),
    "lion": (lambda: optax.lion(1e-3), 1),
    "sgd": (lambda: optax.sgd(1e-2, momentum=0.9), 1),
    "adafactor": (
        lambda: optax.adafactor(1e-2, min_dim_size_to_factor=8, momentum=0.9),
        1,
    ),
    "adafactor, a leaf unfactored": (
        lambda: optax.adafactor(1e-2, min_dim_size_to_factor=16, momentum=0.9),
        2,
    ),
    "muon": (lambda: optax.contrib.muon(1e-2), 1),
    "partition": (
        lambda: optax.partition(
            {"matrix": optax.adam(1e-2), "vector": optax.sgd(1e-2)}, label
        ),
        2,
    ),
    "multi_steps": (
        lambda: optax.MultiSteps(optax.adam(1e-2), 2).gradient_transformation(),
        3,
    ),
    "masked": (
        lambda: optax.masked(
            optax.adam(1e-2), lambda tree: jax.tree.map(lambda x: x.ndim > 1, tree)
        ),
        2,
    ),
    "schedule_free": (lambda: optax.contrib.schedule_free_sgd(1e-2), 1),
}


def spied(inner):
    """The optimizer, and what it was last handed and last returned as its state."""
    seen = {}

    def update(updates, state, params=None, **extra):
        updates, after = inner.update(updates, state, params, **extra)
        seen.update(handed=state, left=after)
        return updates, after

    return optax.GradientTransformationExtraArgs(inner.init, update), seen


def tree_of(seed):
    rng = np.random.default_rng(seed)
    draw = lambda shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    return jax.tree.map(draw, SHAPES, is_leaf=lambda x: isinstance(x, tuple))


def masks_of(state):
    masks = js.get_masks(state)
    return {
        SHAPES[name]["kernel"]: reference.unpack(
            np.asarray(masks[name]["kernel"]), SHAPES[name]["kernel"], axis=0
        )
        for name in SHAPES
    }


def run(wrap, inner, tree, steps):
    """What is left by the step before the last, what the last one hands to `inner`."""
    inner, seen = spied(optax.with_extra_args_support(inner))
    tx = wrap(inner)

    @jax.jit
    def step(tree, state, gradients):
        updates, state = tx.update(gradients, state, tree)
        return optax.apply_updates(tree, updates), state, dict(seen)

    state, history = tx.init(tree), []
    for index in range(steps):
        tree, after, states = step(tree, state, grads_at(index, tree))
        history.append((masks_of(state), masks_of(after), states))
        state = after
    (_, _, previous), (before, after, last) = history[-2:]
    return before, after, previous["left"], last["handed"]


def check(before, after, left, handed, moments):
    """Zero where masks differ, as it was left everywhere else."""
    found = 0
    for old, new in zip(jax.tree.leaves(left), jax.tree.leaves(handed), strict=True):
        old, new = np.asarray(old), np.asarray(new)
        if old.shape in before:
            changed = before[old.shape] != after[old.shape]
            assert changed.any()
            assert old[changed].any()  # there was something to be set to zero
            np.testing.assert_array_equal(new, np.where(changed, 0, old))
            found += old.shape == (16, 8)
        else:
            np.testing.assert_array_equal(new, old)
    assert found == moments


@pytest.mark.sweep(keep=["[partition]"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_moments_of_weights_that_are_closed_are_zero(name):
    make, moments = OPTIMIZERS[name]
    schedule = js.one_shot_schedule(3)
    wrap = lambda inner: js.wrap_optimizer(inner, "2:4", schedule=schedule)
    before, after, left, handed = run(wrap, make(), tree_of(0), 4)
    assert all(mask.all() for mask in before.values())
    assert all(mask.mean() == 0.5 for mask in after.values())
    check(before, after, left, handed, moments)


def rigl(inner):
    return js.regrow_by_gradient(inner, "2:4", fraction=lambda _: 0.5, every=3)


@pytest.mark.sweep(keep=["[adamw]"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_moments_of_weights_that_move_are_zero(name):
    make, moments = OPTIMIZERS[name]
    check(*run(rigl, make(), tree_of(0), 4), moments)


def test_nothing_is_touched_between_changes():
    _, _, left, handed = run(rigl, optax.adamw(1e-2), tree_of(0), 6)
    jax.tree.map(np.testing.assert_array_equal, left, handed)


def test_a_name_that_ends_in_another_is_not_taken_for_it():
    """`kernel` at the top and in `mu`, of one shape: Adam's own field is called mu."""
    kernel = tree_of(0)["a"]["kernel"]
    tree = {"kernel": kernel, "mu": {"kernel": kernel}}
    inner, seen = spied(optax.with_extra_args_support(optax.adam(0.1)))
    schedule = js.one_shot_schedule(1)
    tx = js.wrap_optimizer(inner, [js.Rule("mu/kernel", "2:4")], schedule=schedule)
    state = tx.init(tree)
    _, state = tx.update(tree, state, tree)
    left = seen["left"]
    tx.update(tree, state, tree)
    for moment in ("mu", "nu"):
        old, new = getattr(left[0], moment), getattr(seen["handed"][0], moment)
        np.testing.assert_array_equal(new["kernel"], old["kernel"])
        assert (np.asarray(new["mu"]["kernel"]) == 0).mean() == 0.5
