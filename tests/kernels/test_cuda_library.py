"""The CUDA library: built once for all processes; errors name the remedy."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from jaxsparse.kernels import cuda_library


# A slow compiler that writes its result piece by piece.
NVCC = """#!{python}
import sys, time
if "--version" in sys.argv:
    sys.exit(print("nvcc {version}"))
if "{fails}":
    sys.exit("error: {fails}")
import shutil
with open("{log}", "a") as log:
    log.write("built\\n")
library = open("{library}", "rb").read()
with open(sys.argv[-1], "wb") as file:
    for start in range(0, len(library), len(library) // 4):
        file.write(library[start : start + len(library) // 4])
        file.flush()
        time.sleep(0.2)
"""


@pytest.fixture
def compiler(tmp_path, monkeypatch):
    """Puts a compiler in PATH that copies an extension module of Python."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.setattr(cuda_library, "find_spec", lambda _: None)
    import _ctypes

    def install(version="1.0", fails="", library=_ctypes.__file__):
        nvcc = tmp_path / "bin" / "nvcc"
        nvcc.parent.mkdir(exist_ok=True)
        log = tmp_path / "log"
        names = {"python": sys.executable, "log": log, "library": library}
        nvcc.write_text(NVCC.format(version=version, fails=fails, **names))
        nvcc.chmod(0o755)
        monkeypatch.setenv("PATH", str(nvcc.parent))
        return tmp_path

    return install


def built(folder: Path) -> list[Path]:
    return sorted((folder / "cache" / "jaxsparse").iterdir())


@pytest.mark.sweep
def test_it_is_built_once_for_each_compiler(compiler):
    folder = compiler()
    cuda_library.load("nm_matmul")
    cuda_library.load("nm_matmul")
    first = built(folder)
    assert len(first) == 1
    assert (folder / "log").read_text() == "built\n"
    compiler(version="2.0")
    cuda_library.load("nm_matmul")
    assert len(built(folder)) == 2
    assert set(first) < set(built(folder))


@pytest.mark.sweep
def test_processes_that_build_at_once_both_get_a_whole_library(compiler):
    folder = compiler()
    code = (
        "from jaxsparse.kernels.cuda_library import load\n"
        "print(load('nm_matmul')._name)"
    )
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    names = {run.communicate(timeout=60)[0].strip() for run in runs}
    assert [run.returncode for run in runs] == [0, 0]
    assert names == {str(path) for path in built(folder)}  # one, and nothing beside it


def test_without_a_compiler_the_error_says_what_to_install(compiler, monkeypatch):
    folder = compiler()
    monkeypatch.setenv("PATH", str(folder))
    with pytest.raises(cuda_library.BuildError, match=r"pip install .jax\[cuda13\]"):
        cuda_library.load("nm_matmul")


def test_what_a_compiler_says_is_in_the_error_and_nothing_is_left(compiler):
    folder = compiler(fails="host compiler is too new")
    with pytest.raises(cuda_library.BuildError, match="host compiler is too new"):
        cuda_library.load("nm_matmul")
    assert built(folder) == []


def test_a_cache_that_cannot_be_written_is_named(compiler, monkeypatch):
    folder = compiler()
    (folder / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "file"))
    with pytest.raises(cuda_library.BuildError, match="XDG_CACHE_HOME"):
        cuda_library.load("nm_matmul")


def test_a_library_that_does_not_load_is_named(compiler, tmp_path):
    (tmp_path / "text").write_text("for another machine")
    compiler(library=tmp_path / "text")
    with pytest.raises(
        cuda_library.BuildError, match=r"nvcc built cannot be loaded: .*"
    ):
        cuda_library.load("nm_matmul")


def test_the_next_compiler_is_tried(compiler, monkeypatch):
    folder = compiler()
    broken = folder / "broken" / "nvcc"
    broken.parent.mkdir()
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", f"{broken.parent}{os.pathsep}{folder / 'bin'}")
    cuda_library.load("nm_matmul")
    assert len(built(folder)) == 1
