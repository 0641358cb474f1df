"""Folders whose MLPs lose hidden channels, against forward passes in NumPy."""

import json

import numpy as np
import pytest
import safetensors.numpy

from tests.cli.numpy_decoders import (
    GPT2,
    LAYERS,
    LLAMA,
    WIDTH,
    logits,
    random_tokens,
    random_weights,
    stages,
    write_folder,
)
from tests.shrinking.by_hand import ridge, second_moment


#: The configuration of each model, the field of its size, and its MLP: the prefix, the
#: layers that give hidden channels, the one that takes them in, and its axis of them.
MODELS = {
    "llama": (
        LLAMA,
        "intermediate_size",
        "model.layers.{}.mlp.",
        ("gate_proj", "up_proj"),
        "down_proj",
        1,
    ),
    "gpt2": (GPT2, "n_inner", "transformer.h.{}.mlp.", ("c_fc",), "c_proj", 0),
}


def load(folder):
    return {
        name: weight
        for path in folder.glob("*.safetensors")
        for name, weight in safetensors.numpy.load_file(path).items()
    }


def relative(sums):
    return sums / sums.mean()


def shrunk_by_magnitude(name, weights, size):
    """The weights of the channels with the largest norms, in NumPy."""
    _, _, prefix, first, last, axis = MODELS[name]
    result = dict(weights)
    for layer in range(LAYERS):
        root = prefix.format(layer)
        down = f"{root}{last}.weight"
        norms = relative((weights[down].astype(float) ** 2).sum(1 - axis))
        for key in first:
            square = weights[f"{root}{key}.weight"].astype(float) ** 2
            norms = norms + relative(square.sum(axis))
        kept = np.sort(np.argsort(-norms)[:size])
        result[down] = weights[down].take(kept, axis)
        for key in first:
            result[f"{root}{key}.weight"] = weights[f"{root}{key}.weight"].take(
                kept, 1 - axis
            )
            if f"{root}{key}.bias" in weights:
                result[f"{root}{key}.bias"] = weights[f"{root}{key}.bias"][kept]
    return result


@pytest.mark.sweep(keep=["llama"])
@pytest.mark.parametrize("name", MODELS)
def test_each_layer_keeps_its_largest_channels(run, tmp_path, name):
    config, field = MODELS[name][:2]
    weights = random_weights(config)
    folder = write_folder(tmp_path / "model", config, weights)
    (folder / "tokenizer.json").write_text("{}")
    output = tmp_path / "out"
    done = run("shrink", folder, "-o", output, "--sparsity", "0.25")
    assert (done.code, done.err) == (0, "")
    expected = shrunk_by_magnitude(name, weights, 24)
    result = load(output)
    assert result.keys() == expected.keys()
    for key, weight in expected.items():
        np.testing.assert_array_equal(result[key], weight)
    new_config = json.loads((output / "config.json").read_text())
    assert new_config == {**config, field: 24}
    assert (output / "tokenizer.json").read_text() == "{}"
    assert f"{LAYERS} MLPs keep 24 of {WIDTH} hidden channels" in done.out
    assert done.out.endswith(f"wrote {output}\n")


