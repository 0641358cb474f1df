"""What stages of a model became, in a folder, so that a run that was killed resumes."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxsparse._sharding import device_put_like, device_put_mask
from jaxsparse._trees import is_array


#: The name of the hash in each file.
_RUN = "run"


class StageCheckpoint(NamedTuple):
    """A folder with a file for each stage that is done.

    Attributes:
      folder: the folder.
      run: a hash of everything that the stages depend on.
    """

    folder: Path
    run: str

    def save(
        self, stage: int, leaves: Mapping[str, Any], masks: Mapping[str, Any]
    ) -> None:
        """Writes the leaves and masks of a stage, all or nothing."""
        arrays: dict[str, np.ndarray] = {}
        # Files of NumPy know no bfloat16, so the bytes are written.
        for path, leaf in leaves.items():
            arrays[f"leaf:{path}"] = np.frombuffer(np.asarray(leaf).tobytes(), np.uint8)
        for path, mask in masks.items():
            if mask is not None:
                arrays[f"mask:{path}"] = np.asarray(mask)
        self.write(_name(stage), arrays)

    def load(
        self, stage: int, params: Mapping[str, Any]
    ) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """Returns the leaves and masks of a stage; None if it is not done.

        Args:
          stage: its number.
          params: the dense leaves, by path, for dtypes, shapes and devices.

        Raises:
          ValueError: the file is of another run.
        """
        arrays = self.read(_name(stage))
        if arrays is None:
            return None
        leaves, masks = {}, {}
        for name, value in arrays.items():
            kind, _, path = name.partition(":")
            leaf = params[path]
            if kind == "leaf":
                value = value.view(leaf.dtype).reshape(leaf.shape)
                leaves[path] = device_put_like(jnp.asarray(value), leaf)
            else:
                masks[path] = device_put_mask(jnp.asarray(value), leaf)
        return leaves, masks

    def write(self, name: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Writes arrays to a file of this run, all or nothing."""
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / f"{name}.npz"
        unfinished = file.with_suffix(f".{os.getpid()}.tmp")
        with unfinished.open("wb") as stream:
            np.savez(stream, allow_pickle=False, **{_RUN: np.array(self.run)}, **arrays)
            stream.flush()
            os.fsync(stream.fileno())
        unfinished.replace(file)

    def read(self, name: str) -> dict[str, np.ndarray] | None:
        """Returns the arrays of a file; None if there is no such file.

        Raises:
          ValueError: the file is of another run.
        """
        file = self.folder / f"{name}.npz"
        if not file.exists():
            return None
        with np.load(file) as arrays:
            if arrays[_RUN] != self.run:
                raise ValueError(
                    f"{file} is the checkpoint of other parameters, batches or "
                    "settings: give another folder, or delete this one"
                )
            return {name: arrays[name] for name in set(arrays.files) - {_RUN}}


def _name(stage: int) -> str:
    return f"stage_{stage:04}"


def open_checkpoint(
    folder: str | os.PathLike[str], params: Mapping[str, Any], *others: Any
) -> StageCheckpoint:
    """Returns the checkpoint of a run.

    Args:
      folder: where stages are, or will be.
      params: the dense leaves, by path.
      others: whatever else the run depends on: trees of arrays and of other values,
        which are told apart by what they print.
    """
    digest = hashlib.sha256()
    leaves: Sequence[Any] = [*params.items(), *jax.tree.leaves(others)]
    for leaf in jax.tree.leaves(leaves):
        text = f"{leaf.dtype}{leaf.shape}" if is_array(leaf) else repr(leaf)
        digest.update(text.encode())
        if is_array(leaf):
            is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
            values = jax.random.key_data(leaf) if is_key else leaf
            digest.update(np.asarray(values).tobytes())
    return StageCheckpoint(Path(folder), digest.hexdigest())
