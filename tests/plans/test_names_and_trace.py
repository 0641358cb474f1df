"""Names and trace agree on every layer whose axes follow from names."""

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn, nnx

import jaxsparse as js


class Linen(nn.Module):
    @nn.compact
    def __call__(self, ids, image):
        x = nn.Embed(64, 32)(ids)
        x = x + nn.MultiHeadDotProductAttention(4)(nn.LayerNorm()(x))
        x = x + nn.MultiHeadDotProductAttention(2, name="cross")(x, x[:, :3])
        x = nn.RNN(nn.LSTMCell(32))(x) + nn.RNN(nn.GRUCell(32))(x)
        x = nn.DenseGeneral((2, 16))(x).reshape(x.shape)
        x = nn.Einsum((2, 32, 16), "bsd,hdk->bshk")(x).reshape(x.shape)
        y = nn.Conv(32, (3, 3))(image)
        y = nn.relu(nn.Conv(32, (3, 3), feature_group_count=32)(y))
        y = nn.ConvTranspose(16, (2, 2), strides=(2, 2))(y)
        y = nn.Conv(32, (2,), feature_group_count=2)(y.reshape(y.shape[0], -1, 16))
        x = x.mean(1) + nn.Dense(32)(nn.BatchNorm(use_running_average=True)(y).mean(1))
        return nn.Dense(8, name="logits")(nn.tanh(nn.Dense(16)(x)))


class NNX(nnx.Module):
    def __init__(self, rngs):
        self.embed = nnx.Embed(64, 32, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(4, 32, decode=False, rngs=rngs)
        self.norm = nnx.RMSNorm(32, rngs=rngs)
        self.conv = nnx.Conv(32, 32, (3,), rngs=rngs)
        self.general = nnx.LinearGeneral(32, (4, 8), rngs=rngs)
        self.einsum = nnx.Einsum("bsd,dk->bsk", (32, 16), rngs=rngs)
        self.lora = nnx.LoRA(16, 8, 16, rngs=rngs)
        self.layers = nnx.List([nnx.Linear(16, 16, rngs=rngs) for _ in range(2)])
        self.lm_head = nnx.Linear(16, 64, rngs=rngs)

    def __call__(self, ids):
        x = self.embed(ids)
        x = x + self.conv(self.attention(self.norm(x)))
        x = self.einsum(self.general(x).reshape(x.shape))
        x = x + self.lora(x)
        for layer in self.layers:
            x = nnx.relu(layer(x))
        return self.lm_head(x)


def compare(fn, params, *args):
    """The paths whose axis follows from names, and from the trace alone."""
    by_name = js.plan_sparsity(
        params,
        [js.Rule(".*", "1:1", sizes=None)],
        dense_head=False,
        dense_adapter=False,
    )
    by_trace = js.plan_sparsity(
        params,
        [js.Rule(".*", "1:1", sizes=None)],
        fn=fn,
        args=args,
        dense_head=False,
        dense_adapter=False,
    )
    by_both, by_trace_only = set(), set()
    for leaf in by_name.leaves:
        traced = by_trace[leaf.path]
        if leaf.pattern is not None:
            by_both.add(leaf.path)
            assert leaf.axis == traced.axis, leaf.path
            assert leaf.contracted == traced.contracted, leaf.path
            assert leaf.output == traced.output, leaf.path
        elif "ambiguous" in leaf.reason:
            if traced.pattern is not None:
                by_trace_only.add(leaf.path)
        else:  # biases, norms, embeddings, depthwise kernels
            assert traced.pattern is None, leaf.path
    return by_both, by_trace_only


def test_linen():
    ids = jax.ShapeDtypeStruct((2, 6), "int32")
    image = jax.ShapeDtypeStruct((2, 8, 8, 32), "float32")
    variables = jax.eval_shape(
        lambda: Linen().init(
            jax.random.key(0), jnp.ones(ids.shape, int), jnp.ones(image.shape)
        )
    )
    params = variables.pop("params")
    fn = lambda p, rest, *x: Linen().apply({"params": p, **rest}, *x)
    by_both, by_trace_only = compare(fn, params, variables, ids, image)
    assert len(by_both) == 8 + 8 + 6 + 3 + 3
    assert by_trace_only == {"DenseGeneral_0/kernel", "Einsum_0/kernel"}


@pytest.mark.sweep
def test_nnx():
    model = NNX(nnx.Rngs(0))
    ids = jax.ShapeDtypeStruct((2, 6), "int32")
    by_both, by_trace_only = compare(lambda m, ids: m(ids), model, ids)
    assert by_both == {
        *(f"attention/{name}/kernel" for name in ("query", "key", "value", "out")),
        "conv/kernel",
        "layers/0/kernel",
        "layers/1/kernel",
        "lm_head/kernel",
    }
    assert by_trace_only == {
        "general/kernel",
        "einsum/kernel",
        "lora/lora_a",
        "lora/lora_b",
    }
