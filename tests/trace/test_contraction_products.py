"""Group axes of weights in plain products; expected by hand."""

import itertools

import jax.numpy as jnp
import pytest
from jax import lax

from tests.trace.tracing import plan_of, shape


ORDERS = list(itertools.permutations(range(3)))

DOTS = {
    # name: (dimension numbers with w on the right, shapes of x and w, group axis)
    "plain": ((([1], [0]), ([], [])), (2, 16), (16, 8), 0),
    "transposed": ((([1], [1]), ([], [])), (2, 16), (8, 16), 1),
    "batch first": ((([2], [1]), ([0], [0])), (4, 2, 16), (4, 16, 8), 1),
    "batch last": ((([2], [0]), ([0], [2])), (4, 2, 16), (16, 8, 4), 0),
    "two axes": ((([1, 2], [0, 1]), ([], [])), (2, 4, 16), (4, 16, 8), 1),
    "two axes crossed": ((([1, 2], [2, 0]), ([], [])), (2, 4, 16), (16, 8, 4), 2),
}


@pytest.mark.parametrize("name", DOTS)
def test_dot_general_in_every_dimension_order(name):
    numbers, x, w, axis = DOTS[name]
    right = lambda p, x: lax.dot_general(x, p["w"], numbers)
    assert plan_of(right, shape(*x), w=w).axis == axis
    (a, b), (c, d) = numbers
    left = lambda p, x: lax.dot_general(p["w"], x, ((b, a), (d, c)))
    assert plan_of(left, shape(*x), w=w).axis == axis


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("x_order", ORDERS)
def test_dot_general_with_batch_sum_and_output_in_every_order(order, x_order):
    """`w` has a batch axis of 4, a summed one of 16 and an output of 8, permuted."""
    sizes = {"batch": 4, "sum": 16, "output": 8}
    of_w = [list(sizes)[i] for i in order]
    of_x = [["batch", "sum", "rows"][i] for i in x_order]
    numbers = (
        ([of_x.index("sum")], [of_w.index("sum")]),
        ([of_x.index("batch")], [of_w.index("batch")]),
    )
    x = shape(*({**sizes, "rows": 2}[name] for name in of_x))
    fn = lambda p, x: lax.dot_general(x, p["w"], numbers)
    leaf = plan_of(fn, x, w=tuple(sizes[name] for name in of_w))
    assert leaf.axis == of_w.index("sum")
    assert leaf.batch == (of_w.index("batch"),)
    assert leaf.output == (of_w.index("output"),)


@pytest.mark.parametrize(
    ("spec", "x", "w", "axis"),
    [
        ("bd,dk->bk", (2, 16), (16, 8), 0),
        ("bd,kd->bk", (2, 16), (8, 16), 1),
        ("bsd,hdk->bhsk", (2, 3, 16), (4, 16, 8), 1),
        ("bhsk,hkd->bsd", (2, 4, 3, 16), (4, 16, 8), 1),
        ("bhk,khd->bd", (2, 4, 16), (16, 4, 8), 1),
        ("ebd,edf->ebf", (4, 2, 16), (4, 16, 8), 1),  # a mixture of experts
        ("bd,edf,be->bf", (2, 16), (4, 16, 8), None),
    ],
)
def test_einsum(spec, x, w, axis):
    if axis is None:
        fn = lambda p, x, g: jnp.einsum(spec, x, p["w"], g)
        assert plan_of(fn, shape(*x), shape(2, 4), w=w).axis in (0, 1)
    else:
        fn = lambda p, x: jnp.einsum(spec, x, p["w"])
        assert plan_of(fn, shape(*x), w=w).axis == axis


def test_ragged_dot_contracts_the_middle_axis_of_each_expert():
    fn = lambda p, x, sizes: lax.ragged_dot(x, p["w"], sizes)
    leaf = plan_of(fn, shape(6, 16), shape(4, dtype="int32"), w=(4, 16, 8))
    assert (leaf.axis, leaf.batch, leaf.output) == (1, (0,), (2,))
