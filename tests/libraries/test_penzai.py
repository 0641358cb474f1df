"""Penzai: a Llama-like transformer of named arrays, whose paths are numbers."""

import jax
import optax

from tests.libraries.journey import (
    GATHERED,
    HEAD,
    NO_MATMUL,
    STEPS,
    Model,
    library,
    travel,
)


VOCABULARY, BLOCKS = 64, 2


def test_penzai(tmp_path):
    pz = library("penzai.pz")
    trainers = library("penzai.toolshed.basic_training")
    llama = library("penzai.models.transformer.variants.llamalike_common")

    config = llama.LlamalikeTransformerConfig(
        num_kv_heads=2,
        query_head_multiplier=2,
        embedding_dim=32,
        projection_dim=8,
        mlp_hidden_dim=64,
        num_decoder_blocks=BLOCKS,
        vocab_size=VOCABULARY,
        mlp_variant="swiglu",
        tie_embedder_and_logits=False,
    )
    transformer = llama.build_llamalike_transformer(config, jax.random.key(0))
    unbound, params = pz.unbind_params(transformer, freeze=True)

    def logits(run, tokens):
        wrapped = pz.nx.wrap(tokens, "batch", "seq")
        positions = pz.nx.arange("seq", tokens.shape[1])
        result = run(wrapped, token_positions=positions)
        return result.unwrap("batch", "seq", "vocabulary")

    def forward(params, tokens):
        return logits(pz.bind_variables(unbound, params), tokens)

    def next_token(logits, tokens):
        return optax.softmax_cross_entropy_with_integer_labels(
            logits[:, :-1], tokens[:, 1:]
        ).mean()

    keys = jax.random.split(jax.random.key(1), STEPS)
    tokens = [jax.random.randint(key, (4, 8), 0, VOCABULARY) for key in keys]

    def trainer_loss(model, state, rng, tokens):
        del rng
        return next_token(logits(model, tokens), tokens), state, None

    def train(tx):
        """Penzai's own trainer, which changes a model's variables."""
        variables = [param.unfreeze_as_copy() for param in params]
        trainer = trainers.StatefulTrainer.build(
            root_rng=jax.random.key(2),
            model=pz.bind_variables(unbound, variables),
            optimizer_def=tx,
            loss_fn=trainer_loss,
        )
        for batch in tokens:
            trainer.step(tokens=batch)
            yield pz.unbind_params(trainer.model, freeze=True)[1]

    # The group axis of each kind of layer: the last that its product sums over.
    axes = {"query": 0, "key": 0, "value": 0}  # (embedding, heads, projection)
    axes |= {"output": 2}  # (heads, heads for each of them, projection, embedding)
    axes |= {"gating_linear": 0, "value_linear": 0, "out_linear": 0}  # (in, out)
    reasons = {"embedder.embeddings": GATHERED, "scale": NO_MATMUL, "lm_head": HEAD}
    # A path begins with the number of a parameter; its label tells which layer it is.
    names = [param.label.removesuffix(".weights").split("/")[-1] for param in params]
    model = Model(
        name="Penzai",
        params=params,
        forward=forward,
        loss=lambda params, tokens: next_token(forward(params, tokens), tokens),
        batches=[(x,) for x in tokens],
        kernels=BLOCKS * len(axes),
        pruned={rf"{i}/.*": axes[x] for i, x in enumerate(names) if x in axes},
        dense={rf"{i}/.*": reasons[x] for i, x in enumerate(names) if x not in axes},
        by_names={},
        optimizer=optax.adamw(1e-3),
        train=train,
    )
    travel(model, tmp_path)
