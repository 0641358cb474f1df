"""Random programs: masks are N:M along the axis that the product contracts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxsparse as js
from tests.reference import top_n_mask


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


@pytest.mark.sweep(full=["[3]", "[4]", "[1]", "[2]"])
@pytest.mark.parametrize("seed", range(5))
def test_random_programs_have_at_most_n_in_every_group_of_the_sum(seed):
    rng = np.random.default_rng(seed)
    sparse = 0
    for _ in range(60):
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
        params = {"w": rng.normal(size=leaf), "sure": np.eye(16, 8)}
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
    assert sparse >= 20


def random_values(rng, shape):
    """A random change of values, as a function of an array and a parameter's number."""
    axis = int(rng.integers(len(shape)))
    vector = [n if i == axis else 1 for i, n in enumerate(shape)]
    c = rng.normal(size=vector if rng.integers(2) else ()) + 2
    kinds = {
        # The same zeros as before:
        "factor": lambda w, _: w * c,
        "divisor": lambda w, _: w / c,
        "parameter": lambda w, s: s * w,
        "norm": lambda w, _: w / (1 + (w * w).sum(axis, keepdims=True)),
        "whole norm": lambda w, _: w * abs(w).max(),
        "gate": lambda w, _: w * (w > 0.1),
        "interpolation": lambda w, s: (1 - s) * w + s * abs(w),
        "power": lambda w, _: w**3,
        # No zeros, or others:
        "constant": lambda w, _: w + c,
        "offset": lambda w, s: s - w,
        "mean": lambda w, _: w - w.mean(axis, keepdims=True),
        "largest": lambda w, _: w - 2 * w.max(),
        "standardised": lambda w, _: (w - w.mean()) / (1 + w.std()),
        "neighbour": lambda w, _: (
            w + w[(slice(None),) * axis + (slice(None, None, -1),)]
        ),
        "regularised": lambda w, _: w - 0.5 / (1 + w * w),
    }
    names = list(kinds)
    # Most changes keep zeros, so that leaves are pruned even after several of them.
    name = (
        names[rng.integers(8)] if rng.integers(4) else names[rng.integers(len(names))]
    )
    return kinds[name], name in ("parameter", "interpolation", "offset")


@pytest.mark.sweep(keep=["[0]"], full=["[2]", "[3]"])
@pytest.mark.parametrize("seed", range(4))
def test_random_programs_that_compute_with_weights_have_a_sparse_operand(seed):
    """Of every leaf that is planned without a condition, on the weights themselves."""
    rng = np.random.default_rng(100 + seed)
    sparse = refused = 0
    for _ in range(50):
        leaf, change, shape, contracted, _ = random_program(rng)
        before = [random_values(rng, leaf) for _ in range(rng.integers(0, 3))]
        after = [random_values(rng, shape) for _ in range(rng.integers(0, 3))]

        def operand(w, s, before=before, change=change, after=after):
            for step, _ in before:
                w = step(w, s)
            w = change(w)
            for step, _ in after:
                w = step(w, s)
            return w

        numbers = (contracted, list(range(len(contracted)))), ((), ())
        fn = lambda p, x, operand=operand, numbers=numbers: (
            lax.dot_general(operand(p["w"], p["s"]), x, numbers),
            jnp.ones((2, 16)) @ p["sure"],
        )
        w, s = rng.normal(size=leaf).astype(np.float32), np.float32(0.7)
        params = {"w": w, "s": s, "sure": np.eye(16, 8, dtype=np.float32)}
        x = jax.ShapeDtypeStruct((*(shape[i] for i in contracted), 2), "float32")
        rules = [js.Rule(".*", "2:4", sizes=None)]
        plan = js.plan_sparsity(params, rules, fn=fn, args=(x,), dense_head=False)
        is_used = any(uses_parameter for _, uses_parameter in before + after)
        assert (plan["s"].reason == "not used by fn") != is_used
        if plan["w"].pattern is None or plan["w"].note:
            refused += 1
            continue
        sparse += 1
        mask = top_n_mask(abs(w), 2, 4, plan["w"].axis)
        order = change(np.arange(w.size).reshape(leaf))
        matrix = as_matrix(operand(mask * w, s) != 0, order, contracted)
        padded = np.pad(matrix, ((0, -len(matrix) % 4), (0, 0)))
        assert padded.reshape(-1, 4, matrix.shape[1]).sum(1).max() <= 2, plan["w"]
    assert sparse >= 10
    assert refused >= 10
