"""Random programs: masks are N:M along the axis that the product contracts."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import jaxsparse as js


def random_steps(rng, shape):
    """Random transposes, reshapes and aligned slices, as functions on arrays."""
    steps = []
    for _ in range(rng.integers(0, 7)):
        kind = rng.choice(["transpose", "merge", "split", "slice"])
        shape = list(shape)
        axis = int(rng.integers(len(shape)))
        if kind == "transpose":
            order = tuple(int(i) for i in rng.permutation(len(shape)))
            steps.append(lambda x, order=order: x.transpose(order))
            shape = [shape[i] for i in order]
        elif kind == "slice" and shape[axis] > 4:
            start = 4 * int(rng.integers(shape[axis] // 4))
            stop = start + 4 * int(rng.integers(1, (shape[axis] - start) // 4 + 1))
            cut = tuple(
                slice(start, stop) if i == axis else slice(None)
                for i in range(len(shape))
            )
            steps.append(lambda x, cut=cut: x[cut])
            shape[axis] = stop - start
        elif kind == "merge" and axis + 1 < len(shape):
            shape[axis : axis + 2] = [shape[axis] * shape[axis + 1]]
            steps.append(lambda x, to=tuple(shape): x.reshape(to))
        elif kind == "split" and shape[axis] % 4 == 0 and shape[axis] > 4:
            block = 8 if shape[axis] % 8 == 0 and rng.integers(2) else 4
            shape[axis : axis + 1] = [shape[axis] // block, block]
            steps.append(lambda x, to=tuple(shape): x.reshape(to))
    return steps, tuple(shape)


def random_program(rng):
    """A leaf's shape, what is done to it, and the axes of a product that follows."""
    leaf = tuple(int(n) for n in rng.choice([4, 8, 16, 24], rng.integers(2, 4)))
    steps, shape = random_steps(rng, leaf)
    axes = [int(i) for i in rng.permutation(len(shape))]
    summed = int(rng.integers(1, len(shape) + 1))
    batch = int(rng.integers(0, len(shape) - summed + 1))

    def change(w):
        for step in steps:
            w = step(w)
        return w

    return leaf, change, shape, axes[:summed], axes[summed : summed + batch]


def as_matrix(changed, order, contracted):
    """The operand with its contracted axes flattened, in the leaf's own order, first.

    Axes with a larger step through the leaf are further out in it.
    """
    step = lambda i: np.take(order, 1, i).ravel()[0] - order.ravel()[0]
    own = sorted(contracted, key=lambda i: -step(i) if order.shape[i] > 1 else 0)
    rest = [i for i in range(changed.ndim) if i not in contracted]
    size = int(np.prod([changed.shape[i] for i in own]))
    return np.transpose(changed, own + rest).reshape(size, -1)


def test_random_programs_have_at_most_n_in_every_group_of_the_sum():
    rng = np.random.default_rng(0)
    sparse = 0
    for _ in range(300):
        leaf, change, shape, contracted, batch = random_program(rng)
        n, m = [(2, 4), (1, 2), (4, 8), (4, 8)][rng.integers(4)]
        sizes = [shape[i] for i in batch + contracted]
        numbers = (
            (contracted, list(range(len(batch), len(sizes)))),
            (batch, list(range(len(batch)))),
        )
        fn = lambda p, x, change=change, numbers=numbers: (
            lax.dot_general(change(p["w"]), x, numbers),
            jnp.ones((2, 16)) @ p["sure"],
        )
        params = {"w": rng.normal(size=leaf), "sure": np.ones((16, 8))}
        x = jax.ShapeDtypeStruct((*sizes, 2), "float32")
        rules = [js.Rule(".*", (n, m), sizes=None)]
        plan = js.plan_sparsity(params, rules, fn=fn, args=(x,), dense_head=False)
        if plan["w"].pattern is None:
            continue
        sparse += 1
        mask = np.asarray(js.create_masks(params, plan)["w"])
        order = change(np.arange(mask.size).reshape(leaf))
        matrix = as_matrix(change(mask), order, contracted)
        padded = np.pad(matrix, ((0, -len(matrix) % m), (0, 0)))
        counts = padded.reshape(-1, m, matrix.shape[1]).sum(1)
        assert counts.max() <= n, (leaf, shape, contracted, batch, plan["w"])
    assert sparse >= 100
