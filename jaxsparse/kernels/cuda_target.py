"""Registers the CUDA kernels of this folder as targets of `jax.ffi.ffi_call`."""

import logging
import warnings
from functools import cache

import jax

from jaxsparse.kernels.device import compute_capability


def target(name: str) -> str:
    """Returns the name of the target of a source file, such as `"nm_matmul"`."""
    return f"jaxsparse_{name}"


@cache  # logs and warns once
def unavailable(name: str) -> str:
    """Registers a kernel; returns why that is not possible, or an empty string.

    Args:
      name: the name of its source file, without `.cu`, which is also that of its
        handler after `jaxsparse_`.

    Raises:
      BuildError: one of several processes has no compiler.
    """
    if compute_capability() != (9, 0):
        reason = (
            "the default device is not a GPU of compute capability 9.0 (H100, H200)"
        )
        logging.getLogger("jaxsparse").info("%s uses XLA: %s", name, reason)
        return reason
    from jaxsparse.kernels import cuda_library

    try:
        library = cuda_library.load(name)
    except cuda_library.BuildError as error:
        if jax.process_count() > 1:
            raise  # other processes may have it, and all must run the same program
        warnings.warn(f"{name} uses XLA: {error}", stacklevel=2)
        return str(error)
    handler = jax.ffi.pycapsule(getattr(library, target(name)))
    jax.ffi.register_ffi_target(target(name), handler, platform="CUDA")
    return ""
