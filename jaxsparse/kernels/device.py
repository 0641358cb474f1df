"""What the GPUs of this process can run."""

from typing import Any

import jax


def compute_capability() -> tuple[int, int]:
    """The least of all devices; zeros where one is no NVIDIA GPU."""
    return min(map(_capability, jax.devices()))


def _capability(device: Any) -> tuple[int, int]:
    # AMD's GPUs have names there, such as "gfx942".
    parts = getattr(device, "compute_capability", "0.0").split(".")
    major, minor = parts if len(parts) == 2 else ("", "")
    return (int(major), int(minor)) if major.isdigit() and minor.isdigit() else (0, 0)
