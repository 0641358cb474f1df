"""The CUDA sources of this folder as libraries: compiled on first use, then cached.

Each `.cu` file becomes a library. The compiler is the nvcc of `CUDA_HOME`, of `PATH`,
or of NVIDIA's wheels, which `jax[cuda13]` installs. The file name of the library
contains a hash of everything that it is built from. The finished file is renamed to
this name atomically, so several processes may build the library at the same time.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

import jax.ffi


_SOURCES = Path(__file__).parent
_FLAGS = (
    "--shared",
    "-O3",
    "-std=c++17",
    "-Xcompiler=-fPIC",
    "-gencode=arch=compute_90a,code=sm_90a",
    "-w",  # no warnings: XLA's headers cause some
)


class BuildError(RuntimeError):
    """The library cannot be built; the message states the cause and the remedy."""


def load(name: str) -> ctypes.CDLL:
    """Loads a library; if it is not cached, builds it first, in half a minute.

    Args:
      name: the name of its source file, without `.cu`.

    Raises:
      BuildError: there is no compiler, or none builds a library that can be loaded.
    """
    failure = BuildError(
        "no CUDA compiler: there is no nvcc in CUDA_HOME, in PATH or in NVIDIA's "
        'wheels; pip install "jax[cuda13]" brings one'
    )
    for nvcc in _compilers():
        try:
            return _load(nvcc, name)
        except BuildError as error:
            failure = error
        except OSError as error:
            failure = BuildError(
                f"the library that {nvcc} built cannot be loaded: {error}"
            )
    raise failure


def _load(nvcc: Path, name: str) -> ctypes.CDLL:
    headers = jax.ffi.include_dir()
    library = _cached(name, _fingerprint(nvcc, Path(headers)))
    if not library.exists():
        _build(nvcc, headers, name, library)
    return ctypes.CDLL(str(library))


def _compilers() -> list[Path]:
    wheels = find_spec("nvidia")
    roots = (wheels.submodule_search_locations or ()) if wheels else ()
    folders = [
        Path(os.environ.get("CUDA_HOME") or os.devnull) / "bin",
        *(Path(folder) for folder in os.get_exec_path()),
        *(folder for root in roots for folder in sorted(Path(root).glob("*/bin"))),
    ]
    compilers = [shutil.which("nvcc", path=str(folder)) for folder in folders]
    return [Path(nvcc) for nvcc in dict.fromkeys(compilers) if nvcc]


def _fingerprint(nvcc: Path, headers: Path) -> str:
    version = subprocess.run(
        [nvcc, "--version"], capture_output=True, text=True, check=False
    )
    # Machines of different kinds may share a cache.
    machine = [platform.machine(), *platform.libc_ver()]
    variables = ("NVCC_PREPEND_FLAGS", "NVCC_APPEND_FLAGS", "NVCC_CCBIN")
    environment = [os.environ.get(name, "") for name in variables]
    texts = [version.stdout, *_FLAGS, *machine, *environment]
    parts = [text.encode() for text in texts]
    files = [*_SOURCES.glob("*.cu*"), *headers.glob("xla/ffi/api/*.h")]
    parts += [file.name.encode() + file.read_bytes() for file in sorted(files)]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def _cached(name: str, fingerprint: str) -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "jaxsparse" / f"{name}-{fingerprint}.so"


def _build(nvcc: Path, headers: str, name: str, library: Path) -> None:
    try:
        library.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=library.parent))
    except OSError as error:
        raise BuildError(
            f"the cache folder {library.parent} is not writable ({error.strerror}): "
            "set XDG_CACHE_HOME to a writable folder"
        ) from error
    try:
        new = scratch / library.name
        source = _SOURCES / f"{name}.cu"
        # nvcc of a wheel does not search the folder of the wheel's static runtime.
        runtime = f"-L{nvcc.parent.parent / 'lib'}"
        run = subprocess.run(
            [nvcc, *_FLAGS, runtime, f"-I{headers}", source, "-o", new],
            capture_output=True,
            text=True,
            check=False,
        )
        if run.returncode:
            raise BuildError(f"{nvcc} failed:\n{(run.stderr or run.stdout)[-2000:]}")
        new.replace(library)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


if __name__ == "__main__":  # builds all of them ahead of their first use
    for source in sorted(_SOURCES.glob("*.cu")):
        sys.stdout.write(f"{load(source.stem)._name}\n")
