"""Reconstruction: the weights of a pruned stage are trained to give its dense outputs.

The loss needs no labels and one stage in memory, so it is an order of magnitude cheaper
than training the whole network.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from jaxsparse._calibration.carried_batches import StageBatch
from jaxsparse._calibration.stage_training import stage_training
from jaxsparse._patterns import as_bool
from jaxsparse._sharding import commit_like
from jaxsparse._trace import Stage


@dataclass(frozen=True)
class Reconstruction:
    """How the weights of a pruned stage are trained to give its dense outputs.

    The loss is the squared error of the values that the next stage takes, relative to
    their squares, where the dense stage gets the same inputs. Gradients are those of
    the computation itself: derivative rules of `jax.custom_jvp` and `jax.custom_vjp`
    are not used.

    Attributes:
      steps: the number of steps for each stage, at most; each takes one batch.
      optimizer: any Optax optimizer. The default is Adam, with a learning rate of 3e-4
        that falls to zero by a cosine.
      held_out: the fraction of batches, at least one, that are neither trained on nor
        in the statistics. Their loss chooses the weights: those with the lowest one,
        and never a higher one than before.
      every: the number of steps from one held-out loss to the next.
      patience: training of a stage ends after this many held-out losses in a row that
        are not the lowest so far.
      report: called with a `ReconstructedStage` after each stage, such as `print`.

    Raises:
      ValueError: a number is out of range.

    >>> from jaxsparse import MagnitudeSearcher, Rule, prune_sequentially
    >>> params = {"kernel": jax.random.normal(jax.random.key(0), (16, 16))}
    >>> fn = lambda params, x: jnp.tanh(x @ params["kernel"])
    >>> draw = lambda i: jax.random.normal(jax.random.key(i), (64, 16)).cumsum(axis=1)
    >>> batches = [draw(i) for i in range(8)]
    >>> stages, adam = [], optax.adam(0.01)
    >>> result = prune_sequentially(
    ...     fn,
    ...     params,
    ...     batches,
    ...     MagnitudeSearcher([Rule("kernel", "2:4", axis=0)]),
    ...     boundaries=["kernel"],
    ...     reconstruct=Reconstruction(optimizer=adam, report=stages.append),
    ... )
    >>> stages[0].after < stages[0].before
    True
    """

    steps: int = 200
    optimizer: optax.GradientTransformation | None = None
    held_out: float = 0.125
    every: int = 20
    patience: int = 3
    report: Callable[["ReconstructedStage"], Any] | None = None

    def __post_init__(self) -> None:
        for name in ("steps", "every", "patience"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"{name} must be at least 1, got {getattr(self, name)}"
                )
        if not 0 < self.held_out < 1:
            raise ValueError(
                "held_out must be a fraction between 0 and 1, such as 0.125, got "
                f"{self.held_out}"
            )

    def held_out_batches(self, count: int) -> list[int]:
        """Returns the numbers of the batches, of `count`, that are held out.

        Raises:
          ValueError: there is only one batch.
        """
        if count < 2:
            raise ValueError(
                "reconstruction holds batches out to know when to stop, and there is "
                "only one: give at least two"
            )
        number = min(max(1, round(self.held_out * count)), count - 1)
        return [(2 * i + 1) * count // (2 * number) for i in range(number)]


class ReconstructedStage(NamedTuple):
    """What training a stage did.

    Attributes:
      leaves: the paths of its trained leaves.
      steps: the number of steps.
      before: the held-out loss before the first step.
      after: the lowest held-out loss, that of the returned weights.
    """

    leaves: tuple[str, ...]
    steps: int
    before: float
    after: float


def reconstruct_stage(
    settings: Reconstruction,
    stages: Mapping[Any, Stage],
    paths: Sequence[str],
    dense: Sequence[Any],
    arrays: Sequence[Any],
    pruned: Mapping[str, Any],
    masks: Mapping[str, Any],
    batches: Sequence[StageBatch],
) -> dict[str, Any]:
    """Trains the weights of one stage.

    Args:
      settings: how.
      stages: the stage in each program, by the key of its batches.
      paths: the paths of all parameters of the function.
      dense: all parameters of the dense function.
      arrays: all parameters, as far as they are pruned.
      pruned: the leaves to train, by path.
      masks: the masks of those that are pruned, by path.
      batches: the inputs of the stage.

    Returns:
      The trained leaves, with exact zeros where their masks are False.
    """
    optimizer = settings.optimizer or _default_optimizer(settings.steps)
    programs = {
        key: stage_training(stage, paths, list(pruned), optimizer)
        for key, stage in stages.items()
    }
    held = set(settings.held_out_batches(len(batches)))
    targets = [programs[batch.key].run_dense(dense, batch.values) for batch in batches]
    data = [*zip(batches, targets, strict=True)]
    train = [pair for i, pair in enumerate(data) if i not in held]
    test = [pair for i, pair in enumerate(data) if i in held]
    kept = [
        as_bool(masks[path], leaf) if path in masks else None
        for path, leaf in pruned.items()
    ]
    weights = [jnp.asarray(leaf) for leaf in pruned.values()]
    weights = [x.astype(jnp.promote_types(x.dtype, jnp.float32)) for x in weights]
    state = commit_like(optimizer.init(weights), weights)

    def held_out_loss(weights: list[Array]) -> float:
        losses = [
            programs[batch.key].loss(arrays, weights, kept, batch, target)
            for batch, target in test
        ]
        return float(np.mean(jax.device_get(losses)))

    before = lowest = held_out_loss(weights)
    best, failures, step = weights, 0, 0
    while step < settings.steps and failures < settings.patience:
        batch, target = train[step % len(train)]
        program = programs[batch.key]
        weights, state = program.step(arrays, weights, kept, state, batch, target)
        step += 1
        if step % settings.every == 0 or step == settings.steps:
            loss = held_out_loss(weights)
            failures = 0 if loss < lowest else failures + 1
            if loss < lowest:
                best, lowest = weights, loss
    if settings.report is not None:
        settings.report(ReconstructedStage(tuple(pruned), step, before, lowest))
    return {
        path: new.astype(leaf.dtype)
        for (path, leaf), new in zip(pruned.items(), best, strict=True)
    }


@lru_cache(maxsize=8)  # equal settings share a program
def _default_optimizer(steps: int) -> optax.GradientTransformation:
    return optax.adam(optax.cosine_decay_schedule(3e-4, steps))
