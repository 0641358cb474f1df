"""Orbax checkpoints, array by array.

Orbax restores and saves whole trees, which need not fit into memory here. So arrays are
read and written by TensorStore, as Orbax does it: each is a Zarr array in a key-value
store of the OCDBT format, named by the keys on its way, joined by dots. Everything else
of a checkpoint is copied as it is.
"""

import ctypes
import os
import re
import shutil
import stat
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxsparse._files.safetensors import SparseFileError, parse_object


@dataclass(frozen=True)
class Stored:
    """One array of a checkpoint.

    Attributes:
      name: what the checkpoint calls it.
      store: the array as TensorStore opens it.
      spec: its shape and dtype.
    """

    name: str
    store: Any
    spec: jax.ShapeDtypeStruct


def is_orbax_checkpoint(path: Path) -> bool:
    """Whether a folder has the tree of a checkpoint."""
    return (path / "_METADATA").is_file()


def read_orbax_arrays(path: Path) -> dict[str, Stored]:
    """The arrays of a checkpoint by their paths, none of them read.

    Raises:
      SparseFileError: the folder has no checkpoint, or one that is not valid.
    """
    ts = _tensorstore()
    names, driver = _names(path)
    source = _store(path)
    try:
        opening = {
            leaf: ts.open(
                {"driver": driver, "kvstore": source | {"path": f"{name}/"}}, open=True
            )
            for leaf, name in names.items()
        }
        stores = {leaf: future.result() for leaf, future in opening.items()}
    except ValueError as error:
        cause = str(error).splitlines()[0]
        raise SparseFileError(path, f"an array is not there: {cause}") from error
    return {
        leaf: Stored(
            names[leaf],
            store,
            jax.ShapeDtypeStruct(store.shape, np.dtype(store.dtype.numpy_dtype)),
        )
        for leaf, store in stores.items()
    }


def read_orbax_array(array: Stored) -> np.ndarray:
    """One array, which the caller may write to."""
    return np.require(array.store.read().result(), requirements="W")


def write_orbax_arrays(
    path: Path, output: Path, change: Callable[[str, np.ndarray], np.ndarray]
) -> None:
    """Writes a checkpoint anew, in a folder that is there when all of it is.

    Args:
      path: the checkpoint that is read.
      output: the folder to write, or a link to it; one that is there is replaced.
      change: gives what to write, from the path of an array and the array.

    Raises:
      SparseFileError: the checkpoint is not valid, or cannot be read.
    """
    output = output.resolve()
    ts = _tensorstore()
    pending = output.with_name(f"{output.name}.{os.urandom(4).hex()}.tmp")
    try:
        _copy_rest(path, pending)
        arrays = read_orbax_arrays(path)
        known = tuple(f"{array.name}/" for array in arrays.values())
        source, target = (ts.KvStore.open(_store(x)).result() for x in (path, pending))
        for key in source.list().result():
            if not key.decode().startswith(known):
                target.write(key, source.read(key).result().value).result()
        for leaf, array in arrays.items():
            spec = array.store.spec().to_json()
            spec["kvstore"] = _store(pending) | {"path": f"{array.name}/"}
            written = ts.open(spec, create=True, open=False).result()
            written.write(change(leaf, read_orbax_array(array))).result()
            _trim()
        _replace_folder(pending, output)
    except BaseException:
        shutil.rmtree(pending, ignore_errors=True)
        raise
    for left in output.parent.iterdir():
        if re.fullmatch(rf"{re.escape(output.name)}\.[0-9a-f]{{8}}\.tmp", left.name):
            shutil.rmtree(left, ignore_errors=True)


def _copy_rest(path: Path, pending: Path) -> None:
    """Copies what is no array, into folders of one's own: theirs may be read-only."""
    skipped = shutil.ignore_patterns("manifest.ocdbt", "d", "ocdbt.process_*")
    try:
        shutil.copytree(path, pending, ignore=skipped)
    except shutil.Error as error:
        (file, _, cause), *_ = error.args[0]
        raise SparseFileError(Path(file), cause) from error
    for there in (pending, *pending.rglob("*")):
        if there.is_dir():
            there.chmod(there.stat().st_mode | stat.S_IRWXU)


def _trim() -> None:
    """Gives freed memory back, of which each of TensorStore's threads keeps its own.

    Without it they keep several leaves together. Only the GNU C library has this.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)


def _replace_folder(pending: Path, output: Path) -> None:
    if not output.exists():
        pending.rename(output)
        return
    old = output.with_name(f"{output.name}.{os.urandom(4).hex()}.tmp")
    output.rename(old)
    try:
        pending.rename(output)
    except BaseException:
        old.rename(output)
        raise
    shutil.rmtree(old)


def _names(path: Path) -> tuple[dict[str, str], str]:
    """By the path of each array its name, and what it is stored as."""
    file = path / "_METADATA"
    if not is_orbax_checkpoint(path):
        inner = sorted(x.parent.name for x in path.glob("*/_METADATA"))
        hint = f": give one of its folders {inner}" if inner else ""
        raise SparseFileError(path, f"the folder is no Orbax checkpoint{hint}")
    told = parse_object(file, file.read_bytes())
    if not told.get("use_ocdbt"):
        raise SparseFileError(file, "the checkpoint is not in the OCDBT format")
    names: dict[str, str] = {}
    try:
        for entry in told["tree_metadata"].values():
            keys = [str(key["key"]) for key in entry["key_metadata"]]
            if entry["value_metadata"]["value_type"] in _ARRAYS:
                leaf = _leaf_path(keys)
                if leaf in names:
                    raise SparseFileError(file, f"two arrays have the path {leaf!r}")
                names[leaf] = ".".join(keys)
    except (AttributeError, KeyError, TypeError) as error:
        raise SparseFileError(file, f"it is not valid: {error!r}") from error
    return names, "zarr3" if told.get("use_zarr3") else "zarr"


_ARRAYS = {"jax.Array", "np.ndarray", "scalar"}


def _leaf_path(keys: list[str]) -> str:
    """The canonical path, without the `value` of NNX's boxes."""
    return "/".join(keys[:-1] if keys[-1] == "value" and len(keys) > 1 else keys)


def _store(path: Path) -> dict[str, Any]:
    return {"driver": "ocdbt", "base": f"file://{path.resolve()}/"}


def _tensorstore() -> Any:
    try:
        import tensorstore
    except ModuleNotFoundError as error:
        raise ImportError(
            "checkpoints need TensorStore: python -m pip install orbax-checkpoint"
        ) from error
    return tensorstore
