"""`prune --permute`: the function stays, and n:m keeps more."""

import json

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

import jaxsparse as js
from jaxsparse._channels import permutation_search
from jaxsparse._language_models import language_model
from jaxsparse.cli.leaves import open_leaves
from jaxsparse.cli.permute import open_blocks, permute_blocks
from tests.cli.command import pruned
from tests.cli.numpy_decoders import (
    GPT2,
    LLAMA,
    logits,
    random_tokens,
    random_weights,
    write_folder,
)


MODELS = {"llama": LLAMA, "gpt2": GPT2}
#: The layers whose inputs are permuted.
INPUTS = {"llama": ("o_proj", "down_proj"), "gpt2": ("attn.c_proj", "mlp.c_proj")}


@pytest.fixture(autouse=True)
def short_search(monkeypatch):
    monkeypatch.setattr(permutation_search, "_ANNEALED_STEPS", 20)


def load(folder):
    return safetensors.numpy.load_file(folder / "model.safetensors")


def is_consumer(name, model):
    return name.removesuffix(".weight").endswith(INPUTS[model])


def kept(weight, axis):
    """The share of the magnitudes that 2:4 keeps."""
    return np.abs(pruned(weight, 2, 4, axis)).sum() / np.abs(weight).sum()


@pytest.mark.sweep
@pytest.mark.parametrize("model", MODELS)
def test_permuted_tensors_compute_the_same_logits(tmp_path, model):
    weights = random_weights(MODELS[model])
    folder = write_folder(tmp_path / "model", MODELS[model], weights)
    leaves = open_leaves(folder)
    plan = js.plan_sparsity(dict(leaves.specs), layout="torch")
    permuted = permute_blocks(leaves, plan, open_blocks(leaves, plan), verbose=False)
    moved = {name: permuted.of(name, x) for name, x in weights.items()}

    tokens = random_tokens(4)
    expected = logits(MODELS[model], weights, tokens)  # in float64
    np.testing.assert_allclose(logits(MODELS[model], moved, tokens), expected, 1e-9)
    changed = {k for k, x in weights.items() if not np.array_equal(x, moved[k])}
    assert len(changed) == (10 if model == "llama" else 12)
    axis = 0 if model == "gpt2" else 1
    assert [gain.leaves for gain in permuted.gains] == [
        (name,) for name in sorted(weights) if is_consumer(name, model)
    ]
    for gain in permuted.gains:
        (name,) = gain.leaves
        assert gain.before == pytest.approx(kept(weights[name], axis), rel=1e-5)
        assert gain.after == pytest.approx(kept(moved[name], axis), rel=1e-5)
        assert gain.after > gain.before


def own_logits(model, weights, tokens):
    """The logits of the library's own forward pass."""
    x = jnp.asarray(tokens)
    for stage in model.stages:
        params = {k: jnp.asarray(weights[t.name]) for k, t in stage.tensors.items()}
        x = stage.fn(params, x)
    return np.asarray(x)


@pytest.mark.sweep(full=["mistral", "qwen3", "qwen2"])
@pytest.mark.parametrize("kind", ["mistral", "qwen2", "qwen3"])
def test_biases_and_norms_of_heads_fit_permuted_tensors(tmp_path, kind):
    fields = {"model_type": kind, "architectures": None, "num_attention_heads": 4}
    config = LLAMA | fields | {"num_key_value_heads": 2, "head_dim": 8}
    rng = np.random.default_rng(0)
    names = ["model.embed_tokens.weight", "lm_head.weight"]
    weights = {
        name: rng.normal(size=tensor.shape).astype(np.float32) / 4
        for name, tensor in language_model(config, names).tensors.items()
    }
    folder = write_folder(tmp_path / "model", config, weights)
    leaves = open_leaves(folder)
    plan = js.plan_sparsity(dict(leaves.specs), layout="torch")
    model = open_blocks(leaves, plan)
    permuted = permute_blocks(leaves, plan, model, verbose=False)
    assert all(gain.after > gain.before for gain in permuted.gains)
    moved = {name: permuted.of(name, x) for name, x in weights.items()}
    name = "model.layers.0.self_attn.v_proj.bias"
    assert (name in permuted.moves) == (kind == "qwen2")
    before, after = (own_logits(model, x, random_tokens(4)) for x in (weights, moved))
    np.testing.assert_allclose(after, before, atol=1e-5 * np.abs(before).max())


