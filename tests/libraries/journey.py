"""What every model of another library goes through, one function a stage.

Expected values are NumPy's: each test writes down by hand which leaves are pruned and
why the others stay dense, masks are compared with a sort of each group, and compressed
weights with dense ones.
"""

import importlib
import importlib.util
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import optax
import pytest

import jaxsparse as js
from jaxsparse._trees import flatten, is_array


STEPS = 3

# Reasons for dense leaves, as a plan prints them.
GATHERED = "gathered"
HEAD = "head; pass dense_head=False"
NO_MATMUL = "not a matmul operand"
#: What follows "axis 1 is not divisible by 4".
ANOTHER_M = "pass Rule(..., pattern) with another m"


@dataclass(frozen=True)
class Model:
    """A tiny model of another library, and what is expected of its plan.

    Leaves are named by regular expressions for whole paths. Each leaf is matched by
    exactly one of those in `pruned` and `dense`.

    Attributes:
      name: the library.
      params: a tree of arrays.
      forward: the forward pass, `forward(params, *batch)`.
      loss: what is minimised, `loss(params, *batch)`.
      batches: tuples of the further arguments.
      kernels: how many leaves are pruned, counted in the definition of the model.
      pruned: the group axis of each leaf that is pruned.
      dense: the reason of each leaf that stays dense.
      by_names: as `pruned`, for a plan without `forward`; empty if names tell nothing.
      optimizer: the library's own, or that of its examples.
      train: the library's own trainer: it takes an optimizer and yields the parameters
        after each step. None if its users write the step themselves.
      rules: what to prune.
      tolerance: of float32 products, relative to the largest output.
    """

    name: str
    params: Any
    forward: Callable[..., Any]
    loss: Callable[..., Any]
    batches: Sequence[tuple[Any, ...]]
    kernels: int
    pruned: Mapping[str, int]
    dense: Mapping[str, str]
    by_names: Mapping[str, int]
    optimizer: optax.GradientTransformation
    train: Callable[[optax.GradientTransformation], Iterator[Any]] | None = None
    rules: Any = "2:4"
    tolerance: float = 1e-5


def library(name: str) -> Any:
    """Imports a module, or skips the test if its library is not installed."""
    package = name.split(".")[0]
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed: see tests/libraries/requirements.txt")
    return importlib.import_module(name)


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
    """Prints the plan by the trace of the forward pass, which the loss's is too."""
    plan = js.plan_sparsity(
        model.params, model.rules, fn=model.forward, args=model.batches[0]
    )
    print(f"\n{model.name}: {_count(plan)} by the trace of the forward pass\n{plan}")
    assert _sparse(plan) == _matching(plan, model.pruned)
    assert len(plan.sparse) == model.kernels
    reasons = {leaf.path: leaf.reason for leaf in plan.leaves if not leaf.pattern}
    assert reasons == _matching(plan, model.dense)
    assert plan == js.plan_sparsity(
        model.params, model.rules, fn=model.loss, args=model.batches[0]
    )
    return plan


def named(model: Model) -> None:
    """Plans by names; prints the plan, or the error if names tell nothing."""
    if not model.by_names:
        with pytest.raises(ValueError, match="nothing prunable") as error:
            js.plan_sparsity(model.params, model.rules)
        print(f"\n{model.name} by names: {error.value}")
        return
    plan = js.plan_sparsity(model.params, model.rules)
    print(f"\n{model.name}: {_count(plan)} by names\n{plan}")
    assert _sparse(plan) == _matching(plan, model.by_names)


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
    tx = js.wrap_optimizer(model.optimizer, plan)
    first, steps = _leaves(model.params), 0
    for params in (model.train or _hand_written(model))(tx):
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


def _hand_written(model: Model) -> Callable[[Any], Iterator[Any]]:
    """The step that users of JAX write themselves."""

    def train(tx):
        @jax.jit
        def step(params, state, *batch):
            gradients = jax.grad(model.loss)(params, *batch)
            updates, state = tx.update(gradients, state, params)
            return optax.apply_updates(params, updates), state

        params, state = model.params, tx.init(model.params)
        for i in range(STEPS):
            batch = model.batches[i % len(model.batches)]
            params, state = step(params, state, *batch)
            yield params

    return train


def _leaves(tree: Any) -> dict[str, np.ndarray]:
    leaves = flatten(tree).by_path
    return {path: np.asarray(leaf) for path, leaf in leaves.items() if is_array(leaf)}


def _sparse(plan: js.Plan) -> dict[str, int | None]:
    return {leaf.path: leaf.axis for leaf in plan.sparse}


def _count(plan: js.Plan) -> str:
    return f"{len(plan.sparse)} of {len(plan.leaves)} leaves are pruned"


def _matching(plan: js.Plan, expected: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what is expected of each leaf by path."""
    by_path = {}
    for pattern, value in expected.items():
        paths = [path for path in plan.by_path if re.fullmatch(pattern, path)]
        assert paths, f"{pattern} matches no leaf"
        assert not by_path.keys() & set(paths), f"{pattern} matches a leaf again"
        by_path |= dict.fromkeys(paths, value)
    return by_path


def _best(weight: np.ndarray, axis: int) -> np.ndarray:
    """The two largest of each group of four, the lower index first."""
    groups = np.moveaxis(np.abs(weight.astype(np.float64)), axis, -1)
    shape = groups.shape
    groups = groups.reshape(-1, 4)
    order = np.argsort(-groups, axis=-1, kind="stable")
    kept = np.zeros(groups.shape, bool)
    np.put_along_axis(kept, order[:, :2], True, axis=-1)
    return np.moveaxis(kept.reshape(shape), -1, axis)
