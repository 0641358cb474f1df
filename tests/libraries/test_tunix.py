"""Tunix: Llama 3 in NNX, trained by Tunix's own trainer."""

import jax
import jax.numpy as jnp
import numpy as np

from tests.libraries.journey import STEPS, Model, library, travel


INSTALL = (
    "--no-deps google-tunix qwix google-metrax clu huggingface_hub kagglehub pandas "
    "perfetto grain python-dotenv sentencepiece"
)


def test_tunix(tmp_path):
    library("tunix.sft.peft_trainer", INSTALL)
    from flax import nnx
    from tunix.models.llama3 import model as llama
    from tunix.sft import hooks, peft_trainer

    config = llama.ModelConfig(
        num_layers=2,
        vocab_size=64,
        embed_dim=32,
        hidden_dim=64,
        num_heads=4,
        head_dim=8,
        num_kv_heads=2,
        rope_theta=10_000,
        norm_eps=1e-5,
    )
    model = llama.Llama3(config, rngs=nnx.Rngs(0))
    definition, params = nnx.split(model)
    # Tunix expects a checkpoint: its own first kernels are all zero.
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(0), len(leaves))
    params = structure.unflatten(
        x if x.ndim == 1 else 0.2 * jax.random.normal(key, x.shape)
        for key, x in zip(keys, leaves, strict=True)
    )
    positions = jnp.broadcast_to(jnp.arange(8), (4, 8))
    attention = jnp.broadcast_to(jnp.tril(jnp.ones((8, 8), bool)), (4, 8, 8))

    def forward(params, tokens):
        run = nnx.merge(definition, params)
        return run(tokens, positions, None, attention)[0]

    keys = jax.random.split(jax.random.key(1), STEPS)
    tokens = [(jax.random.randint(key, (4, 8), 0, 64),) for key in keys]

    def train(tx):
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

        own = nnx.merge(definition, jax.tree.map(jnp.array, params))
        training = peft_trainer.TrainingConfig(eval_every_n_steps=100, max_steps=STEPS)
        trainer = peft_trainer.PeftTrainer(own, tx, training)
        trainer.with_gen_model_input_fn(
            lambda batch: {
                "input_tokens": batch.input_tokens,
                "input_mask": batch.input_mask,
                "positions": positions,
                "attention_mask": attention,
            }
        )
        trainer.with_training_hooks(Record())
        trainer.train(
            peft_trainer.TrainingInput(
                input_tokens=x, input_mask=jnp.ones((4, 8), bool)
            )
            for (x,) in tokens
        )
        yield from steps

    axes = {
        r"layers/[01]/attn/[qkv]_proj/w": 0,  # (embed, heads, head)
        r"layers/[01]/attn/o_proj/w": 1,  # (heads, head, embed)
        r"layers/[01]/mlp/(gate|up|down)_proj/kernel": 0,
    }
    names = {r"layers/[01]/mlp/(gate|up|down)_proj/kernel": 0}
    travel(Model(params, forward, tokens, axes, names, train=train), tmp_path)
