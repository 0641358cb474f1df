"""Random programs, traced with JAX and run with NumPy in float64."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np


class Draft(NamedTuple):
    """A program that is being written.

    Attributes:
      rng: draws sizes, axes and parameters.
      params: its parameters.
      steps: functions `(NumPy or JAX, parameters, values) -> value`.
      shapes: the shapes of its values so far.
    """

    rng: np.random.Generator
    params: dict[str, Any]
    steps: list[Any]
    shapes: list[tuple[int, ...]]

    def param(self, shape):
        name = f"w{len(self.params)}"
        self.params[name] = self.rng.normal(size=shape) / 2
        return name

    def add(self, step, shape):
        self.steps.append(step)
        self.shapes.append(tuple(shape))

    def value(self, least=1):
        """A value with at least so many axes."""
        found = [i for i, s in enumerate(self.shapes) if len(s) >= least]
        return int(self.rng.choice(found[-3:]))


def bias(draft):
    i = draft.value()
    shape = draft.shapes[i]
    own = tuple(n if draft.rng.integers(2) else 1 for n in shape)
    name = draft.param(own)
    draft.add(lambda xp, p, v: xp.tanh(v[i] + p[name]), shape)


def product(draft):
    i = draft.value()
    shape = draft.shapes[i]
    axis = int(draft.rng.integers(len(shape)))
    size = int(draft.rng.choice([2, 4, 6]))
    name = draft.param((shape[axis], size))
    new = [n for k, n in enumerate(shape) if k != axis] + [size]
    draft.add(lambda xp, p, v: xp.tensordot(v[i], p[name], ([axis], [0])), new)


def batched_product(draft):
    i = draft.value(2)
    shape = draft.shapes[i]
    name = draft.param((shape[0], shape[-1], 4))
    draft.add(
        lambda xp, p, v: xp.einsum("a...b,abc->a...c", v[i], p[name]), (*shape[:-1], 4)
    )


def split_axis(draft):
    i = draft.value()
    shape = list(draft.shapes[i])
    axis = int(draft.rng.integers(len(shape)))
    factor = int(draft.rng.choice([n for n in range(1, 7) if shape[axis] % n == 0]))
    shape[axis : axis + 1] = [shape[axis] // factor, factor]
    draft.add(lambda _, __, v: v[i].reshape(shape), shape)


def merge_axes(draft):
    i = draft.value(2)
    shape = list(draft.shapes[i])
    axis = int(draft.rng.integers(len(shape) - 1))
    shape[axis : axis + 2] = [shape[axis] * shape[axis + 1]]
    draft.add(lambda _, __, v: v[i].reshape(shape), shape)


def transpose(draft):
    i = draft.value()
    order = tuple(map(int, draft.rng.permutation(len(draft.shapes[i]))))
    draft.add(
        lambda _, __, v: v[i].transpose(order), [draft.shapes[i][k] for k in order]
    )


def cut(draft):
    i = draft.value()
    shape = list(draft.shapes[i])
    axis = int(draft.rng.integers(len(shape)))
    start = int(draft.rng.integers(shape[axis]))
    stop = int(draft.rng.integers(start, shape[axis])) + 1
    stride = int(draft.rng.integers(1, 3))
    index = (slice(None),) * axis + (slice(start, stop, stride),)
    shape[axis] = len(range(start, stop, stride))
    draft.add(lambda _, __, v: v[i][index], shape)


def one_by_one(draft):
    """Each position along an axis goes through something of its own."""
    i = draft.value(2)
    shape = list(draft.shapes[i])
    axis = int(draft.rng.integers(len(shape)))
    count = shape.pop(axis)
    own = [
        draft.param([n if draft.rng.integers(2) else 1 for n in shape])
        for _ in range(count)
    ]
    kind = int(draft.rng.integers(4))
    if kind == 3:
        shape.insert(axis, count)

    def step(xp, p, v):
        index = (slice(None),) * axis
        x = [xp.tanh(v[i][(*index, k)] * p[own[k]]) for k in range(count)]
        return [
            lambda: x[0],
            lambda: x[0] * x[-1],
            lambda: sum(x[1:], x[0]),
            lambda: xp.stack(x, axis),
        ][kind]()

    draft.add(step, shape)


def fused(draft):
    """One product that a reshape splits into two or three, taken one by one."""
    i = draft.value()
    shape = draft.shapes[i]
    count, size = int(draft.rng.integers(2, 4)), int(draft.rng.choice([2, 4]))
    name = draft.param((shape[-1], count * size))
    draft.add(
        lambda _, p, v: (v[i] @ p[name]).reshape(*shape[:-1], count, size),
        (*shape[:-1], count, size),
    )
    if draft.rng.integers(4):
        one_by_one(draft)


def join(draft):
    i = draft.value()
    shape = list(draft.shapes[i])
    axis = int(draft.rng.integers(len(shape)))
    other = [*shape]
    other[axis] = int(draft.rng.integers(1, 5))
    name = draft.param(other)
    twice = bool(draft.rng.integers(2))
    shape[axis] += shape[axis] if twice else other[axis]
    draft.add(
        lambda xp, p, v: xp.concatenate([v[i], v[i] if twice else p[name]], axis),
        shape,
    )


def swap_halves(draft):
    i = draft.value()
    shape = draft.shapes[i]
    axis = int(draft.rng.integers(len(shape)))
    at = int(draft.rng.integers(shape[axis] + 1))

    def step(xp, _, v):
        index = (slice(None),) * axis
        ends = v[i][(*index, slice(at, None))], v[i][(*index, slice(at))]
        return v[i] * 0.5 + xp.concatenate(ends, axis)

    draft.add(step, shape)


def normalise(draft):
    i = draft.value()
    axis = int(draft.rng.integers(len(draft.shapes[i])))

    def step(xp, _, v):
        x = v[i] - v[i].max(axis, keepdims=True)
        return xp.exp(x) / xp.exp(x).sum(axis, keepdims=True)

    draft.add(step, draft.shapes[i])


def pool(draft):
    i = draft.value(2)
    shape = list(draft.shapes[i])
    axis = int(draft.rng.integers(len(shape)))
    del shape[axis]
    draft.add(lambda _, __, v: v[i].mean(axis), shape)


def add_alike(draft):
    i = draft.value()
    shape = draft.shapes[i]
    j = int(draft.rng.choice([k for k, s in enumerate(draft.shapes) if s == shape]))
    draft.add(lambda _, __, v: v[i] * v[j], shape)


def gram(draft):
    i = draft.value(2)
    size = draft.shapes[i][-1]
    flat = lambda v: v[i].reshape(-1, size)
    draft.add(lambda xp, _, v: xp.tanh(flat(v).T @ flat(v)), (size, size))


def one_hot(draft):
    i = draft.value()
    size = draft.shapes[i][-1]

    def step(xp, _, v):
        largest = v[i].argmax(-1)[..., None] == xp.arange(size)
        return xp.where(largest, v[i], -v[i])

    draft.add(step, draft.shapes[i])


def look_up(draft):
    """Rows of a parameter at the position of the largest element."""
    i = draft.value()
    name = draft.param((draft.shapes[i][-1], 4))
    draft.add(lambda _, p, v: p[name][v[i].argmax(-1)], (*draft.shapes[i][:-1], 4))


def reorder(draft):
    """By one of four operations that go along an axis in order, or sort it."""
    i = draft.value()
    shape = draft.shapes[i]
    axis = int(draft.rng.integers(len(shape)))
    kind = int(draft.rng.integers(4))

    def step(xp, _, v):
        x = v[i]
        along = xp.arange(shape[axis]).reshape(
            [-1 if k == axis else 1 for k in range(len(shape))]
        )
        return [
            lambda: xp.cumsum(x, axis),
            lambda: xp.flip(x, axis),
            lambda: xp.sort(x, axis),
            lambda: xp.where(along < 2, x, -x),
        ][kind]()

    draft.add(step, shape)


STEPS = [
    add_alike, batched_product, bias, cut, fused, gram, join, look_up, merge_axes,
    normalise, one_by_one, one_hot, pool, product, reorder, split_axis, swap_halves,
    transpose,
]  # fmt: skip


def program(kinds, seed):
    """A function `(parameters, x, xp) -> result` of random steps, and its arguments."""
    rng = np.random.default_rng(seed)
    draft = Draft(rng, {}, [], [(3, 4)])
    product(draft)
    for kind in kinds:
        if len(draft.shapes[-1]) > 1 or kind not in (
            batched_product,
            merge_axes,
            pool,
            gram,
            one_by_one,
        ):
            kind(draft)
        if len(draft.shapes[-1]) > 4 or np.prod(draft.shapes[-1]) > 4000:
            break
    head = draft.value()
    size = draft.shapes[head][-1]
    name = draft.param((size, 3))

    def fn(params, x, xp=jnp):
        values = [x]
        for step in draft.steps:
            values.append(step(xp, params, values))
        return values[head] @ params[name]

    return fn, draft.params, rng.normal(size=(3, 4))
