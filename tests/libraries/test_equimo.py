"""Equimo: a vision transformer in Equinox, whose weights are `(out, in)`."""

import jax

from tests.libraries.journey import Model, library, travel


def test_equimo(tmp_path):
    library("equimo", "--no-deps equimo banax einops loguru lz4")
    import equinox as eqx
    from equimo.vision.models.vit import VisionTransformer

    model = VisionTransformer(
        img_size=16,
        in_channels=3,
        dim=32,
        patch_size=4,
        num_heads=2,
        depths=[2],
        num_classes=16,
        key=jax.random.key(0),
    )
    params, static = eqx.partition(model, eqx.is_array)

    def forward(params, images):
        run = eqx.combine(params, static)
        return jax.vmap(lambda x: run(x, key=jax.random.key(0), inference=True))(images)

    keys = jax.random.split(jax.random.key(1), 2)
    images = [(jax.random.normal(key, (8, 3, 16, 16)),) for key in keys]
    block = "blocks/0/blocks/[01]"
    travel(
        Model(
            params,
            forward,
            images,
            axes={rf"{block}/(attn/(qkv|proj)|mlp/fc[12])/weight": 1},
        ),
        tmp_path,
    )
