"""Compiled programs that train one stage, the same for all stages that are alike."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float32

from jaxsparse._trace import NotAlikeError, Stage, evaluate, keep_equation, stage_key


@dataclass(frozen=True)
class _Trainable:
    """What programs that train a stage are compiled from. It holds no arrays.

    Attributes:
      key: equal for alike stages; None for a stage that can't be compared.
      optimizer: the optimizer.
      trained: for each parameter of the stage, which of the trained leaves it is.
      outputs: the indices of the outputs that the loss compares.
      stage: the stage, without its constants.
    """

    key: Hashable
    optimizer: optax.GradientTransformation
    trained: tuple[int | None, ...]
    outputs: tuple[int, ...]
    stage: Stage = field(compare=False)


class _Programs(NamedTuple):
    """Compiled functions of one kind of stage."""

    run: Callable[..., Any]
    loss: Callable[..., Any]
    step: Callable[..., Any]


class StageTraining(NamedTuple):
    """A stage, and the programs that train it.

    Attributes:
      stage: the stage.
      programs: its programs.
    """

    stage: Stage
    programs: _Programs

    def _inputs(self, arrays: Sequence[Any], values: Sequence[Any]) -> tuple[Any, ...]:
        params = [arrays[i] for i in self.stage.params]
        return list(self.stage.consts), params, list(values)

    def run_dense(self, dense: Sequence[Any], values: Sequence[Any]) -> list[Array]:
        """Returns the outputs of the dense stage that the loss compares."""
        return self.programs.run(*self._inputs(dense, values))

    def loss(self, arrays, weights, masks, batch, target) -> Float32[Array, ""]:
        """Returns the loss of one batch."""
        inputs = self._inputs(arrays, batch.values)
        return self.programs.loss(weights, masks, inputs, target, batch.weights)

    def step(self, arrays, weights, masks, state, batch, target) -> tuple[Any, Any]:
        """Returns the weights and the optimizer's state after a step."""
        inputs = self._inputs(arrays, batch.values)
        return self.programs.step(weights, masks, state, inputs, target, batch.weights)


def stage_training(
    stage: Stage,
    paths: Sequence[str],
    trained: Sequence[str],
    optimizer: optax.GradientTransformation,
) -> StageTraining:
    """Returns the programs that train a stage.

    Args:
      stage: the stage.
      paths: the paths of all parameters of the function.
      trained: the paths of those that are trained.
      optimizer: the optimizer.
    """
    index = {path: i for i, path in enumerate(trained)}
    outputs = _compared_outputs(stage)
    trainable = _Trainable(
        None,
        optimizer,
        tuple(index.get(paths[i]) for i in stage.params),
        outputs,
        stage._replace(consts=[None for _ in stage.consts]),
    )
    try:
        key = stage_key(stage, lambda _: None)
    except NotAlikeError:
        return StageTraining(stage, _compile(trainable))
    trainable = _Trainable(key, optimizer, trainable.trained, outputs, trainable.stage)
    return StageTraining(stage, _compile_alike(trainable))


def _compared_outputs(stage: Stage) -> tuple[int, ...]:
    """Returns the outputs that are floats which the stage computes.

    They are the values that the next stage takes; the results of its products if there
    are none.
    """
    own = [
        i
        for i, v in enumerate(stage.jaxpr.outvars)
        if jnp.issubdtype(v.aval.dtype, jnp.floating) and v not in stage.jaxpr.invars
    ]
    passed_on = tuple(i for i in own if i >= stage.num_products)
    return passed_on or tuple(own)


def _compile(trainable: _Trainable) -> _Programs:
    stage, optimizer = trainable.stage, trainable.optimizer

    def run(consts: list[Any], params: list[Any], values: list[Any]) -> list[Array]:
        outputs, _ = evaluate(stage.bind(consts), [*params, *values], keep_equation)
        return [outputs[i] for i in trainable.outputs]

    def loss(weights, masks, inputs, target, token_weights) -> Float32[Array, ""]:
        consts, fixed, values = inputs
        params = [
            x if i is None else _masked(weights[i], masks[i]).astype(x.dtype)
            for x, i in zip(fixed, trainable.trained, strict=True)
        ]
        outputs = run(consts, params, values)
        errors = [
            _relative_error(output, dense, token_weights)
            for output, dense in zip(outputs, target, strict=True)
        ]
        return sum(errors, jnp.zeros((), jnp.float32)) / np.float32(len(errors))

    @partial(jax.jit, donate_argnums=2)
    def step(weights, masks, state, inputs, target, token_weights):
        gradients = jax.grad(loss)(weights, masks, inputs, target, token_weights)
        updates, state = optimizer.update(gradients, state, weights)
        moved: Any = optax.apply_updates(weights, updates)
        return [_masked(x, m) for x, m in zip(moved, masks, strict=True)], state

    return _Programs(jax.jit(run), jax.jit(loss), step)


#: Programs that train stages, by what they depend on. They hold no parameters.
_compile_alike = lru_cache(maxsize=64)(_compile)


def _masked(weight: Array, mask: Array | None) -> Array:
    return weight if mask is None else jnp.where(mask, weight, jnp.zeros_like(weight))


def _relative_error(
    output: Array, dense: Array, token_weights: Array | None
) -> Float32[Array, ""]:
    """Returns the squared error over the squares of the dense output."""
    output, dense = output.astype(jnp.float32), dense.astype(jnp.float32)
    counts = _weights_like(dense, token_weights)
    if counts is not None:  # padding may be NaN, whose gradient times zero is NaN
        is_padding = counts == 0
        output, dense = (jnp.where(is_padding, 0, x) for x in (output, dense))
    scale = jnp.float32(1) if counts is None else counts
    error = jnp.sum(scale * jnp.square(output - dense))
    size = jnp.sum(scale * jnp.square(dense))
    return error / jnp.maximum(size, jnp.finfo(jnp.float32).tiny)


def _weights_like(x: Array, weights: Array | None) -> Array | None:
    """Returns token weights along the leading axes of a value, None if they differ."""
    if weights is None or not x.ndim:
        return None
    if x.shape[0] == weights.size:
        weights = weights.reshape(-1)
    if x.shape[: weights.ndim] != weights.shape:
        return None
    weights = weights.astype(jnp.float32)
    return weights.reshape(*weights.shape, *[1] * (x.ndim - weights.ndim))