@pytest.mark.sweep
def test_a_calibrated_model_is_refitted_in_order(run, tmp_path):
    weights, tokens = random_weights(LLAMA), random_tokens()
    folder = write_folder(tmp_path / "model", LLAMA, weights)
    np.savez(tmp_path / "tokens.npz", tokens=tokens)
    options = ("--calibrate", tmp_path / "tokens.npz")
    done = run("shrink", folder, "-o", tmp_path / "out", *options)
    assert (done.code, done.err) == (0, "")
    assert "refitted on 384 tokens" in done.out

    expected = {name: weight.astype(float) for name, weight in weights.items()}
    x = tokens
    for number, fn in enumerate(stages(LLAMA)):
        inputs = {}
        y = fn(expected, x, inputs.__setitem__)
        if 0 < number <= LAYERS:
            root = f"model.layers.{number - 1}.mlp."
            hidden = inputs[f"{root}down_proj.weight"].reshape(-1, WIDTH)
            down = expected[f"{root}down_proj.weight"].T
            energy = (hidden**2).mean(0) * (down**2).sum(1)
            kept = np.sort(np.argsort(-energy)[: WIDTH // 2])
            fitted = ridge(down, second_moment(hidden), kept, 0.1)
            expected[f"{root}down_proj.weight"] = fitted.T
            for key in ("gate_proj", "up_proj"):
                weight = expected[f"{root}{key}.weight"]
                expected[f"{root}{key}.weight"] = weight[kept]
            y = fn(expected, x, lambda *_: None)
        x = y
    result = load(tmp_path / "out")
    for name, weight in expected.items():
        np.testing.assert_allclose(result[name], weight, rtol=1e-3, atol=1e-4)
    magnitude = shrunk_by_magnitude("llama", weights, WIDTH // 2)
    dense = logits(LLAMA, weights, tokens)
    error = lambda weights: np.linalg.norm(logits(LLAMA, weights, tokens) - dense)
    assert error(result) < 0.7 * error(magnitude)


@pytest.mark.sweep
def test_the_index_of_several_files_follows_the_sizes(run, tmp_path):
    weights = random_weights(LLAMA)
    folder = write_folder(tmp_path / "model", LLAMA, weights)
    (folder / "model.safetensors").unlink()
    names, files = sorted(weights), {}
    for i, part in enumerate((names[::2], names[1::2]), 1):
        file = f"model-{i:05}-of-00002.safetensors"
        safetensors.numpy.save_file({k: weights[k] for k in part}, folder / file)
        files |= dict.fromkeys(part, file)
    index = {
        "metadata": {"total_size": sum(x.nbytes for x in weights.values())},
        "weight_map": files,
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert run("shrink", folder, "-o", tmp_path / "out").code == 0
    result = load(tmp_path / "out")
    new = json.loads((tmp_path / "out/model.safetensors.index.json").read_text())
    assert new["weight_map"] == files
    assert new["metadata"]["total_size"] == sum(x.nbytes for x in result.values())
    expected = shrunk_by_magnitude("llama", weights, WIDTH // 2)
    assert {k: x.shape for k, x in result.items()} == {
        k: x.shape for k, x in expected.items()
    }


@pytest.mark.sweep
def test_bert_keeps_its_attention(run, tmp_path):
    rng = np.random.default_rng(0)
    shapes = {
        "encoder.layer.0.attention.output.dense.weight": (16, 16),
        "encoder.layer.0.intermediate.dense.weight": (64, 16),
        "encoder.layer.0.intermediate.dense.bias": (64,),
        "encoder.layer.0.output.dense.weight": (16, 64),
        "encoder.layer.0.output.dense.bias": (16,),
    }
    weights = {k: rng.normal(size=s).astype(np.float16) for k, s in shapes.items()}
    config = {"model_type": "bert", "intermediate_size": 64}
    folder = write_folder(tmp_path / "model", config, weights)
    options = ("--dry-run", "--json", "--sparsity", "0.5")
    report = run("shrink", folder, *options).json
    assert (report["size"], report["new_size"], report["output"]) == (64, 32, None)
    assert {x["leaf"]: x["new_shape"] for x in report["leaves"]} == {
        "encoder.layer.0.intermediate.dense.weight": [32, 16],
        "encoder.layer.0.intermediate.dense.bias": [32],
        "encoder.layer.0.output.dense.weight": [16, 32],
    }
    assert run("shrink", folder, "-o", tmp_path / "out").code == 0
    result = load(tmp_path / "out")
    assert result["encoder.layer.0.intermediate.dense.bias"].shape == (32,)
    kept = "encoder.layer.0.attention.output.dense.weight"
    np.testing.assert_array_equal(result[kept], weights[kept])


@pytest.mark.parametrize(
    ("config", "options", "words"),
    [
        ({}, ("--sparsity", "1"), "from 0 to less than 1"),
        ({}, ("--multiple-of", "64"), "all channels would stay"),
        ({"intermediate_size": 40}, (), "intermediate_size is 40"),
        ({}, ("--seed", "1"), "need --calibrate"),
    ],
)
def test_what_does_not_fit_is_refused(run, tmp_path, config, options, words):
    folder = write_folder(tmp_path / "model", LLAMA | config, random_weights(LLAMA))
    done = run("shrink", folder, "-o", tmp_path / "out", *options)
    assert (done.code, words in done.err) == (2, True), done.err
    assert not (tmp_path / "out").exists()


def test_other_names_are_refused(run, tmp_path):
    weights = {"up.weight": np.ones((16, 16), np.float32)}
    folder = write_folder(tmp_path / "model", LLAMA, weights)
    done = run("shrink", folder, "-o", tmp_path / "out")
    assert (done.code, "no tensors are named like the MLPs" in done.err) == (2, True)
    done = run("shrink", folder / "model.safetensors", "--dry-run")
    assert (done.code, "must be the folder of a model" in done.err) == (2, True)
