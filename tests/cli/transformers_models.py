"""Small models of transformers with random weights, one of each shape of names.

The functions get the package, which is not installed with the others.
"""

VOCABULARY = {"vocab_size": 96, "hidden_size": 64}
LAYERS = {"num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
IMAGES = {"image_size": 16, "patch_size": 8, "num_channels": 16, "hidden_size": 64}


def bert(transformers):
    config = transformers.BertConfig(**VOCABULARY, **LAYERS)
    return transformers.BertForMaskedLM(config)


def llama(transformers):
    config = transformers.LlamaConfig(**VOCABULARY, **LAYERS, num_key_value_heads=2)
    return transformers.LlamaForCausalLM(config)


def vit(transformers):
    return transformers.ViTForImageClassification(
        transformers.ViTConfig(**IMAGES, **LAYERS, num_labels=16)
    )


def clip(transformers):
    text = VOCABULARY | LAYERS | {"max_position_embeddings": 16}
    return transformers.CLIPModel(
        transformers.CLIPConfig(
            text_config=text, vision_config=IMAGES | LAYERS, projection_dim=32
        )
    )


def mixtral(transformers):
    experts = {"num_local_experts": 4, "num_experts_per_tok": 2}
    config = transformers.MixtralConfig(
        **VOCABULARY, **LAYERS, **experts, num_key_value_heads=2
    )
    return transformers.MixtralForCausalLM(config)


def t5(transformers):
    return transformers.T5ForConditionalGeneration(
        transformers.T5Config(
            vocab_size=96, d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4
        )
    )


#: The models, the largest size of a file, and the number of tensors that are pruned:
#: projections and the two or three matrices of each feed-forward layer, in two layers;
#: of images the patches; of CLIP both projections.
MODELS = {
    "bert": (bert, "1GB", 2 * (4 + 2)),
    "llama": (llama, "100KB", 2 * (4 + 3)),
    "vit": (vit, "1GB", 2 * (4 + 2) + 1),
    "clip": (clip, "1GB", 2 * 2 * (4 + 2) + 1 + 2),
    "mixtral": (mixtral, "200KB", 2 * (4 + 4 * 3)),
    "t5": (t5, "1GB", 2 * (4 + 2) + 2 * (2 * 4 + 2)),
}


def save(transformers, name, folder):
    """Saves a model to a folder."""
    make, max_size, _ = MODELS[name]
    transformers.set_seed(0)
    make(transformers).save_pretrained(folder, max_shard_size=max_size)
