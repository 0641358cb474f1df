"""Group axes read from the trace, for layers of every library; expected by hand.

Where a layer has several leaves each is named; leaves that are left out of the expected
table have no axis.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn, nnx

import jaxsparse as js


def shape(*sizes, dtype="float32"):
    return jax.ShapeDtypeStruct(sizes, dtype)


def found(fn, params, *args, **kwargs):
    """The leaves that have a group axis, by path."""
    plan = js.contraction_axes(fn, params, *args, **kwargs)
    leaves, _ = jax.tree_util.tree_flatten_with_path(plan)
    name = lambda path: "/".join(
        str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path
    )
    return {name(path).removesuffix("/value"): axis for path, axis in leaves}


def linen(module, *inputs):
    """The axes found in the parameters of a Linen module, from shapes alone."""
    variables = jax.eval_shape(
        lambda: module.init(jax.random.key(0), *map(jnp.ones_like, inputs))
    )
    params = variables.pop("params")
    fn = lambda params, rest, *x: module.apply({"params": params, **rest}, *x)
    return found(fn, params, variables, *inputs)


ATTENTION = {f"{name}/kernel": 0 for name in ("query", "key", "value")}
ATTENTION["out/kernel"] = 1
X = shape(2, 16)
SEQUENCE = shape(2, 6, 16)
IMAGE = shape(2, 8, 8, 16)

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

    axes = found(fn, variables["params"], variables["cache"], shape(2, 1, 16))
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


class NNXStack(nnx.Module):
    def __init__(self, rngs):
        @nnx.split_rngs(splits=3)
        @nnx.vmap(in_axes=(0,), out_axes=0)
        def make(rngs):
            return nnx.Linear(16, 16, rngs=rngs)

        self.layers = make(rngs)

    def __call__(self, x):
        @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        def forward(x, layer):
            return nnx.relu(layer(x))

        return forward(x, self.layers)


class NNXEnsemble(NNXStack):
    def __call__(self, x):
        return nnx.vmap(lambda layer, x: layer(x), in_axes=(0, None))(self.layers, x)


class NNXTied(nnx.Module):
    def __init__(self, rngs):
        self.embed = nnx.Embed(32, 16, rngs=rngs)
        self.layer = nnx.Linear(16, 16, rngs=rngs)

    def __call__(self, ids):
        return self.embed.attend(self.layer(self.embed(ids)))


class NNXCross(nnx.Module):
    def __init__(self, rngs):
        self.attention = nnx.MultiHeadAttention(
            4, 16, in_kv_features=24, decode=False, rngs=rngs
        )

    def __call__(self, x):
        return self.attention(x, jnp.concatenate([x, x[..., :8]], axis=-1))


class NNXRecurrent(nnx.Module):
    def __init__(self, cell, rngs):
        self.rnn = nnx.RNN(cell(16, 8, rngs=rngs))

    def __call__(self, x):
        return self.rnn(x)


NNX = {
    "Linear": (lambda r: nnx.Linear(16, 8, rngs=r), X, {"kernel": 0}),
    "LinearGeneral splits": (
        lambda r: nnx.LinearGeneral(16, (4, 8), rngs=r),
        X,
        {"kernel": 0},
    ),
    "LinearGeneral merges": (
        lambda r: nnx.LinearGeneral((6, 16), 8, axis=(-2, -1), rngs=r),
        SEQUENCE,
        {"kernel": 1},
    ),
    "Conv 1-D": (lambda r: nnx.Conv(16, 8, (3,), rngs=r), SEQUENCE, {"kernel": 1}),
    "Conv 2-D": (lambda r: nnx.Conv(16, 8, (3, 3), rngs=r), IMAGE, {"kernel": 2}),
    "Conv 3-D": (
        lambda r: nnx.Conv(16, 8, (2, 2, 2), rngs=r),
        shape(2, 4, 4, 4, 16),
        {"kernel": 3},
    ),
    "Conv strided and dilated": (
        lambda r: nnx.Conv(16, 8, (3, 3), strides=2, kernel_dilation=2, rngs=r),
        IMAGE,
        {"kernel": 2},
    ),
    "Conv grouped": (
        lambda r: nnx.Conv(16, 8, (3,), feature_group_count=4, rngs=r),
        SEQUENCE,
        {"kernel": 1},
    ),
    "Conv depthwise": (
        lambda r: nnx.Conv(16, 16, (3,), feature_group_count=16, rngs=r),
        SEQUENCE,
        {},
    ),
    "ConvTranspose": (
        lambda r: nnx.ConvTranspose(16, 8, (3, 3), rngs=r),
        IMAGE,
        {"kernel": 2},
    ),
    "Einsum": (
        lambda r: nnx.Einsum("bd,hdk->bhk", (4, 16, 8), rngs=r),
        X,
        {"kernel": 1},
    ),
    "attention": (
        lambda r: nnx.MultiHeadAttention(4, 16, decode=False, rngs=r),
        SEQUENCE,
        ATTENTION,
    ),
    "LSTMCell": (
        lambda r: NNXRecurrent(nnx.LSTMCell, r),
        SEQUENCE,
        # NNX calls the forget gate of the inputs "if_".
        {
            f"rnn/cell/{gate}/kernel": 0
            for gate in ("ii", "if_", "ig", "io", "hi", "hf", "hg", "ho")
        },
    ),
    "GRUCell": (
        lambda r: NNXRecurrent(nnx.GRUCell, r),
        SEQUENCE,
        {"rnn/cell/dense_h/kernel": 0, "rnn/cell/dense_i/kernel": 0},
    ),
    "LoRA": (
        lambda r: nnx.LoRA(16, 8, 8, base_module=nnx.Linear(16, 8, rngs=r), rngs=r),
        X,
        {"base_module/kernel": 0, "lora_a": 0, "lora_b": 0},
    ),
    "cross attention": (
        NNXCross,
        SEQUENCE,
        {f"attention/{name}": axis for name, axis in ATTENTION.items()},
    ),
    "Embed with attend": (NNXTied, shape(2, 6, dtype="int32"), {"layer/kernel": 0}),
    "scan": (NNXStack, X, {"layers/kernel": 1}),
    "vmap": (NNXEnsemble, X, {"layers/kernel": 1}),
}


@pytest.mark.parametrize("name", NNX)
def test_nnx_layers(name):
    make, x, expected = NNX[name]
    model = make(nnx.Rngs(0))
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    fn = lambda params, rest, x: nnx.merge(graph, params, rest)(x)
    assert found(fn, params, rest, x) == expected
    module_axes = found(lambda model, x: model(x), model, x)
    assert {k: v for k, v in module_axes.items() if v is not None} == expected


def test_nnx_attention_that_decodes():
    model = nnx.MultiHeadAttention(4, 16, decode=True, rngs=nnx.Rngs(0))
    model.init_cache((2, 6, 16))
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    fn = lambda params, rest, x: nnx.merge(graph, params, rest)(x)
    assert found(fn, params, rest, shape(2, 1, 16)) == ATTENTION


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


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("name", EQUINOX)
def test_equinox_layers(name, batched):
    make, inputs, expected = EQUINOX[name]
    inputs = inputs if isinstance(inputs, tuple) else (inputs,)
    fn = lambda model, *inputs: model(*inputs)
    if batched:
        inputs = [shape(5, *x.shape) for x in inputs]
        fn = lambda model, *inputs: jax.vmap(model)(*inputs)
    assert found(fn, make(jax.random.key(0)), *inputs) == expected


def test_equinox_attention():
    model = eqx.nn.MultiheadAttention(4, 16, key=jax.random.key(0))
    axes = found(lambda m, x: m(x, x, x), model, shape(6, 16))
    names = ("query", "key", "value", "output")
    assert axes == {f"{name}_proj/weight": 1 for name in names}
