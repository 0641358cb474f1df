"""e3nn-jax: equivariant linear layers, each scaled by the root of its inputs."""

import jax

from tests.libraries.journey import Model, library, travel


def test_e3nn(tmp_path):
    e3nn = library("e3nn_jax", "e3nn-jax flax")
    from e3nn_jax.flax import Linear, MultiLayerPerceptron
    from flax import linen as nn

    class Network(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = e3nn.IrrepsArray("32x0e + 16x1o", x)
            x = Linear("64x0e + 32x1o", name="mix")(x)
            x = e3nn.concatenate([x, e3nn.norm(x.filter("1o"), squared=True)])
            x = Linear("64x0e", name="scalars")(x.filter("0e").regroup())
            return MultiLayerPerceptron((32, 4), act=jax.nn.silu, name="mlp")(x).array

    keys = jax.random.split(jax.random.key(1), 3)
    batches = [(jax.random.normal(key, (16, 32 + 48)),) for key in keys]
    model = Network()
    variables = model.init(keys[0], batches[0][0])
    axes = {r"(mix|scalars)/w.*": 0, "mlp/Dense_0/kernel": 0}

    def forward(params, x):
        return model.apply({"params": params}, x)

    names = {"mlp/Dense_0/kernel": 0}
    travel(Model(variables["params"], forward, batches, axes, names), tmp_path)