def channels_off(model, weights):
    """Whole inputs of layers are zero, the first half of each head or of all.

    With another order, 2:4 loses nothing.
    """
    for name, weight in weights.items():
        if is_consumer(name, model):
            inputs = weight if model == "gpt2" else weight.T
            size = 16 if "o_proj" in name or "attn" in name else 32
            inputs[np.arange(32) % size < size // 2] = 0
    return weights


@pytest.mark.sweep(full=["gpt2-", "llama-sparsegpt"])
@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
@pytest.mark.parametrize("model", MODELS)
def test_what_another_order_saves_is_saved(run, tmp_path, model, method):
    weights = channels_off(model, random_weights(MODELS[model]))
    folder = write_folder(tmp_path / "model", MODELS[model], weights)
    np.savez(tmp_path / "tokens.npz", tokens=random_tokens())
    rules = ["--rule", r".*(c_attn|c_fc|[qkv]_proj|gate_proj|up_proj)\.weight=dense"]
    options = [*rules, "--method", method]
    if method != "magnitude":
        options += ["--calibrate", tmp_path / "tokens.npz"]
    for name in ("plain", "permuted"):
        more = ["--permute", "--json"] if name == "permuted" else []
        done = run("prune", folder, "-o", tmp_path / name, *options, *more)
        assert (done.code, done.err) == (0, "")
    assert len(done.json["permuted"]) == 4
    for group in done.json["permuted"]:
        assert group["before"] < 0.9
        assert group["after"] == pytest.approx(1, abs=1e-6)
    tokens = random_tokens(4)
    dense, plain, permuted = (
        logits(MODELS[model], load(tmp_path / name), tokens)
        for name in ("model", "plain", "permuted")
    )
    size = np.abs(dense).max()
    np.testing.assert_allclose(permuted, dense, atol=1e-5 * size)
    assert np.abs(plain - dense).max() > 0.1 * size
    assert run("check", tmp_path / "permuted", *rules).code == 0
    assert (tmp_path / "permuted" / "config.json").read_text() == json.dumps(
        MODELS[model]
    )


@pytest.mark.sweep
def test_names_dtypes_and_metadata_stay_and_a_dry_run_says_what_is_gained(
    run, tmp_path
):
    weights = random_weights(LLAMA, ml_dtypes.bfloat16)
    folder = write_folder(tmp_path / "model", LLAMA, weights)
    dry = run("prune", folder, "--dry-run", "--permute")
    assert "\nwould have permuted 4 groups of channels: the tensors that" in dry.out
    assert {x.name for x in tmp_path.iterdir()} == {"model"}
    done = run("prune", folder, "-o", tmp_path / "out", "--permute", "--verbose")
    assert done.err.startswith("permute 1/2 model.layers.0\npermute 2/2 model.")
    line = next(x for x in done.out.splitlines() if x.startswith("permuted 4 groups"))
    assert line == next(
        x.removeprefix("would have ")
        for x in dry.out.splitlines()
        if x.startswith("would have permuted")
    )
    result = load(tmp_path / "out")
    for name, weight in weights.items():
        assert result[name].dtype == weight.dtype
        if "layers" not in name or weight.ndim == 1:
            np.testing.assert_array_equal(result[name], weight)
        else:
            assert ((result[name] != 0).reshape(-1, 4).sum(1) <= 2).all()
    with safetensors.safe_open(tmp_path / "out" / "model.safetensors", "np") as file:
        assert file.metadata() == {"format": "pt"}


def test_a_dry_run_of_a_calibrated_method_says_what_would_be_done(run, tmp_path):
    folder = write_folder(tmp_path / "model", LLAMA, random_weights(LLAMA))
    np.savez(tmp_path / "tokens.npz", tokens=random_tokens())
    options = ("--method", "wanda", "--calibrate", tmp_path / "tokens.npz")
    done = run("prune", folder, "--dry-run", "--permute", *options)
    assert "the channels of each block would be permuted before" in done.out
    assert run("prune", folder, "--dry-run", "--json").json["permuted"] is None


def test_what_cannot_be_permuted_is_refused_with_the_remedy(run, tmp_path):
    weights = random_weights(LLAMA)
    folder = write_folder(tmp_path / "model", LLAMA, weights)
    python = "in Python, jaxsparse.permute_channels permutes the channels of any model"

    def refuse(file, output, *options):
        done = run("prune", file, "-o", tmp_path / output, "--permute", *options)
        assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
        assert not (tmp_path / output).exists()
        return done.err

    file = folder / "model.safetensors"
    line = refuse(file, "out.safetensors")
    assert line.startswith(f"error: {file} must be the folder of a Hugging Face model")
    assert line.endswith(f"{python}\n")
    line = refuse(folder, "out", "--rule", r".*(o_proj|down_proj)\.weight=dense")
    assert "--permute would change nothing: no tensor that is pruned" in line
    (folder / "config.json").write_text(json.dumps(LLAMA | {"model_type": "t5"}))
    line = refuse(folder, "out")
    assert "config.json: model_type is 't5': only gpt2, llama" in line
    assert line.endswith(f"; {python}\n")
