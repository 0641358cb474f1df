"""Files that take the place of others only when all of them are on the disk."""

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from jaxsparse._files.sharded_files import index_of, shard_names, stale_files


#: A file, chunk by chunk.
Chunks = Iterable[bytes | memoryview]


def write_atomically(
    path: Path,
    files: Sequence[Callable[[], Chunks]],
    index: Callable[[list[str]], str],
) -> None:
    """Writes one file to a path, or several beside it and their index.

    Until all of it is on the disk, what was at the path before is what counts. What an
    earlier call left behind when it was killed is taken away.

    Args:
      path: where to.
      files: what begins to give the chunks of each file.
      index: the text of the index, from the names of several files.
    """
    token = os.urandom(4).hex()
    if len(files) == 1:
        names = []
        _replace(path, token, files[0]())
        index_of(path).unlink(missing_ok=True)  # only now this file counts
    else:
        names = shard_names(path, token, len(files))
        text = index(names).encode()
        try:
            for name, file in zip(names, files, strict=True):
                _replace(path.with_name(name), token, file())
            _replace(index_of(path), token, [text])
        except BaseException:
            if not _holds(index_of(path), text):  # else the new files count already
                for name in names:
                    path.with_name(name).unlink(missing_ok=True)
            raise
        path.unlink(missing_ok=True)
    for file in stale_files(path, keep=names):
        file.unlink(missing_ok=True)


def _replace(path: Path, token: str, chunks: Chunks) -> None:
    """Writes a file beside its place, through to the disk, and then moves it there."""
    pending = path.with_name(f"{path.name}.{token}.tmp")
    try:
        with open(pending, "xb") as file:
            for chunk in chunks:
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        os.replace(pending, path)
    except BaseException:
        pending.unlink(missing_ok=True)
        raise


def _holds(file: Path, text: bytes) -> bool:
    return file.is_file() and file.read_bytes() == text
