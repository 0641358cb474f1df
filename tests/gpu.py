"""Tests that want a GPU: `python -m pytest -m gpu` runs them all, by the real kernels.

Some of them run anywhere, with XLA in the kernel's stead (the fixture `available`).
"""

import jax
import pytest


CAPABILITY = getattr(jax.devices()[0], "compute_capability", "")


def needs_hopper(test):
    """Skips a test where there is no GPU of compute capability 9.0."""
    reason = "needs an H100 or H200"
    return pytest.mark.gpu(pytest.mark.skipif(CAPABILITY != "9.0", reason=reason)(test))


def needs_gpus(number: int):
    """Skips a test where there are fewer GPUs."""
    too_few = jax.default_backend() != "gpu" or jax.device_count() < number
    skip = pytest.mark.skipif(too_few, reason=f"needs {number} GPUs")
    return lambda test: pytest.mark.gpu(skip(test))
