"""Pruning of language models by what they read: Wanda and SparseGPT."""

import json

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from jaxsparse._language_models import language_model
from jaxsparse.cli.method import Data
from jaxsparse.cli.tokens import load_tokens
from tests.cli.numpy_decoders import (
    GPT2,
    LAYERS,
    LLAMA,
    VOCAB,
    logits,
    prune_in_order,
    random_tokens,
    random_weights,
    write_folder,
)


MODELS = {"llama": (LLAMA, np.float32), "gpt2": (GPT2, ml_dtypes.bfloat16)}


def load(folder):
    return safetensors.numpy.load_file(folder / "model.safetensors")


def kept(scores, axis, n=2, m=4):
    """Returns the mask of the `n` largest scores of each `m` along an axis."""
    lines = np.moveaxis(scores, axis, -1)
    groups = lines.reshape(*lines.shape[:-1], -1, m)
    rank = np.argsort(np.argsort(-groups, -1), -1)
    return np.moveaxis((rank < n).reshape(lines.shape), -1, axis)


@pytest.fixture
def tokens(tmp_path):
    """A file of token ids."""
    np.savez(tmp_path / "tokens.npz", tokens=random_tokens())
    return tmp_path / "tokens.npz"


@pytest.fixture
def folder(tmp_path):
    """The folder of a Llama."""
    return write_folder(tmp_path / "model", LLAMA, random_weights(LLAMA))


@pytest.mark.sweep(keep=["llama"])
@pytest.mark.parametrize("name", MODELS)
def test_wanda_keeps_what_float64_keeps(run, tokens, tmp_path, name):
    config, dtype = MODELS[name]
    weights = random_weights(config, dtype)
    folder = write_folder(tmp_path / "model", config, weights)
    output = tmp_path / "out"
    options = ("--method", "wanda", "--calibrate", tokens, "--head", "--json")
    done = run("prune", folder, "-o", output, *options)
    assert (done.code, done.err) == (0, "")

    axis = 0 if name == "gpt2" else 1
    errors = {}

    def prune(name, weight, inputs):
        inputs = inputs.reshape(-1, inputs.shape[-1])
        norms = np.sqrt((inputs**2).mean(0))
        mask = kept(np.abs(weight) * np.expand_dims(norms, 1 - axis), axis)
        matrix, pruned = (w if axis == 0 else w.T for w in (weight, weight * mask))
        errors[name] = np.linalg.norm(inputs @ (matrix - pruned)) / np.linalg.norm(
            inputs @ matrix
        )
        return weight * mask

    expected = prune_in_order(config, weights, random_tokens(), prune)
    result = load(output)
    assert result.keys() == weights.keys()
    for tensor, weight in weights.items():
        assert result[tensor].dtype == dtype
        np.testing.assert_array_equal(result[tensor], expected[tensor], tensor)
        assert np.array_equal(result[tensor], weight) == (tensor not in errors)
    report = done.json
    assert (report["method"], report["output"]) == ("wanda", str(output))
    assert report["calibration"] == {
        "file": str(tokens),
        "samples": 32,
        "length": 12,
        "tokens": 32 * 12,
        "seed": 0,
    }
    reported = {x["leaf"]: x["error"] for x in report["leaves"]}
    assert {k for k, x in reported.items() if x is not None} == errors.keys()
    for tensor, error in errors.items():
        assert reported[tensor] == pytest.approx(error, rel=1e-3)
    assert (output / "config.json").read_text() == json.dumps(config)


@pytest.mark.sweep
def test_sparsegpt_loses_less_than_magnitude(run, folder, tokens, tmp_path):
    dense = logits(LLAMA, load(folder), random_tokens())
    errors = {}
    for method in ("magnitude", "sparsegpt"):
        output = tmp_path / method
        options = () if method == "magnitude" else ("--calibrate", tokens)
        done = run("prune", folder, "-o", output, "--method", method, *options)
        assert (done.code, done.err) == (0, "")
        weights = load(output)
        errors[method] = np.linalg.norm(logits(LLAMA, weights, random_tokens()) - dense)
        blocks = [x for k, x in weights.items() if "layers" in k and x.ndim == 2]
        assert len(blocks) == 7 * LAYERS
        for weight in blocks:
            assert ((weight != 0).reshape(-1, 4).sum(1) <= 2).all()
    assert errors["sparsegpt"] < 0.9 * errors["magnitude"]
    assert f"{method} was calibrated on 384 tokens: 32 x 12 of {tokens}" in done.out
    assert "relative error of outputs: 0." in done.out
    before, after = load(folder), load(tmp_path / "sparsegpt")
    name = "model.layers.0.mlp.up_proj.weight"
    updated = (after[name] != 0) & (after[name] != before[name])
    assert updated.any()
    assert run("check", tmp_path / "sparsegpt").code == 0


