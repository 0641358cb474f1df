"""What cannot be calibrated is refused by name, before anything is computed."""

import json
import sys

import numpy as np
import pytest
import safetensors.numpy

from tests.cli.numpy_decoders import (
    LLAMA,
    random_tokens,
    random_weights,
    write_folder,
)


WANDA = ("--method", "wanda", "--calibrate")


@pytest.fixture
def tokens(tmp_path):
    np.savez(tmp_path / "tokens.npz", tokens=random_tokens())
    return tmp_path / "tokens.npz"


def refuse(run, folder, *options):
    """Runs a command that must fail, and returns its only line."""
    before = {x.name for x in folder.parent.iterdir()}
    done = run("prune", folder, "-o", folder.parent / "out", *options)
    assert (done.code, done.out) == (2, "")
    assert {x.name for x in folder.parent.iterdir()} == before
    assert done.err.count("\n") == 1
    return done.err


def test_an_architecture_that_is_not_there(run, tokens, tmp_path):
    weights = random_weights(LLAMA)
    folder = write_folder(tmp_path / "model", LLAMA | {"model_type": "t5"}, weights)
    assert refuse(run, folder, *WANDA, tokens) == (
        f"error: {folder}: config.json: model_type is 't5': only gpt2, llama, mistral, "
        "qwen2, qwen3 can be calibrated; --method magnitude runs no model\n"
    )


def test_tensors_that_cannot_be_calibrated(run, tokens, tmp_path):
    weights = random_weights(LLAMA)
    folder = write_folder(tmp_path / "model", LLAMA, weights)
    embedding = ("--rule", "model.embed_tokens.weight=2:4@1")
    line = refuse(run, folder, *WANDA, tokens, *embedding)
    assert "'model.embed_tokens.weight' of shape (32, 32) is planned" in line
    assert "as an embedding it has no inputs" in line
    line = refuse(run, folder, *WANDA, tokens, "--rule", ".*o_proj.*=2:4@0")
    assert "is planned '2:4 along axis 0', but its inputs are along axis 1" in line
    name = "model.layers.1.mlp.up_proj.weight"
    weights[name] = weights[name].astype(np.int8)
    path = folder / "model.safetensors"
    safetensors.numpy.save_file(weights, path, metadata={"format": "pt"})
    line = refuse(run, folder, *WANDA, tokens)
    assert f"tensor {name!r} has dtype int8: only floats" in line


def test_options_that_miss_each_other(run, tokens, tmp_path):
    folder = write_folder(tmp_path / "model", LLAMA, random_weights(LLAMA))
    for method in ("wanda", "sparsegpt"):
        line = refuse(run, folder, "--method", method)
        assert f"--method {method} needs calibration data: give --calibrate" in line
    for option, value in (
        ("--calibrate", tokens),
        ("--samples", 3),
        ("--length", 3),
        ("--seed", 0),
    ):
        line = refuse(run, folder, option, value)
        assert f"{option} has no effect on --method magnitude: give --method" in line
    path = folder / "model.safetensors"
    done = run("prune", path, "-o", tmp_path / "o.safetensors", *WANDA, tokens)
    assert (done.code, "must be the folder of a Hugging Face" in done.err) == (2, True)
    (folder / "config.json").unlink()
    assert "config.json" in refuse(run, folder, *WANDA, tokens)
    (folder / "config.json").write_text("{")
    assert "config.json: it is not valid JSON" in refuse(run, folder, *WANDA, tokens)


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        (
            {"tokens": np.full((2, 9), 48)},
            "the token id 48 at position 0 of sequence 0",
        ),
        ({"tokens": np.full((2, 9), -1)}, "the model has the ids 0 to 31"),
        ({"tokens": np.ones((2, 65), int)}, "give --length 64"),
        ({"tokens": np.ones((2, 9))}, "shape (2, 9) and dtype float64: they must be"),
        ({"tokens": np.ones(9, int)}, "must be integers of shape (samples, length)"),
        ({"tokens": np.ones((0, 9), int)}, "shape (0, 9)"),
        ({"tokens": np.array([[1], [1, 2]], object)}, "is not a file of numbers: "),
        ({"ids": np.ones((2, 9), int)}, "has no array 'tokens', but ids: save it with"),
    ],
)
def test_token_ids_that_do_not_fit(run, tmp_path, ids, words):
    folder = write_folder(tmp_path / "model", LLAMA, random_weights(LLAMA))
    path = tmp_path / "tokens.npz"
    np.savez(path, **ids)
    assert words in refuse(run, folder, *WANDA, path)


def test_files_that_are_no_token_ids(run, tokens, tmp_path):
    folder = write_folder(tmp_path / "model", LLAMA, random_weights(LLAMA))
    assert "fewer than --length 13" in refuse(
        run, folder, *WANDA, tokens, "--length", 13
    )
    line = refuse(run, folder, *WANDA, tokens, "--length", 65)
    assert "--length 65 is more than the 64 positions of the model" in line
    tokens.write_bytes(b"nothing")
    assert f"{tokens} is not a file of numbers" in refuse(run, folder, *WANDA, tokens)
    tokens.unlink()
    assert "No such file" in refuse(run, folder, *WANDA, tokens)


def test_a_text_without_tokenizers_says_what_to_install(run, tmp_path, monkeypatch):
    folder = write_folder(tmp_path / "model", LLAMA, random_weights(LLAMA))
    (tmp_path / "a.txt").write_text("a")
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    line = refuse(run, folder, *WANDA, tmp_path / "a.txt")
    assert "needs tokenizers: python -m pip install tokenizers; or give token" in line


def test_unknown_fields_that_turn_nothing_on_are_accepted(run, tokens, tmp_path):
    config = LLAMA | {"use_mrope": False, "quantization_config": None}
    folder = write_folder(tmp_path / "model", config, random_weights(config))
    assert run("prune", folder, "--dry-run", *WANDA, tokens).code == 0
    assert json.loads((folder / "config.json").read_text()) == config
