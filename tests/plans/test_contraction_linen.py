"""Group axes read from the trace of Linen layers; expected by hand.

Leaves that are missing from an expected table have no group axis.
"""

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn

import jaxsparse as js
from tests.trace.tracing import ATTENTION, IMAGE, SEQUENCE, X, group_axes, shape


def linen(module, *inputs):
    """The group axes of the parameters of a Linen module, from shapes alone."""
    variables = jax.eval_shape(
        lambda: module.init(jax.random.key(0), *map(jnp.ones_like, inputs))
    )
    params = variables.pop("params")
    fn = lambda params, rest, *x: module.apply({"params": params, **rest}, *x)
    return group_axes(fn, params, variables, *inputs)


LINEN = {
    "Dense": (nn.Dense(8), [X], {"kernel": 0}),
    "DenseGeneral splits": (nn.DenseGeneral((4, 8)), [X], {"kernel": 0}),
    # (6, 16, 8) is merged to (96, 8): the innermost of the merged axes is the second.
    "DenseGeneral merges": (
        nn.DenseGeneral(8, axis=(-2, -1)),
        [SEQUENCE],
        {"kernel": 1},
    ),
    "DenseGeneral with batch": (
        nn.DenseGeneral(8, axis=-1, batch_dims=(0,)),
        [SEQUENCE],
        {"kernel": 1},
    ),
    "Conv 1-D": (nn.Conv(8, (3,)), [SEQUENCE], {"kernel": 1}),
    "Conv 2-D": (nn.Conv(8, (3, 3)), [IMAGE], {"kernel": 2}),
    "Conv 3-D": (nn.Conv(8, (2, 2, 2)), [shape(2, 4, 4, 4, 16)], {"kernel": 3}),
    "Conv strided": (nn.Conv(8, (3, 3), strides=2), [IMAGE], {"kernel": 2}),
    "Conv dilated": (nn.Conv(8, (3, 3), kernel_dilation=2), [IMAGE], {"kernel": 2}),
    "Conv grouped": (
        nn.Conv(8, (3, 3), feature_group_count=4),
        [IMAGE],
        {"kernel": 2},
    ),
    "Conv depthwise": (nn.Conv(16, (3, 3), feature_group_count=16), [IMAGE], {}),
    "ConvTranspose": (nn.ConvTranspose(8, (3, 3)), [IMAGE], {"kernel": 2}),
    "ConvTranspose, kernel transposed": (
        nn.ConvTranspose(8, (3, 3), transpose_kernel=True),  # (3, 3, out, in)
        [IMAGE],
        {"kernel": 3},
    ),
    "Einsum": (nn.Einsum((4, 16, 8), "bd,hdk->bhk"), [X], {"kernel": 1}),
    "Einsum over two axes": (
        nn.Einsum((6, 16, 8), "bsd,sdk->bk"),
        [SEQUENCE],
        {"kernel": 1},
    ),
    "attention": (
        nn.MultiHeadDotProductAttention(4),
        [SEQUENCE],
        ATTENTION,
    ),
    "cross attention": (
        nn.MultiHeadDotProductAttention(4),
        [SEQUENCE, shape(2, 5, 24)],
        ATTENTION,
    ),
    "LSTMCell": (
        nn.RNN(nn.LSTMCell(8)),
        [SEQUENCE],
        {f"cell/{a}{b}/kernel": 0 for a in "hi" for b in "figo"},
    ),
    "GRUCell": (
        nn.RNN(nn.GRUCell(8)),
        [SEQUENCE],
        {f"cell/{a}{b}/kernel": 0 for a in "hi" for b in "rzn"},
    ),
    "WeightNorm": (
        nn.WeightNorm(nn.Dense(8, name="dense")),
        [X],
        {"layer_instance/kernel": 0},
    ),
    "LayerNorm": (nn.LayerNorm(), [X], {}),
    "BatchNorm": (nn.BatchNorm(use_running_average=True), [X], {}),
}


@pytest.mark.parametrize("name", LINEN)
def test_linen_layers(name):
    module, inputs, expected = LINEN[name]
    assert linen(module, *inputs) == expected


def test_linen_attention_that_decodes():
    module = nn.MultiHeadDotProductAttention(4, decode=True)
    variables = jax.eval_shape(
        lambda: module.init(jax.random.key(0), jnp.ones(SEQUENCE.shape))
    )

    def fn(params, cache, token):
        variables = {"params": params, "cache": cache}
        return module.apply(variables, token, mutable=["cache"])

    axes = group_axes(fn, variables["params"], variables["cache"], shape(2, 1, 16))
    assert axes == ATTENTION


class Tied(nn.Module):
    @nn.compact
    def __call__(self, ids):
        embed = nn.Embed(32, 16, name="embed")
        return embed.attend(nn.Dense(16, name="dense")(embed(ids)))


def test_a_tied_embedding_stays_dense():
    ids = shape(2, 6, dtype="int32")
    assert linen(Tied(), ids) == {"dense/kernel": 0}
    params = {
        "embed": {"embedding": shape(32, 16)},
        "dense": {"kernel": shape(16, 16), "bias": shape(16)},
    }
    fn = lambda params, ids: Tied().apply({"params": params}, ids)
    plan = js.plan_sparsity(params, fn=fn, args=(ids,))
    assert plan["embed/embedding"].reason == "gathered and contracted (tied embedding)"


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _=None):
        x = x + nn.MultiHeadDotProductAttention(4, name="attention")(x)
        return x + nn.Dense(16, name="down")(nn.Dense(32, name="up")(x)), None


BLOCK = {
    "attention/query/kernel": 0,
    "attention/key/kernel": 0,
    "attention/value/kernel": 0,
    "attention/out/kernel": 1,
    "up/kernel": 0,
    "down/kernel": 0,
}
STACKED = {path: axis + 1 for path, axis in BLOCK.items()}


def test_linen_stacks():
    scan = nn.scan(
        nn.remat(Block),
        variable_axes={"params": 0},
        split_rngs={"params": True},
        length=3,
    )
    assert linen(nn.remat(Block)(), SEQUENCE) == BLOCK
    assert (
        linen(
            scan(),
            SEQUENCE,
        )
        == STACKED
    )
    vmap = nn.vmap(
        nn.Dense,
        in_axes=None,
        out_axes=0,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        axis_size=3,
    )
    assert linen(vmap(8), X) == {"kernel": 1}
