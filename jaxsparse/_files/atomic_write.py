"""Atomic writes: new files replace old ones only when all of them are on disk."""

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from jaxsparse._files.sharded_files import index_of, shard_names, stale_files


#: The contents of a file, chunk by chunk.
Chunks = Iterable[bytes | memoryview]


def write_atomically(
    path: Path,
    files: Sequence[Callable[[], Chunks]],
    index: Callable[[list[str]], str],
) -> None:
    """Writes one file to a path, or several files and their index beside it.

    Until all of them are on disk, readers get the previous contents of the path. Files
    that were left by an earlier call that was killed are removed.

    Args:
      path: the path to write to.
      files: for each file, a function that returns its chunks.
      index: returns the text of the index, given the names of the files; only called if
        there are several.
    """
    token = os.urandom(4).hex()
    if len(files) == 1:
        names = []
        _replace(path, token, files[0]())
        index_of(path).unlink(missing_ok=True)  # readers prefer an index to the file
    else:
        names = shard_names(path, token, len(files))
        text = index(names).encode()
        try:
            for name, file in zip(names, files, strict=True):
                _replace(path.with_name(name), token, file())
            _replace(index_of(path), token, [text])
        except BaseException:
            if not _contains(index_of(path), text):  # else the new index is in use
                for name in names:
                    path.with_name(name).unlink(missing_ok=True)
            raise
        path.unlink(missing_ok=True)
    for file in stale_files(path, keep=names):
        file.unlink(missing_ok=True)


def write_file(path: Path, chunks: Chunks) -> None:
    """Writes a new file and flushes it to disk."""
    with open(path, "xb") as file:
        for chunk in chunks:
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())


def _replace(path: Path, token: str, chunks: Chunks) -> None:
    """Writes a temporary file beside the path, flushes it to disk, and renames it."""
    pending = path.with_name(f"{path.name}.{token}.tmp")
    try:
        write_file(pending, chunks)
        os.replace(pending, path)
    except BaseException:
        pending.unlink(missing_ok=True)
        raise


def _contains(file: Path, text: bytes) -> bool:
    return file.is_file() and file.read_bytes() == text
