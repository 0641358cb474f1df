"""e3nn-jax: equivariant linear layers, each scaled by the root of its inputs."""

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from tests.libraries.journey import HEAD, Model, library, travel


def test_e3nn(tmp_path):
    e3nn, layers = library("e3nn_jax"), library("e3nn_jax.flax")

    class Network(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = e3nn.IrrepsArray("32x0e + 16x1o", x)
            x = layers.Linear("64x0e + 32x1o", name="mix")(x)
            x = e3nn.concatenate([x, e3nn.norm(x.filter("1o"), squared=True)])
            x = layers.Linear("64x0e", name="scalars")(x.filter("0e").regroup())
            mlp = layers.MultiLayerPerceptron((32, 4), act=jax.nn.silu, name="mlp")
            return mlp(x).array

    network = Network()
    keys = jax.random.split(jax.random.key(1), 3)
    batches = [(jax.random.normal(key, (16, 32 + 3 * 16)),) for key in keys]
    target = jnp.ones((16, 4))

    def forward(params, x):
        return network.apply({"params": params}, x)

    # A linear layer has one matrix for each irrep that it maps to itself: `mix` has one
    # for scalars and one for vectors, `scalars` has one. Their names are
    # `w[0,0] 32x0e,64x0e`: the index of the irreps, inputs and outputs.
    model = Model(
        name="e3nn-jax",
        params=network.init(keys[0], *batches[0])["params"],
        forward=forward,
        loss=lambda params, x: optax.l2_loss(forward(params, x), target).mean(),
        batches=batches,
        kernels=4,
        pruned={
            r"mix/w\[0,0\] 32x0e,64x0e": 0,
            r"mix/w\[1,1\] 16x1o,32x1o": 0,
            r"scalars/w\[0,0\] 96x0e,64x0e": 0,
            "mlp/Dense_0/kernel": 0,
        },
        dense={"mlp/Dense_1/kernel": HEAD},
        by_names={"mlp/Dense_0/kernel": 0},
        optimizer=optax.adam(1e-3),
    )
    travel(model, tmp_path)
