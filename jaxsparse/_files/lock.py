"""A lock for the writers of one path, in any threads and processes of one machine."""

import errno
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


try:
    import fcntl
except ModuleNotFoundError:  # on Windows
    fcntl = None


_HAS_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Waits until nobody else writes to a path, and keeps others waiting in the block.

    The lock is a file beside the path, `.name.lock`, which exists in the meantime only.
    The system releases the lock of a process that is killed; its file is reused.

    Warns:
      UserWarning: the system has no locks for this folder. Then only one process at a
        time may write to the path.
    """
    file = path.with_name(f".{path.name}.lock")
    descriptor = _acquire(file)
    try:
        yield
    finally:
        try:
            file.unlink(missing_ok=True)  # while it is locked: it is this writer's
        finally:
            os.close(descriptor)


def _acquire(file: Path) -> int:
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            _wait(descriptor, file)
            if _is_same(descriptor, file):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # the writer before removed the file: a new one is needed


def _wait(descriptor: int, file: Path) -> None:
    try:
        if fcntl is None:
            raise OSError(errno.ENOSYS, "no locks on this system")
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in _HAS_NO_LOCKS:
            raise
        warnings.warn(
            f"{file.parent} has no file locks: let only one process at a time write "
            f"there ({error})",
            stacklevel=2,
        )


def _is_same(descriptor: int, file: Path) -> bool:
    """Returns whether an open file is the one that has the path now."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(file))
    except FileNotFoundError:
        return False
