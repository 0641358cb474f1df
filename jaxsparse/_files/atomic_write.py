"""Atomic writes: new files replace old ones only when all of them are on disk."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO

from jaxsparse._files.lock import locked
from jaxsparse._files.sharded_files import index_of, shard_names, stale_files


#: Writes the contents of a file to an empty file; what it returns does not count.
Write = Callable[[BinaryIO], object]


def write_atomically(
    path: Path,
    files: Sequence[Write],
    index: Callable[[list[str]], str],
    *,
    replace: bool = True,
) -> None:
    """Writes one file to a path, or several files and their index beside it.

    Until all of them are on disk, readers get the previous contents of the path. Of
    several writers to a path, each waits until the one before is done, so the last one
    wins. Files that were left by an earlier call that was killed are removed.

    Args:
      path: the path to write to.
      files: for each file, a function that writes its contents.
      index: returns the text of the index, given the names of the files; only called if
        there are several.
      replace: whether the path, or its index, may exist.

    Raises:
      FileExistsError: it exists and is not to be replaced.
    """
    with locked(path):
        for file in (path, index_of(path)):
            if not replace:
                refuse_existing(file)
        _write_files(path, files, index)


def refuse_existing(path: Path) -> None:
    """Raises `FileExistsError` if a path that is not to be replaced exists."""
    if path.exists():
        raise FileExistsError(f"{path} already exists: another program has written it")


def _write_files(
    path: Path, files: Sequence[Write], index: Callable[[list[str]], str]
) -> None:
    token = os.urandom(4).hex()
    if len(files) == 1:
        names = []
        _replace(path, token, files[0])
        index_of(path).unlink(missing_ok=True)  # readers prefer an index to the file
    else:
        names = shard_names(path, token, len(files))
        text = index(names).encode()
        try:
            for name, write in zip(names, files, strict=True):
                _replace(path.with_name(name), token, write)
            _replace(index_of(path), token, lambda file: file.write(text))
        except BaseException:
            if not _contains(index_of(path), text):  # else the new index is in use
                for name in names:
                    path.with_name(name).unlink(missing_ok=True)
            raise
        path.unlink(missing_ok=True)
    for file in stale_files(path, keep=names):
        file.unlink(missing_ok=True)


def write_file(path: Path, write: Write) -> None:
    """Writes a new file and flushes it to disk."""
    with open(path, "xb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())


def _replace(path: Path, token: str, write: Write) -> None:
    """Writes a temporary file beside the path, flushes it to disk, and renames it."""
    pending = path.with_name(f"{path.name}.{token}.tmp")
    try:
        write_file(pending, write)
        os.replace(pending, path)
    except BaseException:
        pending.unlink(missing_ok=True)
        raise


def _contains(file: Path, text: bytes) -> bool:
    return file.is_file() and file.read_bytes() == text
