"""Equimo: a vision transformer in Equinox, whose weights are `(out, in)`."""

import jax
import jax.numpy as jnp
import optax

from tests.libraries.journey import (
    ANOTHER_M,
    HEAD,
    NO_MATMUL,
    STEPS,
    Model,
    library,
    travel,
)


THREE_COLOURS = f"axis 1 is not divisible by 4; {ANOTHER_M}"


def test_equimo(tmp_path):
    vit = library("equimo.vision.models.vit")
    import equinox as eqx

    transformer = vit.VisionTransformer(
        img_size=16,
        in_channels=3,
        dim=32,
        patch_size=4,
        num_heads=2,
        depths=[2],
        num_classes=16,
        key=jax.random.key(0),
    )
    params, static = eqx.partition(transformer, eqx.is_inexact_array)

    def logits(model, images):
        key = jax.random.key(0)
        return jax.vmap(lambda x: model(x, key=key, inference=True))(images)

    def cross_entropy(model, images, labels):
        return optax.softmax_cross_entropy_with_integer_labels(
            logits(model, images), labels
        ).mean()

    keys = jax.random.split(jax.random.key(1), STEPS)
    images = [jax.random.normal(key, (8, 3, 16, 16)) for key in keys]
    labels = jnp.arange(8)

    def train(tx):
        """The step of Equinox's documentation: it differentiates the whole model."""

        @eqx.filter_jit
        def step(model, state, images):
            gradients = eqx.filter_grad(cross_entropy)(model, images, labels)
            weights = eqx.filter(model, eqx.is_inexact_array)
            updates, state = tx.update(gradients, state, weights)
            return eqx.apply_updates(model, updates), state

        model, state = transformer, tx.init(params)
        for batch in images:
            model, state = step(model, state, batch)
            yield eqx.filter(model, eqx.is_inexact_array)

    # Two blocks with four linear layers each.
    block = "blocks/0/blocks/[01]"
    model = Model(
        name="Equimo",
        params=params,
        forward=lambda params, images, _: logits(eqx.combine(params, static), images),
        loss=lambda params, *batch: cross_entropy(eqx.combine(params, static), *batch),
        batches=[(x, labels) for x in images],
        kernels=2 * 4,
        pruned={rf"{block}/(attn/(qkv|proj)|mlp/fc[12])/weight": 1},
        dense={
            "head/weight": HEAD,
            "patch_embed/proj/weight": THREE_COLOURS,
            "(global_pos_embed/weight|cls_token|reg_tokens)": NO_MATMUL,
            r".*norm/weight|.*/bias": NO_MATMUL,
        },
        by_names={},  # `weight` is no name of Flax
        optimizer=optax.adamw(1e-3),
        train=train,
    )
    travel(model, tmp_path)
