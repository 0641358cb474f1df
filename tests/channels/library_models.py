"""Small models of Flax Linen, Flax NNX and Equinox: `name() -> (fn, params, args)`."""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from decoder import small_decoder
from flax import linen as nn, nnx

from tests.channels.plain_models import vectors


def values(shapes):
    """Kernels around zero, and scales, biases and variances around one."""
    rng = np.random.default_rng(0)

    def draw(x):
        if not jnp.issubdtype(x.dtype, jnp.floating):  # states of random numbers
            is_key = jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
            return jax.random.key(0) if is_key else jnp.zeros(x.shape, x.dtype)
        noise = rng.normal(size=x.shape)
        return jnp.asarray(noise / 2 if x.ndim > 1 else 1 + noise / 9, x.dtype)

    return jax.tree.map(draw, shapes)


def of_linen(module, *args):
    """The variables of a module, batch statistics included, and how it is applied."""
    shapes = jax.eval_shape(module.init, jax.random.key(0), *args)
    return module.apply, values(shapes), args


def of_nnx(make, *args):
    model = nnx.eval_shape(lambda: make(nnx.Rngs(0)))
    graph, weights, rest = nnx.split(model, nnx.Param, ...)
    run = lambda weights, *args: nnx.merge(graph, weights, values(rest))(*args)
    return run, values(weights), args


def of_equinox(make, *args):
    model = eqx.filter_eval_shape(make, jax.random.key(0))
    is_array = lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct)
    arrays, rest = eqx.partition(model, is_array)
    run = lambda arrays, *args: eqx.combine(arrays, rest)(*args)
    return run, values(arrays), args


class Residual(nn.Module):
    """A block of a ResNet."""

    width: int

    @nn.compact
    def __call__(self, x):
        norm = lambda: nn.BatchNorm(use_running_average=True)
        y = nn.relu(norm()(nn.Conv(self.width, (3, 3), use_bias=False)(x)))
        y = norm()(nn.Conv(self.width, (3, 3), use_bias=False)(y))
        if x.shape != y.shape:
            x = nn.Conv(self.width, (1, 1))(x)
        return nn.relu(x + y)


class Inverted(nn.Module):
    """A block of a MobileNet: expanded, convolved by channel, and projected."""

    @nn.compact
    def __call__(self, x):
        norm = lambda: nn.BatchNorm(use_running_average=True)
        y = nn.relu6(norm()(nn.Conv(12, (1, 1))(x)))
        y = nn.relu6(norm()(nn.Conv(12, (3, 3), feature_group_count=12)(y)))
        weights = nn.sigmoid(nn.Dense(12)(nn.relu(nn.Dense(4)(y.mean((1, 2))))))
        y = y * weights[:, None, None]  # squeeze and excitation
        return x + norm()(nn.Conv(x.shape[-1], (1, 1))(y))


class Classifier(nn.Module):
    body: nn.Module

    @nn.compact
    def __call__(self, x):
        x = self.body(nn.Conv(6, (3, 3))(x))
        x = nn.avg_pool(x, (2, 2), (2, 2))
        return nn.Dense(5)(x.reshape(len(x), -1))


def resnet():
    body = nn.Sequential([Residual(6), Residual(8)])
    return of_linen(Classifier(body), vectors(2, 4, 4, 3))


def mobilenet():
    return of_linen(Classifier(Inverted()), vectors(2, 4, 4, 3))


class Encoder(nn.Module):
    """A block of a transformer encoder, after an embedding with learned positions."""

    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(11, 8)(tokens)
        x = nn.LayerNorm()(
            x + self.param("positions", nn.initializers.normal(), (5, 8))
        )
        x = nn.LayerNorm()(x + nn.MultiHeadDotProductAttention(2)(x))
        x = nn.LayerNorm()(x + nn.Dense(8)(nn.gelu(nn.Dense(12)(x))))
        return nn.Dense(3)(nn.tanh(nn.Dense(8)(x[:, 0])))


