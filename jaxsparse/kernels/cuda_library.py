"""The CUDA sources of this folder as a library: compiled on first use, then cached.

The compiler is the nvcc of `CUDA_HOME`, of `PATH`, or of NVIDIA's wheels, which
`jax[cuda13]` brings. The name of a built library holds a hash of all that it is made
of, and it appears under this name in one step: processes that build it at once do not
disturb each other, and nothing is built twice.
"""

import ctypes
import hashlib
import os
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
    "-w",  # of XLA's headers
)


class BuildError(RuntimeError):
    """The library cannot be built here; the message says why and what would help."""


def load() -> ctypes.CDLL:
    """The library, built if it is not in the cache: about 20 seconds.

    Raises:
      BuildError: no compiler, or one that fails.
    """
    nvcc = _find_nvcc()
    headers = jax.ffi.include_dir()
    library = _cached(_fingerprint(nvcc, Path(headers)))
    if not library.exists():
        _build(nvcc, headers, library)
    return ctypes.CDLL(str(library))


def _find_nvcc() -> Path:
    wheels = find_spec("nvidia")
    places = [
        Path(os.environ.get("CUDA_HOME", os.devnull)) / "bin",
        *(Path(folder) for folder in os.get_exec_path()),
        *(bin for root in _locations(wheels) for bin in sorted(root.glob("*/bin"))),
    ]
    for place in places:
        if os.access(place / "nvcc", os.X_OK):
            return place / "nvcc"
    raise BuildError(
        "no CUDA compiler: there is no nvcc in CUDA_HOME, in PATH or in NVIDIA's "
        'wheels; pip install "jax[cuda13]" brings one'
    )


def _locations(wheels) -> list[Path]:
    return [Path(root) for root in wheels.submodule_search_locations] if wheels else []


def _fingerprint(nvcc: Path, headers: Path) -> str:
    version = subprocess.run(
        [nvcc, "--version"], capture_output=True, text=True, check=False
    )
    parts = [version.stdout.encode(), " ".join(_FLAGS).encode()]
    files = [*_SOURCES.glob("*.cu*"), *headers.glob("xla/ffi/api/*.h")]
    parts += [file.name.encode() + file.read_bytes() for file in sorted(files)]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def _cached(fingerprint: str) -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "jaxsparse" / f"nm_matmul-{fingerprint}.so"


def _build(nvcc: Path, headers: str, library: Path) -> None:
    try:
        library.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=library.parent))
    except OSError as error:
        raise BuildError(
            f"{library.parent} cannot be written ({error.strerror}): set "
            "XDG_CACHE_HOME to a folder that can"
        ) from error
    try:
        new = scratch / library.name
        source = _SOURCES / "nm_matmul.cu"
        # Wheels have the static runtime in another folder than the toolkit has.
        wheel = f"-L{nvcc.parent.parent / 'lib'}"
        run = subprocess.run(
            [nvcc, *_FLAGS, wheel, f"-I{headers}", source, "-o", new],
            capture_output=True,
            text=True,
            check=False,
        )
        if run.returncode:
            raise BuildError(f"{nvcc} failed:\n{(run.stderr or run.stdout)[-2000:]}")
        new.replace(library)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


if __name__ == "__main__":  # builds it beforehand
    sys.stdout.write(f"{load()._name}\n")
