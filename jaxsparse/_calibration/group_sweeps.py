"""Sweeps over the groups of an n:m pattern: each in turn gets its best mask.

The error of a layer, `(w - v).T @ h @ (w - v)` for each output, is minimised by block
coordinate descent. Given the weights of all other groups, the best weights of a group
for each choice `s` of `n` of its `m` inputs have a closed form: `inv(h[s, s]) @ b[s]`,
where `b` is `h @ (w - v)` with the group's own weights at zero. They lower the error by
`b[s] @ inv(h[s, s]) @ b[s]`. The best of all `C(m, n)` choices is taken, if it is
better than what the group has. So the error never rises.
"""

import math
from collections.abc import Callable
from itertools import combinations
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float32

from jaxsparse._calibration.precondition import precondition


#: The number of masks of a group up to which all are tried.
MOST_MASKS = 70

#: The number of inputs, at most, whose changes are passed on to all others in one
#: matmul.
_BLOCK = 128

#: What is added to the diagonal, which is one, of the equations that are inverted.
_DAMPING = 1e-6

_Matrix = Float32[Array, "input output"]
_Mask = Bool[Array, "input output"]


class _Sweep(NamedTuple):
    """The state between two sweeps.

    Attributes:
      weight: `v`.
      mask: where it is kept.
      number: the number of sweeps so far.
      changed: whether the last one changed a mask or a weight.
    """

    weight: _Matrix
    mask: _Mask
    number: Array
    changed: Array


class _Group(NamedTuple):
    """What a step needs of the second moment.

    Attributes:
      first: the first input of the group, counted from that of its block.
      own: the second moment of the group's inputs.
      columns: that of the block's inputs with the group's.
      inverses: the inverses of `own` over each choice, zero outside it.
    """

    first: Array
    own: Float32[Array, "m m"]
    columns: Float32[Array, "block m"]
    inverses: Float32[Array, "choice m m"]


def num_masks(n: int, m: int) -> int:
    """Returns the number of masks of a group, `C(m, n)`."""
    return math.comb(m, n)


def sweep_groups(
    weight: _Matrix,
    start: _Matrix,
    mask: _Mask,
    moment: Float32[Array, "input input"],
    pattern: tuple[int, int],
    sweeps: ArrayLike,
) -> tuple[_Matrix, _Mask]:
    """Improves masks and weights of an n:m pattern by sweeps over its groups.

    Args:
      weight: `w`, the weights before pruning.
      start: the weights to improve, zero outside the mask.
      mask: the mask to improve; at most `n` of each `m` consecutive inputs are kept.
      moment: the second moment of the inputs.
      pattern: `n` and `m`.
      sweeps: the number of sweeps; fewer if one of them changes nothing.

    Returns:
      The weights, with exact zeros where they are pruned, and the mask. Of inputs that
      were always zero the kept weights are those of `weight`.
    """
    n, m = pattern
    inputs, _ = weight.shape
    scaled = precondition(moment)
    block = min(_BLOCK, inputs) // m * m
    padding = -inputs % block
    # The last block is filled with inputs that nothing depends on.
    moments = jnp.pad(scaled.moment, ((0, padding), (0, padding)))
    pad = lambda x: jnp.pad(x, ((0, padding), (0, 0)))
    dense, masks = pad(scaled.scaled(weight)), pad(mask)
    moments += jnp.diag((jnp.arange(inputs + padding) >= inputs).astype(jnp.float32))
    choices = _choices(n, m)
    inverses = _inverses(moments, choices)

    def sweep(state: _Sweep) -> _Sweep:
        gradient = _matmul(moments, dense - state.weight)
        step = _block_step(moments, inverses, choices, block)
        starts = jnp.arange(0, inputs + padding, block, dtype=jnp.int32)
        carry = state.weight, state.mask, gradient
        (new, mask, _), _ = lax.scan(step, carry, starts)
        changed = (new != state.weight).any()
        return _Sweep(new, mask, state.number + 1, changed)

    def continues(state: _Sweep) -> Array:
        return (state.number < sweeps) & state.changed

    first = jnp.where(masks, pad(scaled.scaled(start)), 0)
    state = _Sweep(first, masks, jnp.zeros((), jnp.int32), jnp.ones((), jnp.bool_))
    state = lax.while_loop(continues, sweep, state)
    mask = state.mask[:inputs]
    return scaled.unscaled(state.weight[:inputs], mask), mask


def _choices(n: int, m: int) -> np.ndarray:
    """Returns the masks of a group, `[choice, m]`."""
    choices = np.zeros((num_masks(n, m), m), bool)
    for choice, kept in zip(choices, combinations(range(m), n), strict=True):
        choice[list(kept)] = True
    return choices


