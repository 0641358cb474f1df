"""Group axes read from the trace of Equinox layers; expected by hand."""

import equinox as eqx
import jax
import pytest

from tests.trace.tracing import group_axes, shape


EQUINOX = {
    "Linear": (lambda k: eqx.nn.Linear(16, 8, key=k), shape(16), {"weight": 1}),
    "Conv2d": (
        lambda k: eqx.nn.Conv2d(16, 8, 3, key=k),
        shape(16, 8, 8),
        {"weight": 1},
    ),
    "Conv2d depthwise": (
        lambda k: eqx.nn.Conv2d(16, 16, 3, groups=16, key=k),
        shape(16, 8, 8),
        {},
    ),
    "MLP": (
        lambda k: eqx.nn.MLP(16, 8, 32, 1, key=k),
        shape(16),
        {"layers/0/weight": 1, "layers/1/weight": 1},
    ),
    "GRUCell": (
        lambda k: eqx.nn.GRUCell(16, 8, key=k),
        (shape(16), shape(8)),
        {"weight_ih": 1, "weight_hh": 1},
    ),
}


@pytest.mark.sweep(keep=["[Linear-False]", "[Conv2d-False]"])
@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("name", EQUINOX)
def test_equinox_layers(name, batched):
    make, inputs, expected = EQUINOX[name]
    inputs = inputs if isinstance(inputs, tuple) else (inputs,)
    fn = lambda model, *inputs: model(*inputs)
    if batched:
        inputs = [shape(5, *x.shape) for x in inputs]
        fn = lambda model, *inputs: jax.vmap(model)(*inputs)
    assert group_axes(fn, make(jax.random.key(0)), *inputs) == expected


def test_equinox_attention():
    model = eqx.nn.MultiheadAttention(4, 16, key=jax.random.key(0))
    axes = group_axes(lambda m, x: m(x, x, x), model, shape(6, 16))
    names = ("query", "key", "value", "output")
    assert axes == {f"{name}_proj/weight": 1 for name in names}
