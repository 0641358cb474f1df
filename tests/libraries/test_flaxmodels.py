"""flaxmodels: a ResNet in Linen, whose BatchNorm statistics are not parameters."""

import jax
import jax.numpy as jnp
import optax
from flax.training.train_state import TrainState

import jaxsparse as js
from tests.libraries.journey import (
    ANOTHER_M,
    HEAD,
    NO_MATMUL,
    STEPS,
    Model,
    library,
    travel,
)


THREE_COLOURS = f"axis 2 is not divisible by 4; {ANOTHER_M}"


class State(TrainState):
    """As in the training script of flaxmodels."""

    batch_stats: dict


def test_flaxmodels(tmp_path):
    flaxmodels = library("flaxmodels")
    resnet = flaxmodels.ResNet18(pretrained=None, output="logits", num_classes=16)
    keys = jax.random.split(jax.random.key(1), STEPS)
    images = [jax.random.uniform(key, (2, 32, 32, 3)) for key in keys]
    labels = jnp.array([3, 5])
    variables = resnet.init(keys[0], images[0], train=False)

    def forward(params, images, _):
        return resnet.apply({**variables, "params": params}, images, train=False)

    def cross_entropy(logits, labels):
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean()

    def train(tx):
        @jax.jit
        def step(state, images):
            def loss(params):
                logits, changed = state.apply_fn(
                    {"params": params, "batch_stats": state.batch_stats},
                    images,
                    train=True,
                    mutable=["batch_stats"],
                )
                return cross_entropy(logits, labels), changed["batch_stats"]

            gradients, batch_stats = jax.grad(loss, has_aux=True)(state.params)
            return state.apply_gradients(grads=gradients, batch_stats=batch_stats)

        state = State.create(
            apply_fn=resnet.apply,
            params=variables["params"],
            tx=tx,
            batch_stats=variables["batch_stats"],
        )
        for x in images:
            state = step(state, x)
            yield state.params

    # Eight blocks, two for each width, of two convolutions each. The first block of a
    # new width has another of 1x1. The rule, which prunes three, keeps the test short.
    pruned = {r"BasicBlock_[0-2]/Conv_[012]/kernel": 2}  # (height, width, in, out)
    rule = js.Rule(r"BasicBlock_[3-7]/.*", None)
    model = Model(
        name="flaxmodels",
        params=variables["params"],
        forward=forward,
        loss=lambda params, x, y: cross_entropy(forward(params, x, y), y),
        batches=[(x, labels) for x in images],
        kernels=2 + 2 + 3,
        pruned=pruned,
        dense={
            "Conv_0/kernel": THREE_COLOURS,
            "Dense_0/kernel": HEAD,
            r"Dense_0/bias|(BasicBlock_[0-2]/)?BatchNorm_\d/.*": NO_MATMUL,
            r"BasicBlock_[3-7]/.*": r"rule 'BasicBlock_[3-7]/.*'",
        },
        # Names cannot know that `Dense_0` is the head.
        by_names=pruned | {"Dense_0/kernel": 0},
        optimizer=optax.adam(1e-3),
        train=train,
        rules=[rule, js.Rule(".*", "2:4")],
    )
    travel(model, tmp_path)
