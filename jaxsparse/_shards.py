"""A tree in several files, and the index that says which tensor is in which.

The index is the one that Hugging Face has, `model.safetensors.index.json`, and it alone
says which files count: files of several have names of their own each time, so that one
replacement, of the index, replaces them all.
"""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from jaxsparse._safetensors import SparseFileError, is_text_map, parse_object
from jaxsparse._stored_leaves import tensors_of


def index_of(path: Path) -> Path:
    """Where the index of a path is, if it has one."""
    return path.with_name(f"{path.name}.index.json")


def split_leaves(leaves: Mapping[str, Any], most: int) -> list[dict[str, Any]]:
    """The leaves file by file, in order; the tensors of a leaf stay together."""
    parts: list[dict[str, Any]] = [{}]
    room = most
    for path, leaf in leaves.items():
        size = _nbytes(path, leaf)
        if size > room and parts[-1]:
            parts.append({})
            room = most
        parts[-1][path] = leaf
        room -= size
    return parts


def shard_names(path: Path, token: str, count: int) -> list[str]:
    """The names of so many files beside a path."""
    return [
        f"{path.stem}-{token}-{i:05}-of-{count:05}.safetensors"
        for i in range(1, count + 1)
    ]


def leftovers(path: Path, keep: Iterable[str]) -> list[Path]:
    """The files of earlier saves to a path, by their names alone."""
    stem = re.escape(path.stem)
    shard = rf"{stem}-[0-9a-f]{{8}}-\d{{5,}}-of-\d{{5,}}\.safetensors"
    pending = rf"({shard}|{stem}\.safetensors(\.index\.json)?)\.[0-9a-f]{{8}}\.tmp"
    return [
        file
        for file in path.parent.iterdir()
        if re.fullmatch(f"{shard}|{pending}", file.name) and file.name not in keep
    ]


def index_text(names: list[str], parts: list[dict[str, Any]]) -> str:
    """The index of files with these leaves."""
    weight_map = {
        tensor: name
        for name, part in zip(names, parts, strict=True)
        for path, leaf in part.items()
        for tensor in tensors_of(path, leaf)
    }
    total = sum(_nbytes(*item) for part in parts for item in part.items())
    told = {"metadata": {"total_size": total}, "weight_map": weight_map}
    return json.dumps(told, indent=2)


def read_index(index: Path) -> tuple[dict[str, str], Any]:
    """Which tensor is in which file, and what it says of their size.

    Raises:
      SparseFileError: it is no such index, or names what is no file of its folder.
    """
    try:
        told = parse_object(index, index.read_bytes())
        weight_map, metadata = told.get("weight_map"), told.get("metadata")
        if not is_text_map(weight_map) or not isinstance(metadata, dict):
            raise SparseFileError(index, "it has no weight_map of strings and metadata")
        for name in set(weight_map.values()):
            if not _is_beside(index, name):
                raise SparseFileError(index, f"there is no file {name!r} beside it")
    except OSError as error:
        raise SparseFileError(index, error) from error
    return weight_map, metadata.get("total_size")


def _is_beside(index: Path, name: str) -> bool:
    """Whether this names a file of the same folder, not by a link out of it."""
    if not name or Path(name).name != name:
        return False
    file = index.parent / name
    try:
        return file.is_file() and file.resolve().parent == index.parent.resolve()
    except ValueError:  # characters that no name has
        return False


def _nbytes(path: str, leaf: Any) -> int:
    return sum(x.size * x.dtype.itemsize for x in tensors_of(path, leaf).values())
