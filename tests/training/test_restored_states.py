"""States as checkpoints return them, and parameters without values or not finite."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import serialization

import jaxsparse as js


PARAMS = {
    "up": {"kernel": jnp.arange(128.0).reshape(16, 8), "bias": jnp.ones(8)},
    "norms": [jnp.ones(3)],
}
FRACTION = {"fraction": optax.constant_schedule(0.3)}
OPTIMIZERS = {
    "wrapped": js.wrap_optimizer(optax.adamw(0.1), "2:4"),
    "chained": optax.chain(optax.clip(1.0), js.keep_params_sparse("2:4")),
    "regrowing": js.regrow_by_gradient(optax.sgd(0.1), "2:4", **FRACTION),
    "straight through": optax.chain(js.add_sr_ste_decay("2:4"), optax.sgd(0.1)),
    "accumulating": optax.MultiSteps(js.wrap_optimizer(optax.sgd(0.1), "2:4"), 2),
}


def restored_by_orbax(state, folder):
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder / "state", state)
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(folder / "state")


def restored_by_flax(state, _):
    return serialization.msgpack_restore(serialization.to_bytes(state))


@pytest.mark.parametrize("restore", [restored_by_orbax, restored_by_flax])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_state_that_was_restored_without_a_target(tmp_path, name, restore):
    tx = OPTIMIZERS[name]
    restored = restore(tx.init(PARAMS), tmp_path)
    words = r"restore it with the target abstract_state\(tx, params\)"
    for read in (js.get_masks, lambda state: js.metrics(state, PARAMS)):
        with pytest.raises(TypeError, match=words):
            read(restored)
        with pytest.raises(TypeError, match=words):
            read({"params": PARAMS, "opt_state": restored})
    if restore is restored_by_orbax and name != "accumulating":  # lists, as Optax's own
        with pytest.raises(TypeError, match=words):
            tx.update(PARAMS, restored, PARAMS)


def test_the_remedy(tmp_path):
    tx = OPTIMIZERS["chained"]
    state = tx.init(PARAMS)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", state)
    with ocp.StandardCheckpointer() as checkpointer:
        target = js.abstract_state(tx, PARAMS)
        restored = checkpointer.restore(tmp_path / "state", target)
    jax.tree.map(np.testing.assert_array_equal, restored, state)
    tx.update(PARAMS, restored, PARAMS)


def test_a_model_with_parameters_of_these_names_has_no_masks():
    params = {"count": jnp.ones(2), "mask": jnp.ones(2)}
    with pytest.raises(ValueError, match="no masks in this optimizer state"):
        js.get_masks(optax.adam(0.1).init(params))


@pytest.mark.parametrize("name", ["wrapped", "chained", "regrowing"])
def test_tree_map_params(name):
    tx = OPTIMIZERS[name]
    state = tx.init(PARAMS)
    doubled = optax.tree_map_params(tx, lambda x: x * 2, state)
    kernel = np.asarray(js.get_masks(state)["up"]["kernel"])
    np.testing.assert_array_equal(js.get_masks(doubled)["up"]["kernel"], kernel * 2)
    names = jax.tree.map(lambda x: f"{x.ndim} axes", PARAMS)
    named = optax.tree_map_params(
        tx,
        lambda leaf, name: None if leaf is None else name,
        state,
        names,
        is_leaf=lambda leaf: leaf is None,
    )
    assert js.get_masks(named) == {
        "up": {"kernel": "2 axes", "bias": None},
        "norms": [None],
    }


SHAPES = jax.eval_shape(lambda: PARAMS)
MASKS = js.create_masks(PARAMS)


@pytest.mark.parametrize(
    "call",
    [
        lambda: js.create_masks(SHAPES),
        lambda: js.create_masks(PARAMS, scores=SHAPES),
        lambda: js.mask_params(SHAPES, MASKS),
        lambda: js.compress_params(SHAPES),
        lambda: js.compress_params(SHAPES, masks=MASKS),
        lambda: js.check_sparsity(SHAPES),
        lambda: js.check_sparsity(jax.eval_shape(js.compress_params, PARAMS)),
        lambda: js.MagnitudeSearcher().search(SHAPES),
        lambda: OPTIMIZERS["wrapped"].init(SHAPES),
        lambda: OPTIMIZERS["regrowing"].init(SHAPES),
        lambda: js.wrap_optimizer(optax.sgd(0.1), masks=MASKS).init(SHAPES),
    ],
)
def test_abstract_leaves_are_named(call):
    words = r"leaf '(up/kernel|up/bias|norms/0)' of shape .* has no values: give arrays"
    with pytest.raises(TypeError, match=words) as error:
        call()
    path = str(error.value).split("'")[1]
    shape = {"up/kernel": (16, 8), "up/bias": (8,), "norms/0": (3,)}[path]
    assert f"of shape {shape}" in str(error.value)
    jax.eval_shape(js.create_masks, SHAPES)


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_pruned_weights_that_are_not_finite_are_named(value):
    kernel = np.ones((16, 8), np.float32)
    masks = {"kernel": jnp.asarray(np.arange(16)[:, None] % 4 < np.full(8, 2))}
    tx = js.wrap_optimizer(optax.sgd(0.0), masks=masks)
    state = tx.init({"kernel": jnp.asarray(kernel)})
    kernel[7, 3] = value  # a pruned weight of group 1
    params = {"kernel": jnp.asarray(kernel)}
    assert js.metrics(state, params)["nonfinite"] == 1
    updates, state = tx.update(jax.tree.map(jnp.zeros_like, params), state, params)
    params = optax.apply_updates(params, updates)
    # IEEE 754: no update makes the sum zero.
    assert np.isnan(params["kernel"][7, 3])
    assert np.sum(np.asarray(params["kernel"]) != 0) == 16 * 8 / 2 + 1
    assert js.metrics(state, params)["nonfinite"] == 1
    words = (
        r"1 NaN or infinite weights, which no update can prune; 1 of 32 groups keep "
        r"more than 2; the first, with 3, starts at \(4, 3\)"
    )
    with pytest.raises(ValueError, match=words):
        js.check_sparsity(params)
    remedied = js.mask_params(params, masks)
    js.check_sparsity(remedied)
    assert js.metrics(state, remedied)["nonfinite"] == 0
