"""What the forward passes do not honour is refused by name."""

import re

import pytest

from jaxsparse._language_models import check_tensors, language_model
from tests.cli.numpy_decoders import GPT2, LLAMA, random_weights, shapes


MISTRAL = LLAMA | {"model_type": "mistral", "architectures": None}
QWEN2 = LLAMA | {"model_type": "qwen2", "architectures": None}


@pytest.mark.parametrize(
    ("config", "field", "value"),
    [
        (LLAMA, "model_type", "bert"),
        (LLAMA, "architectures", ["LlamaForSequenceClassification"]),
        (LLAMA, "quantization_config", {"quant_method": "awq"}),
        (LLAMA, "auto_map", {"AutoModel": "modeling.Mine"}),
        (LLAMA, "hidden_act", "swiglu"),
        (LLAMA, "sliding_window", 5),
        (LLAMA, "rope_scaling", {"rope_type": "yarn", "factor": 4.0}),
        (LLAMA, "rope_scaling", {"type": "dynamic", "factor": 2.0}),
        (LLAMA, "rope_parameters", {"partial_rotary_factor": 0.5}),
        (LLAMA, "rope_scaling", {"rope_type": "llama3", "factor": 8.0}),
        (LLAMA, "num_experts_per_tok", 2),
        (LLAMA, "num_key_value_heads", 3),
        (LLAMA, "num_hidden_layers", "two"),
        (LLAMA, "rms_norm_eps", -1.0),
        (LLAMA, "tie_word_embeddings", "yes"),
        (MISTRAL, "attention_bias", True),
        (QWEN2, "layer_types", ["sliding_attention", "full_attention"]),
        (QWEN2, "layer_types", ["full_attention"]),
        (QWEN2, "layer_types", ["linear_attention", "full_attention"]),
        (GPT2, "scale_attn_by_inverse_layer_idx", True),
        (GPT2, "scale_attn_weights", False),
        (GPT2, "add_cross_attention", True),
        (GPT2, "activation_function", "tanh"),
        (GPT2, "n_head", 5),
    ],
)
def test_fields_that_are_not_honoured(config, field, value):
    name = next(iter(value)) if field == "rope_parameters" else field
    with pytest.raises(ValueError, match=rf"^config\.json: [a-z_.]*{name}\b"):
        language_model(config | {field: value}, shapes(config))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rope_parameters": {"rope_type": "longrope"}}, "rope_type is 'longrope'"),
        ({"num_hidden_layers": 3}, "there is no tensor 'model.layers.2."),
        ({"num_hidden_layers": 1}, "'model.layers.1.input_layernorm.weight' is not"),
        ({"intermediate_size": 48}, "has shape (32, 32), but config.json implies"),
        ({"tie_word_embeddings": True}, "'lm_head.weight' is not used"),
        ({"attention_bias": True}, "there is no tensor 'model.layers.0.self_attn."),
        ({"hidden_size": None}, "hidden_size is None: it must be a positive"),
    ],
)
def test_tensors_that_the_configuration_does_not_describe(change, words):
    specs = random_weights(LLAMA)
    with pytest.raises(ValueError, match=re.escape(words)):
        check_tensors(language_model(LLAMA | change, specs), specs)
