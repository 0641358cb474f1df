"""What every model of another library goes through, one function a stage.

Expected values are NumPy's: the layers' axes are written down by hand in each test,
masks are compared with a sort of each group, and compressed weights with dense ones.
"""

import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsparse as js
from jaxsparse._trees import flatten, is_array


STEPS = 3


@dataclass(frozen=True)
class Model:
    """A tiny model of another library.

    Attributes:
      params: a tree of arrays.
      forward: the forward pass, `forward(params, *batch)`.
      batches: tuples of the further arguments.
      axes: the group axis of every leaf that is to be pruned, by a regular expression
        that matches its whole path, from the definition of the layers.
      by_names: the same for a plan without `forward`; None if names tell nothing.
      loss: what the default trainer minimises, `loss(params, *batch)`.
      train: the library's own trainer: it takes an optimizer and yields the parameters
        after each step.
      rules: what to prune.
      tolerance: of float32 products, relative to the largest output.
    """

    params: Any
    forward: Callable[..., Any]
    batches: Sequence[tuple[Any, ...]]
    axes: Mapping[str, int]
    by_names: Mapping[str, int] | None = None
    loss: Callable[..., Any] | None = None
    train: Callable[[optax.GradientTransformation], Iterator[Any]] | None = None
    rules: Any = "2:4"
    tolerance: float = 1e-5


def library(name: str, install: str) -> Any:
    """Imports a module, or skips the test with the command that installs it."""
    reason = f"pip install {install}"
    return pytest.importorskip(name, reason=reason, exc_type=ImportError)


def travel(model: Model, folder) -> None:
    """Drives a model through every stage."""
    plan = traced(model)
    named(model)
    masks = masked(model, plan)
    trained(model, plan)
    statistics = js.collect_statistics(
        model.forward, model.params, model.batches, plan=plan
    )
    assert set(statistics) == set(_sparse(plan))
    wanda(model, plan, statistics)
    sparsegpt(model, plan, statistics)
    small = js.compress_params(model.params, plan, masks=masks)
    applied(model, plan, masks, small)
    stored(folder / "model.safetensors", plan, small)


def traced(model: Model) -> js.Plan:
    """Plans by the trace of the forward pass; prints the plan."""
    plan = js.plan_sparsity(
        model.params, model.rules, fn=model.forward, args=model.batches[0]
    )
    print(f"\nfrom the trace\n{plan}")
    assert _sparse(plan) == _expected(plan, model.axes)
    return plan


def named(model: Model) -> None:
    """Plans by names; prints the plan."""
    if model.by_names is None:
        with pytest.raises(ValueError, match="nothing prunable") as error:
            js.plan_sparsity(model.params, model.rules)
        print(f"\nfrom names\n{error.value}")
        return
    plan = js.plan_sparsity(model.params, model.rules)
    print(f"\nfrom names\n{plan}")
    assert _sparse(plan) == _expected(plan, model.by_names)


def masked(model: Model, plan: js.Plan) -> Any:
    """Masks by magnitude keep what a sort of each group keeps."""
    masks = js.create_masks(model.params, plan)
    params = js.mask_params(model.params, masks)
    js.check_sparsity(params, plan)
    leaves, kept, dense = _leaves(params), _leaves(masks), _leaves(model.params)
    for path, axis in _sparse(plan).items():
        np.testing.assert_array_equal(kept[path], _best(dense[path], axis), path)
    for path in set(leaves) - set(_sparse(plan)):
        np.testing.assert_array_equal(leaves[path], dense[path], path)
    return masks


def trained(model: Model, plan: js.Plan) -> None:
    """Every step of the trainer leaves exact zeros, and changes kept weights."""
    tx = js.wrap_optimizer(optax.adamw(1e-3), plan)
    first, steps = _leaves(model.params), 0
    for params in (model.train or _trainer(model))(tx):
        steps += 1
        js.check_sparsity(params, plan)
        leaves = _leaves(params)
        for path, axis in _sparse(plan).items():
            kept = _best(first[path], axis)
            assert not leaves[path][~kept].any(), path
            assert np.isfinite(leaves[path]).all(), path
            assert (leaves[path][kept] != first[path][kept]).any(), path
    assert steps == STEPS