@pytest.mark.sweep
def test_rules_keep_tensors_and_stages_dense(run, folder, tmp_path):
    tokens = tmp_path / "ids.npy"
    np.save(tokens, random_tokens(2, 10))
    rules = ("--rule", ".*layers.1.*=dense", "--rule", ".*up_proj.*=dense")
    options = ("--method", "sparsegpt", "--calibrate", tokens, *rules)
    done = run("prune", folder, "-o", tmp_path / "out", *options, "--verbose")
    assert done.code == 0
    # The stages after the last that has something to prune are not run.
    assert "calibrate 2/2 model.layers.0\n" in done.err
    note = "note: from model.layers.0 on: 6 of 6 leaves have fewer than four tokens"
    assert done.err.count("note:") == done.err.count(note) == 1
    weights = load(folder)
    for name, weight in load(tmp_path / "out").items():
        if "layers.0" not in name or weight.ndim == 1 or "up_proj" in name:
            np.testing.assert_array_equal(weight, weights[name], name)
        else:
            assert ((weight != 0).reshape(-1, 4).sum(1) <= 2).all()


def test_sequences_are_chosen_by_the_seed(run, folder, tokens):
    command = ("prune", folder, "--dry-run", "--method", "wanda", "--calibrate", tokens)
    report = run(*command, "--samples", "5", "--length", "8", "--seed", "3", "--json")
    assert report.json["calibration"]["tokens"] == 40
    assert report.json["calibration"]["seed"] == 3
    done = run(*command, "--samples", "99")
    assert done.err == (
        f"note: {tokens} has only 32 sequences of 12 tokens, not 99: all are used\n"
    )
    assert "wanda would be calibrated on 384 tokens" in done.out


def test_an_interrupt_leaves_nothing(run, folder, tokens, tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("jaxsparse.cli.calibrate.calibration_report", interrupted)
    options = ("--method", "wanda", "--calibrate", tokens)
    assert run("prune", folder, "-o", tmp_path / "out", *options).code == 130
    assert {x.name for x in tmp_path.iterdir()} == {"model", "tokens.npz"}


def test_a_text_is_read_by_the_tokenizer_of_the_model(run, folder, tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    words = {f"w{i}": i for i in range(VOCAB)}
    model = tokenizers.models.WordLevel(words, unk_token="w0")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.enable_truncation(7)
    tokenizer.save(str(folder / "tokenizer.json"))
    text, ids = tmp_path / "text.txt", random_tokens(5, 12).ravel()
    text.write_text(" ".join(f"w{i}" for i in ids))

    sequences = ids[:56].reshape(7, 8)  # and four tokens more
    model = language_model(LLAMA, load(folder))
    chosen = {}
    for seed in (0, 0, 1):
        tokens = load_tokens(Data(text, 4, 8, seed), folder, model)
        rows = [np.flatnonzero((sequences == x).all(1)) for x in tokens.ids]
        assert (tokens.ids.shape, tokens.seed) == ((4, 8), seed)
        indices = [int(i) for (i,) in rows]
        assert chosen.setdefault(seed, indices) == indices == sorted(set(indices))
    assert chosen[0] != chosen[1]

    options = ("--dry-run", "--method", "wanda", "--calibrate", text)
    done = run("prune", folder, *options, "--length", "8")
    assert "wanda would be calibrated on 56 tokens: 7 x 8 of" in done.out
    assert f"note: {text} has only 7 sequences of 8 tokens, not 128" in done.err
    done = run("prune", folder, *options)  # of 512 tokens, or of the model's positions
    assert "has 60 tokens, too few for one sequence of 64: give a longer" in done.err
    text.write_bytes(b"\xff")
    assert (
        "is neither a text in UTF-8 nor an .npz" in run("prune", folder, *options).err
    )
    text.write_text("w1")
    (folder / "tokenizer.json").write_text("{}")
    assert "is not a tokenizer: " in run("prune", folder, *options).err
    (folder / "tokenizer.json").unlink()
    assert "there is no" in (error := run("prune", folder, *options).err)
    assert "token ids in an .npz" in error
