"""Penzai: a Llama-like transformer of named arrays, whose paths are numbers."""

import jax

from tests.libraries.journey import Model, library, travel


def test_penzai(tmp_path):
    pz = library("penzai.pz", "penzai")
    from penzai.models.transformer.variants import llamalike_common as llama

    config = llama.LlamalikeTransformerConfig(
        num_kv_heads=2,
        query_head_multiplier=2,
        embedding_dim=32,
        projection_dim=8,
        mlp_hidden_dim=64,
        num_decoder_blocks=2,
        vocab_size=64,
        mlp_variant="swiglu",
        tie_embedder_and_logits=False,
    )
    model = llama.build_llamalike_transformer(config, jax.random.key(0))
    model, params = pz.unbind_params(model, freeze=True)

    def forward(params, tokens):
        run = pz.bind_variables(model, params)
        wrapped = pz.nx.wrap(tokens, "batch", "seq")
        positions = pz.nx.arange("seq", tokens.shape[1])
        return run(wrapped, token_positions=positions).unwrap(
            "batch", "seq", "vocabulary"
        )

    keys = jax.random.split(jax.random.key(1), 2)
    tokens = [(jax.random.randint(key, (4, 8), 0, 64),) for key in keys]
    # Each product sums over the axes that its label's inputs have.
    axis_of = {"query": 0, "key": 0, "value": 0, "output": 2}
    axis_of |= {"gating_linear": 0, "value_linear": 0, "out_linear": 0}
    layers = [param.label.removesuffix(".weights").split("/")[-1] for param in params]
    axes = {rf"{i}/.*": axis_of[x] for i, x in enumerate(layers) if x in axis_of}
    assert len(axes) == 2 * len(axis_of)
    travel(Model(params, forward, tokens, axes), tmp_path)
