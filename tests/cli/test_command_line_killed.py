"""A `prune` that is killed or interrupted: OUT is absent or complete."""

import signal

import numpy as np
import pytest

from tests.cli.command import assert_complete, kill_prune, write_matrices


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


@pytest.mark.skipif(
    signal.getsignal(signal.SIGINT) == signal.SIG_IGN,
    reason="interrupts are ignored, as by what a shell runs in the background",
)
def test_an_interrupt_leaves_nothing(tmp_path, model):
    output = tmp_path / "out.safetensors"
    assert kill_prune(model, output, 3, how=signal.SIGINT) == 130
    assert not list(tmp_path.iterdir())
