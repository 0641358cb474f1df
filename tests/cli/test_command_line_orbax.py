"""The command line on Orbax checkpoints."""

import stat
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from tests.cli.command import flax_params, pruned, weights


def test_checkpoints_of_orbax(run, tmp_path):
    tree = {"params": flax_params(), "step": 3, "none": None}
    tree["opt_state"] = {"mu": flax_params()}
    model, output = tmp_path / "model", tmp_path / "out"
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(model, tree)
    done = run("prune", model, "-o", output)
    assert done.code == 0
    with ocp.StandardCheckpointer() as checkpointer:
        result = checkpointer.restore(output)
    kernel = np.asarray(tree["params"]["up"]["kernel"])
    expected = jax.tree.map(lambda x: x, tree)
    expected["params"]["up"]["kernel"] = pruned(kernel, 2, 4, 0)
    jax.tree.map(np.testing.assert_array_equal, result, expected)
    assert {x.name for x in tmp_path.iterdir()} == {"model", "out"}

    assert run("check", output).code == 0
    leaves = {x["leaf"]: x for x in run("inspect", output, "--json").json["leaves"]}
    assert leaves["params/up/kernel"]["pattern"] == "2:4"
    assert leaves["params/layers/0"]["dtype"] == "bfloat16"
    assert run("prune", model, "-o", output).code == 2
    assert run("prune", model, "-o", output, "--force", "--pattern", "1:4").code == 0
    assert run("check", output, "--pattern", "1:4").code == 0
    assert {x.name for x in tmp_path.iterdir()} == {"model", "out"}
    done = run("inspect", tmp_path)
    assert (
        "not an Orbax checkpoint: give one of its folders ['model', 'out']" in done.err
    )
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
        result = checkpointer.restore(output)["up"]["kernel"]
    np.testing.assert_array_equal(result, pruned(kernel, 2, 4, 0))
    size = lambda path: sum(x.stat().st_size for x in path.rglob("*") if x.is_file())
    assert size(output) < size(
        model
    )  # zeros are compressed, and nothing is stored twice

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("jaxsparse.cli.prune.prune_weight", interrupted)
    assert run("prune", model, "-o", output, "--force").code == 130
    assert {x.name for x in tmp_path.iterdir()} == {"model", "out"}
    assert run("check", output).code == 0


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "model"
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, {"up": {"kernel": weights((64, 32))}})
    return path


def names(folder):
    return {x.name for x in folder.iterdir()}


def test_two_arrays_of_one_path_are_refused(run, tmp_path):
    kernel = {"kernel": weights((64, 32))}
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "model", {"a/b": kernel, "a": {"b": kernel}})
    done = run("inspect", tmp_path / "model")
    assert (done.code, len(done.err.splitlines())) == (2, 1)
    assert "_METADATA: two arrays have the path 'a/b/kernel'" in done.err


def test_neither_folder_may_be_inside_the_other(run, model):
    inner = model / "inner"
    done = run("prune", model, "-o", inner)
    words = f"{inner} is inside the input {model}, or contains it: give another output"
    assert (done.code, words in done.err, inner.exists()) == (2, True, False)
    model.rename(model.with_name("moved")).rename(inner := model.with_name("inner"))
    (outer := model).mkdir()
    (outer / "_METADATA").touch()
    inner.rename(outer / "inner")
    assert run("prune", outer / "inner", "-o", outer, "--force").code == 2
    assert names(outer) == {"_METADATA", "inner"}


def test_a_link_to_a_folder_stays_a_link(run, model, tmp_path):
    link, target = tmp_path / "link", tmp_path / "target"
    link.symlink_to("target")
    for options in ((), ("--force",)):  # the link is dangling first
        assert run("prune", model, "-o", link, *options).code == 0
        assert names(tmp_path) == {"model", "link", "target"}
        assert link.readlink() == Path("target")
        assert run("check", target).code == 0


def test_a_read_only_checkpoint_becomes_one_that_can_be_written(run, model, tmp_path):
    (model / "more").mkdir()
    for folder in (model / "more", model):
        folder.chmod(0o555)
    output = tmp_path / "out"
    assert run("prune", model, "-o", output).code == 0
    for folder in (output / "more", output):
        assert folder.stat().st_mode & stat.S_IWUSR
    assert run("prune", model, "-o", output, "--force").code == 0
    assert names(tmp_path) == {"model", "out"}


def test_a_folder_that_cannot_be_replaced_remains(run, model, tmp_path, monkeypatch):
    output = tmp_path / "out"
    assert run("prune", model, "-o", output, "--pattern", "1:4").code == 0
    rename, calls = Path.rename, []

    def second_fails(self, target):
        calls.append(self)
        if len(calls) == 2:
            raise OSError("no")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", second_fails)
    assert run("prune", model, "-o", output, "--force").code == 2
    assert names(tmp_path) == {"model", "out"}
    assert run("check", output, "--pattern", "1:4").code == 0


def test_a_file_that_cannot_be_copied_is_named(run, model, tmp_path):
    (model / "notes").symlink_to("nowhere")
    done = run("prune", model, "-o", tmp_path / "out")
    assert (done.code, names(tmp_path)) == (2, {"model"})
    (line,) = done.err.splitlines()
    assert line.startswith(f"error: {model / 'notes'}: [Errno 2] No such file")


@pytest.mark.parametrize("zarr3", [False, True])
def test_a_checkpoint_of_one_array(run, tmp_path, zarr3):
    kernel = weights((64, 32))
    model, output = tmp_path / "model", tmp_path / "out"
    handler = ocp.PyTreeCheckpointHandler(use_ocdbt=True, use_zarr3=zarr3)
    options = ("--layout", "flax", "--rule", ".*=2:4@0")
    with ocp.Checkpointer(handler) as checkpointer:
        checkpointer.save(model, args=ocp.args.PyTreeSave(kernel))
        assert run("inspect", model, "--json").json["leaves"][0]["leaf"] == ""
        assert run("prune", model, "-o", output, *options).code == 0
        result = checkpointer.restore(output)
    np.testing.assert_array_equal(result, pruned(kernel, 2, 4, 0))
    assert run("check", output, *options).code == 0


@pytest.mark.parametrize("target", ["elsewhere", ".", "/", "model"])
def test_a_folder_that_links_elsewhere_is_not_followed(run, tmp_path, model, target):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "secret").write_text("secret")
    (model / "more").symlink_to(tmp_path / target)
    done = run("prune", model, "-o", tmp_path / "out")
    assert done.code == 2
    assert f"{model / 'more'}: it is a link to the folder" in done.err
    assert {x.name for x in tmp_path.iterdir()} == {"model", "elsewhere"}
    (model / "more").unlink()
    (model / "more").symlink_to(tmp_path / "elsewhere" / "secret")  # as in a cache
    assert run("prune", model, "-o", tmp_path / "out").code == 0
    assert (tmp_path / "out" / "more").read_text() == "secret"
