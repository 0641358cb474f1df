"""The compute capability of the GPUs of this process."""

from typing import Any

import jax


def compute_capability() -> tuple[int, int]:
    """Returns the lowest one of all devices; `(0, 0)` if one is not an NVIDIA GPU."""
    return min(map(_capability, jax.devices()))


def _capability(device: Any) -> tuple[int, int]:
    # AMD GPUs report a name, such as "gfx942".
    parts = getattr(device, "compute_capability", "0.0").split(".")
    major, minor = parts if len(parts) == 2 else ("", "")
    return (int(major), int(minor)) if major.isdigit() and minor.isdigit() else (0, 0)
