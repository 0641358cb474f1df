import pytest
from hypothesis import settings


def pytest_addoption(parser):
    parser.addoption("--sweeps", action="store_true", help="also the sweeps")
    parser.addoption("--full", action="store_true", help="also the long variants")


def pytest_configure(config):
    """Says how many examples Hypothesis draws; see `tests/thorough.py`."""
    for name in ("quick", "sweeps"):
        settings.register_profile(name, deadline=None, derandomize=True)
    settings.load_profile("sweeps" if config.getoption("--sweeps") else "quick")


def pytest_collection_modifyitems(config, items):
    """Without `--sweeps`, of a sweep only the cases remain that it keeps."""
    if config.getoption("--sweeps"):
        return
    left_out = [item for item in items if not _is_quick(item)]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


def _is_quick(item):
    sweep = item.get_closest_marker("sweep")
    kept = () if sweep is None else sweep.kwargs.get("keep", ())
    return sweep is None or any(case in item.name for case in kept)


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
    """The kernel itself on a Hopper GPU; elsewhere its way, with XLA in its stead."""
    from jaxsparse._compressed import cuda_matmul

    if cuda_matmul.compute_capability() != (9, 0):
        monkeypatch.setattr(cuda_matmul, "_unavailable", lambda: "")
