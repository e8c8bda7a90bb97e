"""One process at a time per run: a lock the operating system releases when its last holder dies."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def hold(path: str | Path) -> Iterator[int | None]:
    """Tries to take the lock file `path`; yields its file descriptor, or None when a living process holds it.

    An flock belongs to the open file, not to the process: a child that inherits the descriptor keeps the lock also
    when its parent is killed, so nobody else starts the run that the orphan still trains. (This is why it is not
    `filelock`, whose descriptor is private.) The file is removed when the lock is given back.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        if not _taken(descriptor, path):
            yield None
            return
        try:
            yield descriptor
        finally:
            path.unlink(missing_ok=True)
    finally:
        os.close(descriptor)


def _taken(descriptor: int, path: Path) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Its last holder may have removed the file between our opening and locking it: then another one counts.
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except (BlockingIOError, FileNotFoundError):
        return False


def is_locked(path: str | Path) -> bool:
    """Whether a living process holds the lock file `path`. Creates nothing, and works in a folder one may only read."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: looking does not disturb others who look
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
