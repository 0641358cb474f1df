"""The forward passes of the command line, beside those of transformers.

python -m pytest --full tests/cli/test_language_models_transformers.py
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from jaxsparse._language_models import check_tensors, language_model
from tests.cli.test_command_line_transformers import transformers as transformers


pytestmark = pytest.mark.filterwarnings("default")

VOCAB, LENGTH = 96, 40
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
GPT2 = {"vocab_size": VOCAB, "n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 64}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
WINDOW = {"use_sliding_window": True, "sliding_window": 5}

#: The names of the configurations, and their fields.
MODELS = {
    "llama": ("LlamaConfig", SIZES),
    "llama, one key a query": ("LlamaConfig", SIZES | {"num_key_value_heads": 4}),
    "llama, tied": ("LlamaConfig", SIZES | {"tie_word_embeddings": True}),
    "llama, biases": (
        "LlamaConfig",
        SIZES | {"attention_bias": True, "mlp_bias": True, "head_dim": 32},
    ),
    "llama, rope of Llama 3": ("LlamaConfig", SIZES | {"rope_parameters": LLAMA3}),
    "mistral": ("MistralConfig", SIZES | {"sliding_window": None}),
    "mistral, window": ("MistralConfig", SIZES | {"sliding_window": 5}),
    "qwen2": ("Qwen2Config", SIZES),
    "qwen2, window": ("Qwen2Config", SIZES | WINDOW | {"max_window_layers": 1}),
    "qwen3": ("Qwen3Config", SIZES | {"head_dim": 32}),
    "qwen3, biases and windows": (
        "Qwen3Config",
        SIZES
        | WINDOW
        | {"head_dim": 16, "attention_bias": True, "tie_word_embeddings": True}
        | {"layer_types": [f"{x}_attention" for x in ("sliding", "full", "sliding")]},
    ),
    "gpt2": ("GPT2Config", GPT2),
    "gpt2, own head": (
        "GPT2Config",
        GPT2
        | {"n_inner": 80, "activation_function": "gelu", "tie_word_embeddings": False},
    ),
}


@pytest.fixture(params=[*MODELS])
def folder(transformers, request, tmp_path):
    """The folder of a random model whose every part matters."""
    name, fields = MODELS[request.param]
    transformers.set_seed(0)
    config = getattr(transformers, name)(**fields)
    model = transformers.AutoModelForCausalLM.from_config(config)
    draw = np.random.default_rng(0)
    for name, parameter in model.named_parameters():
        values = 0.2 * draw.normal(size=tuple(parameter.shape))
        is_gain = parameter.ndim == 1 and name.endswith(".weight")
        parameter.data[:] = parameter.data.new_tensor(values + is_gain)
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def tokens(samples=2):
    return np.random.default_rng(1).integers(0, VOCAB, (samples, LENGTH))


def reference_logits(transformers, folder):
    torch = pytest.importorskip("torch")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        return model(torch.from_numpy(tokens())).logits.numpy()


def our_logits(folder, without=()):
    fields = json.loads((folder / "config.json").read_text())
    fields = {k: v for k, v in fields.items() if k not in without}
    weights = safetensors.numpy.load_file(folder / "model.safetensors")
    model = language_model(fields, weights)
    check_tensors(model, weights)
    x = jnp.asarray(tokens())
    for stage in model.stages:
        params = {k: jnp.asarray(weights[t.name]) for k, t in stage.tensors.items()}
        x = jax.jit(stage.fn)(params, x)
    return np.asarray(x)


def test_logits_are_those_of_transformers(transformers, folder, request):
    expected = reference_logits(transformers, folder)
    logits = our_logits(folder)
    np.testing.assert_allclose(logits, expected, atol=1e-4, rtol=0)
    assert np.abs(expected).max() > 1
    # The special cases are special: without its fields, another model results.
    case = request.node.callspec.params["folder"]
    if "rope" in case:
        others = our_logits(folder, without=("rope_parameters",))
        assert np.abs(others - expected).max() > 0.1
    if "mistral, window" in case:
        assert np.abs(our_logits(folder, ("sliding_window",)) - expected).max() > 0.1


@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
def test_pruned_folders_load(run, transformers, folder, tmp_path, method):
    np.savez(tmp_path / "tokens.npz", tokens=tokens(4))
    output = tmp_path / "out"
    options = ("--method", method, "--calibrate", tmp_path / "tokens.npz")
    assert run("prune", folder, "-o", output, *options).code == 0
    assert run("check", output).code == 0
    model = transformers.AutoModelForCausalLM.from_pretrained(output)
    written = safetensors.numpy.load_file(output / "model.safetensors")
    state = model.state_dict()
    for name, weight in written.items():
        np.testing.assert_array_equal(state[name].numpy(), weight)
    reference = reference_logits(transformers, output)
    np.testing.assert_allclose(our_logits(output), reference, atol=1e-4, rtol=0)