def _matmul(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)


def _inverses(
    moment: Float32[Array, "input input"], choices: np.ndarray
) -> Float32[Array, "group choice m m"]:
    """Returns the inverse over each choice of each group's inputs, zero outside it."""
    m = choices.shape[1]
    groups = len(moment) // m
    every = np.arange(groups)
    own = moment.reshape(groups, m, groups, m)[every, :, every, :][:, None]
    both = (choices[:, :, None] & choices[:, None, :])[None]
    diagonal = np.where(choices, _DAMPING, 1)[None, :, :, None]
    added = jnp.asarray(diagonal * np.eye(m), jnp.float32)
    return jnp.where(both, _invert(jnp.where(both, own, 0) + added), 0)


def _invert(matrices: Float32[Array, "*batch m m"]) -> Float32[Array, "*batch m m"]:
    """Returns the inverses of small symmetric positive definite matrices.

    By Gauss-Jordan elimination, without pivoting, which such matrices do not need.
    Batches of them are no task for LAPACK, see `map_solves`.
    """
    m = matrices.shape[-1]

    def eliminate(i: Array, matrices: Array) -> Array:
        row = lax.dynamic_index_in_dim(matrices, i, -2)
        column = lax.dynamic_index_in_dim(matrices, i, -1)
        pivot = lax.dynamic_index_in_dim(row, i, -1)
        row = jnp.where(_iota(row, -1) == i, 1, row) / pivot
        rest = jnp.where(_iota(matrices, -1) == i, 0, matrices) - column * row
        return jnp.where(_iota(matrices, -2) == i, row, rest)

    return lax.fori_loop(0, m, eliminate, matrices)


def _iota(x: Array, axis: int) -> Array:
    return lax.broadcasted_iota(jnp.int32, x.shape, x.ndim + axis)


def _block_step(
    moment: Float32[Array, "input input"],
    inverses: Float32[Array, "group choice m m"],
    choices: np.ndarray,
    block: int,
) -> Callable[..., Any]:
    """Returns the step of a scan over blocks, from the first input of each."""
    m = choices.shape[1]
    groups = block // m
    firsts = jnp.arange(0, block, m, dtype=jnp.int32)

    def step(carry, start):
        weight, mask, gradient = carry
        columns = lax.dynamic_slice_in_dim(moment, start, block, axis=1)
        rows = lambda x: lax.dynamic_slice_in_dim(x, start, block)
        inner = rows(columns)
        by_group = jnp.moveaxis(inner.reshape(block, groups, m), 1, 0)
        own = inner.reshape(groups, m, groups, m)
        own = own[np.arange(groups), :, np.arange(groups), :]
        first = start // np.int32(m)
        inverse = lax.dynamic_slice_in_dim(inverses, first, groups)
        before = rows(weight)
        state = before, rows(mask), rows(gradient)
        group = _Group(firsts, own, by_group, inverse)
        update = lambda state, group: (_update_group(state, group, choices), None)
        (after, kept, _), _ = lax.scan(update, state, group)
        gradient -= _matmul(columns, after - before)
        write = lambda x, new: lax.dynamic_update_slice_in_dim(x, new, start, axis=0)
        return (write(weight, after), write(mask, kept), gradient), None

    return step


def _update_group(
    state: tuple[_Matrix, _Mask, _Matrix], group: _Group, choices: np.ndarray
) -> tuple[_Matrix, _Mask, _Matrix]:
    """Gives a group its best mask and weights, given the others of its block."""
    weight, mask, gradient = state
    rows = lambda x: lax.dynamic_slice_in_dim(x, group.first, choices.shape[1])
    write = lambda x, new: lax.dynamic_update_slice_in_dim(x, new, group.first, axis=0)
    old = rows(weight)
    target = rows(gradient) + _matmul(group.own, old)
    candidates = _matmul(group.inverses, target)
    best = jnp.argmax(jnp.sum(candidates * target[None], 1), 0)
    new = jnp.take_along_axis(candidates, best[None, None], 0)[0]
    # Compared by the error itself, rounding and damping cannot make a group worse.
    error = lambda v: jnp.sum(v * (_matmul(group.own, v) - 2 * target), 0)
    better = error(new) < error(old)
    new = jnp.where(better, new, old)
    kept = jnp.where(better, jnp.asarray(choices)[best].T, rows(mask))
    gradient -= _matmul(group.columns, new - old)
    return write(weight, new), write(mask, kept), gradient