def wanda(model: Model, plan: js.Plan, statistics: Any) -> None:
    """Wanda's kept weights are unchanged."""
    result = js.WandaSearcher(plan).search(model.params, statistics)
    js.check_sparsity(result.params, plan)
    leaves, dense = _leaves(result.params), _leaves(model.params)
    for path in _sparse(plan):
        kept = leaves[path] != 0
        np.testing.assert_array_equal(leaves[path][kept], dense[path][kept], path)
        assert kept.mean() == 0.5, path


def sparsegpt(model: Model, plan: js.Plan, statistics: Any) -> None:
    """SparseGPT's weights are finite, and zero where its masks are False."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*(tokens|damping).*", UserWarning)
        result = js.SparseGPTSearcher(plan).search(model.params, statistics)
    js.check_sparsity(result.params, plan)
    leaves, masks = _leaves(result.params), _leaves(result.masks)
    for path in _sparse(plan):
        assert np.isfinite(leaves[path]).all(), path
        assert not leaves[path][~masks[path]].any(), path


def applied(model: Model, plan: js.Plan, masks: Any, small: Any) -> None:
    """The model on compressed weights computes what it does on masked ones."""
    js.check_sparsity(small, plan)
    params = js.mask_params(model.params, masks)
    restored = _leaves(js.decompress_params(small))
    for path, leaf in _leaves(params).items():
        np.testing.assert_array_equal(restored[path], leaf, path)
    run = jax.jit(js.sparse_apply(model.forward, plan))
    for batch in model.batches:
        outputs = jax.tree.leaves(run(small, *batch))
        expected = jax.tree.leaves(jax.jit(model.forward)(params, *batch))
        assert len(outputs) == len(expected)
        for output, target in zip(outputs, expected, strict=True):
            scale = np.abs(target).max() if np.size(target) else 1
            np.testing.assert_allclose(
                output, target, rtol=0, atol=model.tolerance * max(float(scale), 1e-30)
            )


def stored(path, plan: js.Plan, small: Any) -> None:
    """A file has every bit of the tree."""
    js.save_sparse(path, small)
    loaded = js.load_sparse(path, like=small)
    js.check_sparsity(loaded, plan)
    assert jax.tree.structure(loaded) == jax.tree.structure(small)
    for before, after in zip(
        jax.tree.leaves(small), jax.tree.leaves(loaded), strict=True
    ):
        assert before.dtype == after.dtype
        assert np.asarray(before).tobytes() == np.asarray(after).tobytes()


def _trainer(model: Model) -> Callable[[Any], Iterator[Any]]:
    loss = model.loss or _mean_square_of(model.forward)

    def train(tx):
        @jax.jit
        def step(params, state, *batch):
            gradients = jax.grad(loss)(params, *batch)
            updates, state = tx.update(gradients, state, params)
            return optax.apply_updates(params, updates), state

        params, state = model.params, tx.init(model.params)
        for i in range(STEPS):
            batch = model.batches[i % len(model.batches)]
            params, state = step(params, state, *batch)
            yield params

    return train


def _mean_square_of(forward):
    def loss(params, *batch):
        outputs = jax.tree.leaves(forward(params, *batch))
        return sum(jnp.mean((x - 1) ** 2) for x in outputs)

    return loss


def _leaves(tree: Any) -> dict[str, np.ndarray]:
    leaves = flatten(tree).by_path
    return {path: np.asarray(leaf) for path, leaf in leaves.items() if is_array(leaf)}


def _sparse(plan: js.Plan) -> dict[str, int | None]:
    return {leaf.path: leaf.axis for leaf in plan.sparse}


def _expected(plan: js.Plan, axes: Mapping[str, int]) -> dict[str, int]:
    matches = {
        path: axis
        for pattern, axis in axes.items()
        for path in plan.by_path
        if re.fullmatch(pattern, path)
    }
    unused = [p for p in axes if not any(re.fullmatch(p, x) for x in plan.by_path)]
    assert not unused, f"match no leaf: {unused}"
    return matches


def _best(weight: np.ndarray, axis: int) -> np.ndarray:
    """The two largest of each group of four, the lower index first."""
    groups = np.moveaxis(np.abs(weight.astype(np.float64)), axis, -1)
    shape = groups.shape
    groups = groups.reshape(-1, 4)
    order = np.argsort(-groups, axis=-1, kind="stable")
    kept = np.zeros(groups.shape, bool)
    np.put_along_axis(kept, order[:, :2], True, axis=-1)
    return np.moveaxis(kept.reshape(shape), -1, axis)
