"""Folders that transformers wrote, pruned, and loaded by transformers again.

python -m pytest --full tests/cli/test_command_line_transformers.py
"""

import json

import numpy as np
import pytest
import safetensors.numpy

from tests.cli.command import pruned
from tests.cli.transformers_models import MODELS, save


pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture
def transformers(request):
    if not request.config.getoption("--full"):
        pytest.skip("with --full only")
    reason = "requires torch and transformers"
    pytest.importorskip("torch", reason=reason)
    return pytest.importorskip("transformers", reason=reason)


@pytest.fixture(params=[*MODELS])
def model(transformers, request, tmp_path):
    """The name of a model and its folder."""
    save(transformers, request.param, tmp_path / "model")
    return request.param, tmp_path / "model"


def tensors(folder):
    return {
        name: weight
        for file in folder.glob("*.safetensors")
        for name, weight in safetensors.numpy.load_file(file).items()
    }


def load(transformers, folder):
    """Returns the weights that were loaded, and which were not in the folder."""
    loaded, info = transformers.AutoModel.from_pretrained(
        folder, output_loading_info=True
    )
    missing = set(info["missing_keys"])
    state = {k: v for k, v in loaded.state_dict().items() if k not in missing}
    return state, missing


def test_a_pruned_folder_loads(run, transformers, model, tmp_path):
    name, folder = model
    output, by_hand = tmp_path / "out", tmp_path / "by_hand"
    report = run("prune", folder, "-o", output, "--json").json
    assert (report["output"], report["not_copied"]) == (str(output), [])
    sparse = {x["leaf"] for x in report["leaves"] if x["pattern"] is not None}
    assert len(sparse) == MODELS[name][2]
    assert {x.name for x in output.iterdir()} == {x.name for x in folder.iterdir()}
    config = (folder / "config.json").read_bytes()
    assert (output / "config.json").read_bytes() == config

    by_hand.mkdir()
    (by_hand / "config.json").write_bytes(config)
    expected = {
        name: pruned(weight, 2, 4, 1) if name in sparse else weight
        for name, weight in tensors(folder).items()
    }
    path = by_hand / "model.safetensors"
    safetensors.numpy.save_file(expected, path, metadata={"format": "pt"})
    state, missing = load(transformers, output)
    expected_state, expected_missing = load(transformers, by_hand)
    assert (state.keys(), missing) == (expected_state.keys(), expected_missing)
    assert all(x.equal(expected_state[k]) for k, x in state.items())
    zeros = sum((x == 0).sum().item() for x in state.values())
    dense = load(transformers, folder)[0]
    more = zeros - sum((x == 0).sum().item() for x in dense.values())
    assert more == sum(expected[name].size // 2 for name in sparse)
    assert run("check", output).code == 0


def test_a_permuted_folder_computes_the_same(run, transformers, tmp_path):
    torch = pytest.importorskip("torch")
    folder, output = tmp_path / "model", tmp_path / "out"
    save(transformers, "llama", folder)
    # Half of the hidden channels are off: in another order, 2:4 loses nothing.
    for path in folder.glob("*.safetensors"):
        weights = safetensors.numpy.load_file(path)
        for name, weight in weights.items():
            if "down_proj" in name:
                weight[:, :64] = 0
        safetensors.numpy.save_file(weights, path, metadata={"format": "pt"})
    dense = "--rule", r".*([qkvo]_proj|gate_proj|up_proj)\.weight=dense"
    assert run("prune", folder, "-o", output, "--permute", *dense).code == 0
    assert run("check", output, *dense).code == 0
    tokens = torch.arange(24).reshape(2, 12)
    before, after = (
        transformers.AutoModelForCausalLM.from_pretrained(x)(tokens).logits.detach()
        for x in (folder, output)
    )
    np.testing.assert_allclose(after, before, atol=1e-5 * before.abs().max().item())


def test_every_name_is_found_in_piped_output(run, model, tmp_path):
    _, folder = model
    output, names = tmp_path / "out", set(tensors(folder))
    for args in (
        ("inspect", folder),
        ("prune", folder, "-o", output),
        ("check", output),
        ("compare", folder, output),
    ):
        done = run(*args)
        assert (done.code, done.err) == (0, "")
        lines = done.out.splitlines()
        assert {x.partition("\t")[0] for x in lines if "\t" in x} == {
            "tensor",
            "total",
            *names,
        }
        for columns in (80, 120, 200):
            more = ("--force",) if args[0] == "prune" else ()
            lines = run(*args, *more, columns=columns).out.splitlines()
            assert max(map(len, lines)) <= columns


def test_a_file_of_torch_is_converted(run, transformers, tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "pytorch_model.bin"
    save(transformers, "bert", tmp_path)
    weights = tensors(tmp_path)
    state = {name: torch.from_numpy(x) for name, x in weights.items()}
    torch.save(state | {"tied.weight": next(iter(state.values()))}, path)
    _, *lines = run("inspect", path).err.splitlines()
    exec("\n".join(line.strip() for line in lines), {})
    result = safetensors.numpy.load_file(path.with_suffix(".safetensors"))
    assert result.keys() == weights.keys() | {"tied.weight"}
    for name, weight in weights.items():
        np.testing.assert_array_equal(result[name], weight)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == ["BertForMaskedLM"]
