"""Tunix: Llama 3 in NNX, trained by Tunix's own trainer."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from tests.libraries.journey import (
    GATHERED,
    HEAD,
    NO_MATMUL,
    STEPS,
    Model,
    library,
    travel,
)


VOCABULARY, BLOCKS, BATCH, LENGTH = 64, 2, 4, 8


def test_tunix(tmp_path):
    llama = library("tunix.models.llama3.model")
    config = llama.ModelConfig(
        num_layers=BLOCKS,
        vocab_size=VOCABULARY,
        embed_dim=32,
        hidden_dim=64,
        num_heads=4,
        head_dim=8,
        num_kv_heads=2,
        rope_theta=10_000,
        norm_eps=1e-5,
    )
    definition, params = nnx.split(llama.Llama3(config, rngs=nnx.Rngs(0)))
    params = _random(params)
    positions = jnp.broadcast_to(jnp.arange(LENGTH), (BATCH, LENGTH))
    causal = jnp.tril(jnp.ones((LENGTH, LENGTH), bool))
    attention = jnp.broadcast_to(causal, (BATCH, LENGTH, LENGTH))

    def forward(params, tokens):
        run = nnx.merge(definition, params)
        return run(tokens, positions, None, attention)[0]

    def loss(params, tokens):
        return optax.softmax_cross_entropy_with_integer_labels(
            forward(params, tokens)[:, :-1], tokens[:, 1:]
        ).mean()

    keys = jax.random.split(jax.random.key(1), STEPS)
    tokens = [jax.random.randint(key, (BATCH, LENGTH), 0, VOCABULARY) for key in keys]

    def train(tx):
        # The trainer donates the arrays of its model.
        own = nnx.merge(definition, jax.tree.map(jnp.array, params))
        return _train(own, tx, tokens, positions, attention)

    mlp = {r"layers/[01]/mlp/(gate|up|down)_proj/kernel": 0}
    model = Model(
        name="Tunix",
        params=params,
        forward=forward,
        loss=loss,
        batches=[(x,) for x in tokens],
        kernels=BLOCKS * (4 + 3),  # attention and MLP
        pruned=mlp
        | {
            r"layers/[01]/attn/[qkv]_proj/w": 0,  # (embed, heads, head)
            r"layers/[01]/attn/o_proj/w": 1,  # (heads, head, embed)
        },
        dense={
            "embedder/input_embedding": GATHERED,
            "lm_head/w": HEAD,
            r"(layers/[01]/\w+_layer|final_)norm/w": NO_MATMUL,
        },
        by_names=mlp,
        optimizer=optax.adamw(1e-3),
        train=train,
    )
    travel(model, tmp_path)


def _random(params):
    """Random matrices: Tunix, which expects a checkpoint, begins with zeros."""
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(0), len(leaves))
    return structure.unflatten(
        x if x.ndim == 1 else 0.2 * jax.random.normal(key, x.shape)
        for key, x in zip(keys, leaves, strict=True)
    )


def _train(model, tx, tokens, positions, attention):
    """Runs Tunix's trainer; a hook keeps the parameters after each step."""
    hooks = library("tunix.sft.hooks")
    trainers = library("tunix.sft.peft_trainer")
    steps = []

    class Record(hooks.TrainingHooks):
        def on_train_start(self, context): ...
        def on_train_end(self, context): ...
        def on_train_step_start(self, context): ...
        def on_eval_step_start(self, context): ...
        def on_eval_step_end(self, context, loss): ...
        def on_train_step_end(self, context, *_):
            state = nnx.state(context.model, nnx.Param)
            steps.append(jax.tree.map(np.array, state))

    settings = trainers.TrainingConfig(eval_every_n_steps=100, max_steps=STEPS)
    trainer = trainers.PeftTrainer(model, tx, settings)
    trainer.with_gen_model_input_fn(
        lambda batch: {
            "input_tokens": batch.input_tokens,
            "input_mask": batch.input_mask,
            "positions": positions,
            "attention_mask": attention,
        }
    )
    trainer.with_training_hooks(Record())
    mask = jnp.ones((BATCH, LENGTH), bool)
    trainer.train(
        trainers.TrainingInput(input_tokens=x, input_mask=mask) for x in tokens
    )
    return steps
