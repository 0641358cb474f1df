"""Folders that appear, or replace others, when they are complete."""

import os
import re
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from jaxsparse._files.safetensors import SparseFileError


@contextmanager
def new_folder(output: Path) -> Iterator[Path]:
    """Yields the path of a folder to create; when the block ends, it becomes `output`.

    An existing folder is replaced; if `output` is a link, the folder that it leads to.
    If the block raises, the new folder is removed. Folders that were left by an
    earlier call that was killed are removed too.
    """
    output = output.resolve()
    pending = output.with_name(f"{output.name}.{os.urandom(4).hex()}.tmp")
    try:
        yield pending
        _replace_folder(pending, output)
    except BaseException:
        shutil.rmtree(pending, ignore_errors=True)
        raise
    for folder in output.parent.iterdir():
        if re.fullmatch(rf"{re.escape(output.name)}\.[0-9a-f]{{8}}\.tmp", folder.name):
            shutil.rmtree(folder, ignore_errors=True)


def copy_folder(
    path: Path, copy: Path, ignore: Callable[[str, list[str]], Iterable[str]]
) -> None:
    """Copies a folder, into folders that are writable; links become what they lead to.

    Args:
      path: the folder.
      copy: the folder to create.
      ignore: returns the names that are not copied, given a folder and the names in it.

    Raises:
      SparseFileError: a file cannot be read; the error names it.
    """
    try:
        shutil.copytree(path, copy, ignore=ignore)
    except shutil.Error as error:
        (file, _, cause), *_ = error.args[0]
        raise SparseFileError(Path(file), cause) from error
    for copied in (copy, *copy.rglob("*")):
        if copied.is_dir():
            copied.chmod(copied.stat().st_mode | stat.S_IRWXU)


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
