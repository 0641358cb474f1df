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
        arrays = {"run": np.array(self.run)}
        # Files of NumPy know no bfloat16, so the bytes are written.
        for path, leaf in leaves.items():
            arrays[f"leaf:{path}"] = np.frombuffer(np.asarray(leaf).tobytes(), np.uint8)
        for path, mask in masks.items():
            if mask is not None:
                arrays[f"mask:{path}"] = np.asarray(mask)
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self._file(stage)
        unfinished = file.with_suffix(f".{os.getpid()}.tmp")
        with unfinished.open("wb") as stream:
            np.savez(stream, allow_pickle=False, **arrays)
            stream.flush()
            os.fsync(stream.fileno())
        unfinished.replace(file)

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
        file = self._file(stage)
        if not file.exists():
            return None
        leaves, masks = {}, {}
        with np.load(file) as arrays:
            if arrays["run"] != self.run:
                raise ValueError(
                    f"{file} is the checkpoint of other parameters, batches or "
                    "settings: give another folder, or delete this one"
                )
            for name in set(arrays.files) - {"run"}:
                kind, _, path = name.partition(":")
                value, leaf = arrays[name], params[path]
                if kind == "leaf":
                    value = value.view(leaf.dtype).reshape(leaf.shape)
                    leaves[path] = device_put_like(jnp.asarray(value), leaf)
                else:
                    masks[path] = device_put_mask(jnp.asarray(value), leaf)
        return leaves, masks

    def _file(self, stage: int) -> Path:
        return self.folder / f"stage_{stage:04}.npz"


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
