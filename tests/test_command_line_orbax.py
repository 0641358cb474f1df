"""The command line on checkpoints of Orbax."""

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from tests.command import flax_params, pruned, runner, weights


@pytest.fixture
def run(capsys, monkeypatch):
    return runner(capsys, monkeypatch)


def test_checkpoints_of_orbax(run, tmp_path):
    tree = {"params": flax_params(), "step": 3, "none": None}
    tree["opt_state"] = {"mu": flax_params()}
    model, output = tmp_path / "model", tmp_path / "out"
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(model, tree)
    done = run("prune", model, "-o", output)
    assert done.code == 0
    with ocp.StandardCheckpointer() as checkpointer:
        found = checkpointer.restore(output)
    kernel = np.asarray(tree["params"]["up"]["kernel"])
    expected = jax.tree.map(lambda x: x, tree)
    expected["params"]["up"]["kernel"] = pruned(kernel, 2, 4, 0)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert {x.name for x in tmp_path.iterdir()} == {"model", "out"}

    assert run("check", output).code == 0
    leaves = {x["leaf"]: x for x in run("inspect", output, "--json").told["leaves"]}
    assert leaves["params/up/kernel"]["pattern"] == "2:4"
    assert leaves["params/layers/0"]["dtype"] == "bfloat16"
    assert run("prune", model, "-o", output).code == 2
    assert run("prune", model, "-o", output, "--force", "--pattern", "1:4").code == 0
    assert run("check", output, "--pattern", "1:4").code == 0
    assert {x.name for x in tmp_path.iterdir()} == {"model", "out"}
    done = run("inspect", tmp_path)
    assert "no Orbax checkpoint: give one of its folders ['model', 'out']" in done.err
    (tmp_path / "mine").mkdir()
    done = run("prune", model, "-o", tmp_path / "mine", "--force")
    assert (done.code, (tmp_path / "mine").is_dir()) == (2, True)
    (output / "_METADATA").write_text("{")
    done = run("inspect", output)
    assert (done.code, len(done.err.splitlines())) == (2, 1)


def test_checkpoints_of_zarr_3_and_what_an_interrupt_leaves(run, tmp_path, monkeypatch):
    kernel = weights((256, 64))
    model, output = tmp_path / "model", tmp_path / "out"
    handler = ocp.PyTreeCheckpointHandler(use_ocdbt=True, use_zarr3=True)
    with ocp.Checkpointer(handler) as checkpointer:
        checkpointer.save(model, args=ocp.args.PyTreeSave({"up": {"kernel": kernel}}))
        assert run("prune", model, "-o", output).code == 0
        found = checkpointer.restore(output)["up"]["kernel"]
    np.testing.assert_array_equal(found, pruned(kernel, 2, 4, 0))
    size = lambda path: sum(x.stat().st_size for x in path.rglob("*") if x.is_file())
    assert size(output) < size(model)  # its zeros are compressed, and nothing is twice

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("jaxsparse.cli.prune.prune_weight", interrupted)
    assert run("prune", model, "-o", output, "--force").code == 130
    assert {x.name for x in tmp_path.iterdir()} == {"model", "out"}
    assert run("check", output).code == 0
