import os
from collections import defaultdict
from itertools import chain
from random import Random

import pytest
from hypothesis import settings

from tests import xla_flags


def pytest_addoption(parser):
    parser.addoption("--sweeps", action="store_true", help="also the sweeps")
    parser.addoption("--full", action="store_true", help="also the long variants")


def pytest_configure(config):
    """Says how Hypothesis draws, see `tests/thorough.py`, and how XLA compiles."""
    sweeps = _runs_sweeps(config)
    for name in ("quick", "sweeps", "full"):
        settings.register_profile(name, deadline=None, derandomize=True)
    full = "full" if config.getoption("--full") else "sweeps"
    settings.load_profile(full if sweeps else "quick")
    if not sweeps:
        os.environ.setdefault("XLA_FLAGS", xla_flags.QUICK)
    # The cores are busy with other tests: threads of LAPACK would wait for each other.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def pytest_collection_modifyitems(config, items):
    """Of a sweep only the cases remain that it keeps, or with `--sweeps` some."""
    if not _runs_sweeps(config):
        left_out = [item for item in items if not _is_quick(item)]
    elif not config.getoption("--full"):
        left_out = [item for item in items if _is_long(item)]
        if config.getoption("--sweeps"):
            left_out += _half_of_many(item for item in items if not _is_long(item))
    else:
        return
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


def _half_of_many(items):
    """Half of the cases of each test with more than two, drawn by its name.

    Without `--sweeps` all cases of a quick test run; with it they run a second time, on
    another Python. Sweeps with `whole=True` run all: they have little in common.
    """
    cases = defaultdict(list)
    for item in items:
        if not _is_whole(item):
            cases[item.nodeid.partition("[")[0]].append(item)
    many = {name: some for name, some in cases.items() if len(some) > 2}
    draws = (Random(name).sample(some, len(some) // 2) for name, some in many.items())
    return list(chain.from_iterable(draws))


def _runs_sweeps(config):
    return config.getoption("--sweeps") or config.getoption("markexpr") == "gpu"


def _is_long(item):
    sweep = item.get_closest_marker("sweep")
    long = () if sweep is None else sweep.kwargs.get("full", ())
    return any(case in item.name for case in long)


def _is_whole(item):
    sweep = item.get_closest_marker("sweep")
    return sweep is not None and sweep.kwargs.get("whole", False)


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
def without_annotations(monkeypatch):
    """As users run it: in the tests annotations are checked before anything else."""
    import jaxtyping

    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


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
    from jaxsparse.kernels import cuda_target

    if cuda_target.compute_capability() != (9, 0):
        monkeypatch.setattr(cuda_target, "unavailable", lambda _: "")
