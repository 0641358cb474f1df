import pytest

from jaxsparse._compressed import cuda_matmul


def pytest_addoption(parser):
    parser.addoption("--full", action="store_true", help="also the long variants")


@pytest.fixture
def run(capsys, monkeypatch):
    """Runs a command line in this process."""
    from tests.cli.command import runner

    return runner(capsys, monkeypatch)


@pytest.fixture
def model(tmp_path):
    """A file in PyTorch's layout."""
    from safetensors.numpy import save_file

    from tests.cli.command import torch_state

    path = tmp_path / "model.safetensors"
    save_file(torch_state(), path, metadata={"format": "pt"})
    return path


@pytest.fixture
def available(monkeypatch):
    """The kernel's way, of which XLA does the last step where there is no Hopper."""

    monkeypatch.setattr(cuda_matmul, "_unavailable", lambda: "")
