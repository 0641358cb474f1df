"""Orbax checkpoints, read and written one array at a time.

Orbax restores and saves whole trees, which may not fit in memory. So arrays are read
and written by TensorStore, in the way that Orbax does it: each array is a Zarr array in
an OCDBT key-value store, and its name is its keys in the tree, joined by dots, which is
empty if the tree is one array. The rest of a checkpoint is copied.
"""

import ctypes
import shutil
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxsparse._files.new_folder import copy_folder, new_folder
from jaxsparse._files.parse import SparseFileError, parse_object


@dataclass(frozen=True)
class OrbaxArray:
    """One array of a checkpoint, not yet read.

    Attributes:
      name: its name in the key-value store.
      store: the open `tensorstore.TensorStore`.
      spec: its shape and dtype.
    """

    name: str
    store: Any
    spec: jax.ShapeDtypeStruct

    @property
    def prefix(self) -> str:
        """What the keys of its entries in the key-value store begin with."""
        return _prefix(self.name)


def is_orbax_checkpoint(path: Path) -> bool:
    """Returns whether a folder contains the tree of an Orbax checkpoint."""
    return (path / "_METADATA").is_file()


def open_orbax_arrays(path: Path) -> dict[str, OrbaxArray]:
    """Returns the arrays of a checkpoint by their paths, without reading them.

    Raises:
      SparseFileError: the folder has no checkpoint, or an invalid one.
    """
    ts = _tensorstore()
    names, driver = _read_names(path)
    kvstore = _kvstore(path)
    try:
        futures = {
            leaf: ts.open(
                {"driver": driver, "kvstore": kvstore | {"path": _prefix(name)}},
                open=True,
            )
            for leaf, name in names.items()
        }
        stores = {leaf: future.result() for leaf, future in futures.items()}
    except ValueError as error:
        cause = str(error).splitlines()[0]
        raise SparseFileError(path, f"an array is missing: {cause}") from error
    return {
        leaf: OrbaxArray(
            names[leaf],
            store,
            jax.ShapeDtypeStruct(store.shape, np.dtype(store.dtype.numpy_dtype)),
        )
        for leaf, store in stores.items()
    }


def read_orbax_array(array: OrbaxArray) -> np.ndarray:
    """Reads one array, which the caller may write to."""
    return np.require(array.store.read().result(), requirements="W")


def write_orbax_arrays(
    path: Path,
    output: Path,
    change: Callable[[str, np.ndarray], np.ndarray],
    *,
    replace: bool,
) -> None:
    """Writes a changed copy of a checkpoint; the folder appears when it is complete.

    Of several writers to a folder, each waits until the one before is done.

    Args:
      path: the checkpoint to read.
      output: the folder to write, or a link to it.
      change: returns the array to write, given the path of an array and the array.
      replace: whether the output may exist; it is then replaced.

    Raises:
      FileExistsError: the output exists and is not to be replaced.
      SparseFileError: the checkpoint is invalid or cannot be read.
    """
    ignore = shutil.ignore_patterns("manifest.ocdbt", "d", "ocdbt.process_*")
    with new_folder(output, replace=replace) as pending:
        copy_folder(path, pending, ignore)  # all but the key-value store
        arrays = open_orbax_arrays(path)
        _copy_other_entries(path, pending, arrays.values())
        for leaf, array in arrays.items():
            _write_array(pending, array, change(leaf, read_orbax_array(array)))
            _release_memory()


def _copy_other_entries(
    path: Path, pending: Path, arrays: Iterable[OrbaxArray]
) -> None:
    """Copies the entries of the key-value store that do not belong to an array."""
    ts = _tensorstore()
    prefixes = tuple(array.prefix for array in arrays)
    source, target = (ts.KvStore.open(_kvstore(x)).result() for x in (path, pending))
    for key in source.list().result():
        if not key.decode().startswith(prefixes):
            target.write(key, source.read(key).result().value).result()


def _write_array(pending: Path, array: OrbaxArray, values: np.ndarray) -> None:
    """Writes new values of an array into another checkpoint."""
    spec = array.store.spec().to_json()
    spec["kvstore"] = _kvstore(pending) | {"path": array.prefix}
    store = _tensorstore().open(spec, create=True, open=False).result()
    store.write(values).result()


def _release_memory() -> None:
    """Returns freed memory to the system; needs the GNU C library.

    Otherwise the threads of TensorStore keep the memory of several arrays.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)


def _read_names(path: Path) -> tuple[dict[str, str], str]:
    """Returns the name of each array by its path, and TensorStore's driver for them."""
    file = path / "_METADATA"
    if not is_orbax_checkpoint(path):
        inner = sorted(x.parent.name for x in path.glob("*/_METADATA"))
        hint = f": give one of its folders {inner}" if inner else ""
        cause = f"it has no model.safetensors and is not an Orbax checkpoint{hint}"
        raise SparseFileError(path, cause)
    metadata = parse_object(file, file.read_bytes())
    if not metadata.get("use_ocdbt"):
        cause = "the checkpoint is not in the OCDBT format: save it with use_ocdbt=True"
        raise SparseFileError(file, cause)
    names: dict[str, str] = {}
    try:
        for entry in metadata["tree_metadata"].values():
            keys = [str(key["key"]) for key in entry["key_metadata"]]
            if entry["value_metadata"]["value_type"] in _ARRAY_TYPES:
                leaf = _leaf_path(keys)
                if leaf in names:
                    raise SparseFileError(file, f"two arrays have the path {leaf!r}")
                names[leaf] = ".".join(keys)
    except (AttributeError, KeyError, TypeError) as error:
        raise SparseFileError(file, f"it is not valid: {error!r}") from error
    return names, "zarr3" if metadata.get("use_zarr3") else "zarr"


_ARRAY_TYPES = {"jax.Array", "np.ndarray", "scalar"}


def _leaf_path(keys: list[str]) -> str:
    """Returns the canonical path, without the `value` of NNX variables."""
    if keys[-1:] == ["value"] and len(keys) > 1:
        keys = keys[:-1]
    return "/".join(keys)


def _prefix(name: str) -> str:
    return f"{name}/" if name else ""


def _kvstore(path: Path) -> dict[str, Any]:
    return {"driver": "ocdbt", "base": f"file://{path.resolve()}/"}


def _tensorstore() -> Any:
    try:
        import tensorstore
    except ModuleNotFoundError as error:
        raise ImportError(
            "checkpoints require TensorStore: python -m pip install orbax-checkpoint"
        ) from error
    return tensorstore
