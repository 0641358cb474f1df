"""Folders that appear, or replace others, when they are complete."""

import os
import re
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from jaxsparse._files.atomic_write import refuse_existing
from jaxsparse._files.lock import locked
from jaxsparse._files.parse import SparseFileError


@contextmanager
def new_folder(output: Path, *, replace: bool) -> Iterator[Path]:
    """Yields the path of a folder to create; when the block ends, it becomes `output`.

    If the block raises, the new folder is removed. Of several writers to a folder, each
    waits until the one before is done. Folders that were left by an earlier call that
    was killed are removed.

    Args:
      output: the folder, or a link to it.
      replace: whether the folder may exist; it is then replaced.

    Raises:
      FileExistsError: the folder exists and is not to be replaced.
    """
    output = output.resolve()
    with locked(output):
        if not replace:
            refuse_existing(output)
        pending = output.with_name(f"{output.name}.{os.urandom(4).hex()}.tmp")
        try:
            yield pending
            _replace_folder(pending, output)
        except BaseException:
            shutil.rmtree(pending, ignore_errors=True)
            raise
        for folder in _pending_folders(output):
            shutil.rmtree(folder, ignore_errors=True)


def _pending_folders(output: Path) -> list[Path]:
    """Returns the folders of earlier writers that were killed."""
    pattern = rf"{re.escape(output.name)}\.[0-9a-f]{{8}}\.tmp"
    return [x for x in output.parent.iterdir() if re.fullmatch(pattern, x.name)]


def copy_folder(
    path: Path, copy: Path, ignore: Callable[[str, list[str]], Iterable[str]]
) -> None:
    """Copies a folder, into folders that are writable; links to files become files.

    Args:
      path: the folder.
      copy: the folder to create.
      ignore: returns the names that are not copied, given a folder and the names in it.

    Raises:
      SparseFileError: a file cannot be read, or is a link to a folder.
    """

    def checked_ignore(folder: str, names: list[str]) -> set[str]:
        ignored = {*ignore(folder, names)}
        for name in {*names} - ignored:
            _refuse_linked_folder(Path(folder, name))
        return ignored

    try:
        shutil.copytree(path, copy, ignore=checked_ignore)
    except shutil.Error as error:
        (file, _, cause), *_ = error.args[0]
        raise SparseFileError(Path(file), cause) from error
    for copied in (copy, *copy.rglob("*")):
        if copied.is_dir():
            copied.chmod(copied.stat().st_mode | stat.S_IRWXU)


def _refuse_linked_folder(path: Path) -> None:
    """Raises if a path is a link to a folder, which might be of any size, or a loop.

    Links to files are followed: Hugging Face's cache consists of them.
    """
    if path.is_symlink() and path.is_dir():
        cause = f"it is a link to the folder {os.readlink(path)}: replace it by a copy"
        raise SparseFileError(path, cause)


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
