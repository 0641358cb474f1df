"""Tensors in several files, and the index that says which tensor is in which.

The index is the one that Hugging Face has, `model.safetensors.index.json`, and it alone
says which files count: files of several have names of their own each time, so that one
replacement, of the index, replaces them all.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxsparse._files.safetensors import (
    Header,
    SparseFileError,
    is_text_map,
    parse_object,
    read_header,
)


def index_of(path: Path) -> Path:
    """Where the index of a path is, if it has one."""
    return path.with_name(f"{path.name}.index.json")


def checked_path(path: Path) -> Path:
    """The path, if it has the ending of these files."""
    if path.suffix != ".safetensors":
        raise ValueError(f"{path} has to end in .safetensors")
    return path


def shard_names(path: Path, token: str, count: int) -> list[str]:
    """The names of so many files beside a path."""
    return [
        f"{path.stem}-{token}-{i:05}-of-{count:05}.safetensors"
        for i in range(1, count + 1)
    ]


def stale_files(path: Path, keep: Iterable[str]) -> list[Path]:
    """The files of earlier saves to a path, by their names alone."""
    stem = re.escape(path.stem)
    shard = rf"{stem}-[0-9a-f]{{8}}-\d{{5,}}-of-\d{{5,}}\.safetensors"
    pending = rf"({shard}|{stem}\.safetensors(\.index\.json)?)\.[0-9a-f]{{8}}\.tmp"
    return [
        file
        for file in path.parent.iterdir()
        if re.fullmatch(f"{shard}|{pending}", file.name) and file.name not in keep
    ]


def index_text(
    names: Sequence[str],
    parts: Sequence[Mapping[str, int]],
    metadata: Mapping[str, Any] | None = None,
) -> str:
    """The index of files, from the sizes in bytes of the tensors that each has.

    Args:
      names: of the files.
      parts: the sizes, by tensor, for each file.
      metadata: what else the index says.
    """
    weight_map = {
        tensor: name for name, part in zip(names, parts, strict=True) for tensor in part
    }
    total = sum(size for part in parts for size in part.values())
    told = {**(metadata or {}), "total_size": total}
    return json.dumps({"metadata": told, "weight_map": weight_map}, indent=2)


def index_metadata(path: Path) -> dict[str, Any]:
    """What the index of a path says besides names; nothing where there is no index."""
    index = index_of(path)
    return _read_index(index)[1] if index.exists() else {}


def read_headers(path: Path) -> list[Header]:
    """The header of a file, or those of the files that its index names.

    Raises:
      FileNotFoundError: there is neither.
      SparseFileError: one of them is not valid, or index and files differ.
    """
    index = index_of(checked_path(path))
    if not index.exists():
        if not path.is_file():
            raise FileNotFoundError(f"there is no file {path}, and none {index}")
        return [read_header(path)]
    weight_map, _ = _read_index(index)
    names = sorted(set(weight_map.values()))
    headers = [read_header(index.with_name(name)) for name in names]
    there: dict[str, str] = {}
    for header in headers:
        if twice := there.keys() & header.entries.keys():
            cause = f"tensors {sorted(twice)[:3]} are in another file too"
            raise SparseFileError(header.path, cause)
        there |= dict.fromkeys(header.entries, header.path.name)
    if there != weight_map:
        wrong = sorted(dict(there.items() ^ weight_map.items()))
        raise SparseFileError(index, f"the files have other tensors: {wrong[:3]}")
    if not there:
        raise SparseFileError(index, "it names no tensor")
    return headers


def check_total(path: Path, headers: Iterable[Header]) -> None:
    """Raises unless the index, if there is one, knows the size of all tensors.

    Those of others are not always right: of tied weights some count both.
    """
    index = index_of(path)
    if not index.exists():
        return
    total = index_metadata(path).get("total_size")
    size = sum(entry.nbytes for header in headers for entry in header.entries.values())
    if total != size:
        raise SparseFileError(index, f"the tensors have {size} bytes, not {total}")


def _read_index(index: Path) -> tuple[dict[str, str], dict[str, Any]]:
    """Which tensor is in which file, and the metadata.

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
    return weight_map, metadata


def _is_beside(index: Path, name: str) -> bool:
    """Whether this names a file of the same folder.

    It may be a link, as all files of Hugging Face's cache are: whoever made the folder
    made the link, the text of an index made neither.
    """
    if Path(name).name != name:
        return False
    try:
        return (index.parent / name).is_file()
    except ValueError:  # characters that no name has
        return False
