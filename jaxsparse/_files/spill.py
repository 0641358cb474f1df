"""Tensors that are kept on disk until they are written to a file."""

import math
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np


class SpilledTensors(NamedTuple):
    """Tensors on disk.

    Attributes:
      store: stores a tensor under a name.
      read: returns the tensor of a name.
    """

    store: Callable[[str, np.ndarray], None]
    read: Callable[[str], np.ndarray]


@contextmanager
def spilled_tensors(folder: Path) -> Iterator[SpilledTensors]:
    """Yields functions that store tensors on disk and read them.

    They are in a file without a name in `folder`, so that nothing is left of it, even
    if the process is killed.

    >>> with spilled_tensors(Path()) as tensors:
    ...     tensors.store("w", np.arange(3.0))
    ...     print(tensors.read("w"))
    [0. 1. 2.]
    """
    with tempfile.TemporaryFile(dir=folder) as file:
        stored: dict[str, tuple[int, np.dtype, tuple[int, ...]]] = {}

        def store(name: str, x: np.ndarray) -> None:
            start = file.seek(0, os.SEEK_END)
            file.write(np.ascontiguousarray(x).reshape(-1).view(np.uint8).data)
            stored[name] = start, x.dtype, x.shape

        def read(name: str) -> np.ndarray:
            start, dtype, shape = stored[name]
            file.seek(start)
            data = np.empty(math.prod(shape) * dtype.itemsize, np.uint8)
            file.readinto(data.data)
            return data.view(dtype).reshape(shape)

        yield SpilledTensors(store, read)