def encoder():
    return of_linen(Encoder(), jnp.arange(10).reshape(2, 5))


class Recurrent(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.RNN(nn.LSTMCell(6))(x)
        x = nn.RNN(nn.GRUCell(4))(x)
        return nn.Dense(3)(x[:, -1])


def lstm_and_gru():
    return of_linen(Recurrent(), vectors(2, 3, 5))


class Grouped(nn.Module):
    """GroupNorm splits the channels."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(12, (3, 3))(x)
        return nn.Dense(5)(nn.relu(nn.GroupNorm(3)(x)).mean((1, 2)))


def group_norm():
    return of_linen(Grouped(), vectors(2, 4, 4, 3))


def nnx_decoder():
    return of_nnx(small_decoder, jnp.arange(6).reshape(2, 3))


def nnx_stacked_decoder():
    make = partial(small_decoder, stacked=True)
    return of_nnx(make, jnp.arange(6).reshape(2, 3))


class Patches(nnx.Module):
    """A vision transformer: patches by convolution, one block, pooling."""

    def __init__(self, rngs):
        self.patch = nnx.Conv(3, 8, (2, 2), (2, 2), rngs=rngs)
        self.positions = nnx.Param(jax.random.normal(rngs.params(), (4, 8)))
        self.norm = nnx.LayerNorm(8, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, 8, rngs=rngs, decode=False)
        self.up = nnx.Linear(8, 12, rngs=rngs)
        self.down = nnx.Linear(12, 8, rngs=rngs)
        self.head = nnx.Linear(8, 5, rngs=rngs)

    def __call__(self, x):
        x = self.patch(x).reshape(len(x), -1, 8) + self.positions[...]
        x = x + self.attention(self.norm(x))
        x = x + self.down(nnx.gelu(self.up(x)))
        return self.head(x.mean(1))


def vision_transformer():
    return of_nnx(Patches, vectors(2, 4, 4, 3))


class Cell(nnx.Module):
    def __init__(self, rngs):
        self.cell = nnx.RNN(nnx.OptimizedLSTMCell(5, 6, rngs=rngs))
        self.out = nnx.Linear(6, 3, rngs=rngs)

    def __call__(self, x):
        return self.out(self.cell(x))


def fused_lstm():
    """Its four gates lie side by side in one kernel."""
    return of_nnx(Cell, vectors(2, 3, 5))


class Images(eqx.Module):
    """Channels first, as in PyTorch."""

    first: eqx.nn.Conv2d
    norm: eqx.nn.GroupNorm
    second: eqx.nn.ConvTranspose2d
    head: eqx.nn.Linear

    def __init__(self, key):
        a, b, c = jax.random.split(key, 3)
        self.first = eqx.nn.Conv2d(3, 6, 3, key=a)
        self.norm = eqx.nn.GroupNorm(1, 6)
        self.second = eqx.nn.ConvTranspose2d(6, 4, 2, stride=2, key=b)
        self.head = eqx.nn.Linear(64, 5, key=c)

    def __call__(self, x):
        x = jax.nn.relu(self.norm(self.first(x)))
        return self.head(jnp.ravel(self.second(x)))


def equinox_images():
    return of_equinox(Images, vectors(3, 4, 4))


class Tokens(eqx.Module):
    attention: eqx.nn.MultiheadAttention
    cell: eqx.nn.GRUCell
    mlp: eqx.nn.MLP

    def __init__(self, key):
        a, b, c = jax.random.split(key, 3)
        self.attention = eqx.nn.MultiheadAttention(2, 8, use_value_bias=True, key=a)
        self.cell = eqx.nn.GRUCell(8, 6, key=b)
        self.mlp = eqx.nn.MLP(6, 5, 12, 2, key=c)

    def __call__(self, x):
        x = self.attention(x, x, x)
        step = lambda h, x: (self.cell(x, h), None)
        return self.mlp(jax.lax.scan(step, jnp.zeros(6), x)[0])


def equinox_tokens():
    return of_equinox(Tokens, vectors(3, 8))
