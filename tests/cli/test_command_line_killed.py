"""A `prune` that is killed or interrupted: OUT is absent or complete."""

import shutil
import signal
import subprocess

import numpy as np
import orbax.checkpoint as ocp
import pytest

import jaxsparse as js
from tests.cli.command import (
    assert_complete,
    command,
    kill_prune,
    pruned,
    weights,
    write_matrices,
)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """64 MB in eight tensors."""
    path = tmp_path_factory.mktemp("killed") / "model.safetensors"
    write_matrices(path, 8, 2048, 2048)
    return path


@pytest.mark.sweep
def test_killed_at_three_moments_and_then_not(model):
    output = model.with_name("out.safetensors")
    draw = np.random.default_rng()
    for after in (1, int(draw.integers(2, 8)), 8):
        wait = float(draw.uniform(0, 0.05))
        assert kill_prune(model, output, after, wait=wait) in (-signal.SIGKILL, 0)
        if output.exists():
            assert_complete(model, output)
    assert kill_prune(model, output, 0, how=signal.SIGCONT) == 0  # harmless
    assert_complete(model, output)
    # The temporary files of killed commands are removed.
    assert {x.name for x in model.parent.iterdir()} == {model.name, output.name}


@pytest.mark.sweep
@pytest.mark.skipif(
    signal.getsignal(signal.SIGINT) == signal.SIG_IGN,
    reason="interrupts are ignored, as by what a shell runs in the background",
)
def test_an_interrupt_leaves_nothing(tmp_path, model):
    output = tmp_path / "out.safetensors"
    assert kill_prune(model, output, 3, how=signal.SIGINT) == 130
    assert not list(tmp_path.iterdir())


@pytest.mark.sweep
@pytest.mark.skipif(
    signal.getsignal(signal.SIGHUP) == signal.SIG_IGN,
    reason="SIGHUP is ignored, as by nohup",
)
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_that_stops_the_command_leaves_nothing(tmp_path, model, how):
    output = tmp_path / "out.safetensors"
    assert kill_prune(model, output, 3, how=how) == 128 + how
    assert not list(tmp_path.iterdir())


@pytest.mark.sweep
def test_a_terminated_command_leaves_the_output_of_before(tmp_path):
    model, output = tmp_path / "model", tmp_path / "out"
    tree = {f"layers_{i}": {"kernel": np.ones((512, 512))} for i in range(6)}
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(model, tree)
    shutil.copytree(model, output)
    assert kill_prune(model, output, 3, how=signal.SIGTERM) == 143
    assert {x.name for x in tmp_path.iterdir()} == {"model", "out"}
    with ocp.StandardCheckpointer() as checkpointer:
        result = checkpointer.restore(output)
    assert all((x["kernel"] == 1).all() for x in result.values())


@pytest.mark.sweep
def test_two_commands_at_once(request, tmp_path):
    models = [tmp_path / name / "model.safetensors" for name in "ab"]
    for seed, model in enumerate(models):
        model.parent.mkdir()
        kernels = {f"{i}.up.weight": weights((64, 64), seed + i) for i in range(8)}
        js.save_sparse(model, kernels, max_file_bytes=1)  # each in eight files
    expected = [
        {name: pruned(np.asarray(x), 2, 4, 1) for name, x in js.open_tensors(a).items()}
        for a in models
    ]
    folder = tmp_path / "out"
    folder.mkdir()
    for _ in range(40 if request.config.getoption("--full") else 1):
        _prune_both(models, folder / "out.safetensors", expected)
        # The files of one of them, and the index.
        assert len(list(folder.iterdir())) == 9


def _prune_both(models, output, expected):
    running = [
        subprocess.Popen(command("prune", model, "-o", output, "--force"), **QUIET)
        for model in models
    ]
    assert [process.wait(120) for process in running] == [0, 0]
    result = js.load_sparse(output)
    assert any(
        all(np.array_equal(result[name], x) for name, x in tree.items())
        for tree in expected
    )


QUIET = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
