"""The CUDA sources of this folder as a library: compiled on first use, then cached.

The compiler is the nvcc of `CUDA_HOME`, of `PATH`, or of NVIDIA's wheels, which
`jax[cuda13]` brings. The name of a built library holds a hash of all that it is made
of, and it appears under this name in one step: processes that build it at once do not
disturb each other.
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
    "-w",  # of XLA's headers
)


class BuildError(RuntimeError):
    """The library cannot be built here; the message says why and what would help."""


def load() -> ctypes.CDLL:
    """The library, built if it is not in the cache: half a minute.

    Raises:
      BuildError: no compiler, or none whose library can be built and loaded.
    """
    failure = BuildError(
        "no CUDA compiler: there is no nvcc in CUDA_HOME, in PATH or in NVIDIA's "
        'wheels; pip install "jax[cuda13]" brings one'
    )
    for nvcc in _compilers():
        try:
            return _load(nvcc)
        except BuildError as error:
            failure = error
        except OSError as error:
            failure = BuildError(f"what {nvcc} makes cannot be used: {error}")
    raise failure


def _load(nvcc: Path) -> ctypes.CDLL:
    headers = jax.ffi.include_dir()
    library = _cached(_fingerprint(nvcc, Path(headers)))
    if not library.exists():
        _build(nvcc, headers, library)
    return ctypes.CDLL(str(library))


def _compilers() -> list[Path]:
    wheels = find_spec("nvidia")
    roots = (wheels.submodule_search_locations or ()) if wheels else ()
    places = [
        Path(os.environ.get("CUDA_HOME") or os.devnull) / "bin",
        *(Path(folder) for folder in os.get_exec_path()),
        *(place for root in roots for place in sorted(Path(root).glob("*/bin"))),
    ]
    found = [shutil.which("nvcc", path=str(place)) for place in places]
    return [Path(nvcc) for nvcc in dict.fromkeys(found) if nvcc]


def _fingerprint(nvcc: Path, headers: Path) -> str:
    version = subprocess.run(
        [nvcc, "--version"], capture_output=True, text=True, check=False
    )
    here = [platform.machine(), *platform.libc_ver()]  # a cache may serve many machines
    more = ("NVCC_PREPEND_FLAGS", "NVCC_APPEND_FLAGS", "NVCC_CCBIN")
    named = [version.stdout, *_FLAGS, *here, *(os.environ.get(x, "") for x in more)]
    parts = [text.encode() for text in named]
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
