"""One process at a time per run: a lock the operating system releases when its last holder dies."""

import errno
import fcntl
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from binaryvit.errors import BinaryViTError
from binaryvit.files import saying_why_not_written

_REMOVALS = 50  # times that a lock file may vanish while it is taken, before this is no coincidence


class _RemovedError(Exception):
    """A holder on another machine removed the lock file while it was open here."""


@contextmanager
def hold(path: str | Path) -> Iterator[int | None]:
    """Tries to take the lock file `path`; yields its file descriptor, or None when a living process holds it.

    An flock belongs to the open file, not to the process: a child that inherits the descriptor keeps the lock also
    when its parent is killed, so nobody else starts the run that the orphan still trains. (This is why it is not
    `filelock`, whose descriptor is private.) The file is removed when the lock is released.

    On a network file system it works between machines where that supports flock: NFS does (since Linux 2.6.12,
    by its server's byte-range locks), Lustre when mounted with `flock`.

    Raises BinaryViTError where there are no locks, or no file can be made.
    """
    path = Path(path)
    with saying_why_not_written(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _take(path)
    try:
        yield descriptor
    finally:
        if descriptor is not None:
            path.unlink(missing_ok=True)
            os.close(descriptor)


def _take(path: Path) -> int | None:
    """A descriptor that holds the lock, or None when a living process holds it."""
    removed = 0
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        taken = False
        try:
            if _flock(descriptor, fcntl.LOCK_EX, path):
                taken = _is_file(descriptor, path)
                if taken:
                    return descriptor
            elif not _flock(descriptor, fcntl.LOCK_SH, path):
                return None
        except _RemovedError as error:  # the next attempt makes a new file
            removed += 1
            if removed == _REMOVALS:
                raise BinaryViTError(
                    f"{path} cannot be locked, for its file system says each time that it was removed: choose an "
                    "--output on another one."
                ) from error
        finally:
            if not taken:
                os.close(descriptor)
        # Either its last holder removed the file between our opening and locking it, or a shared lock was to be had:
        # then nobody trains, and only a look (`is_locked`) was in the way. Random: two starters fall out of step.
        time.sleep(secrets.randbelow(5) / 1000)


def _is_file(descriptor: int, path: Path) -> bool:
    """Whether `path` still is the file that was opened."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def is_locked(path: str | Path) -> bool:
    """Whether a living process holds the lock file `path`. Creates nothing, and works in a read-only folder."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        return not _flock(descriptor, fcntl.LOCK_SH, path)  # shared: looking does not disturb others who look
    except _RemovedError:
        return False
    finally:
        os.close(descriptor)


def _flock(descriptor: int, kind: int, path: str | Path) -> bool:
    """Whether the lock could be taken at once.

    Raises `_RemovedError` when the file no longer exists, and BinaryViTError on a file system without locks.
    """
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno == errno.ESTALE:
            raise _RemovedError from error
        raise BinaryViTError(
            f"{path} cannot be locked ({error.strerror}), so nothing would keep two processes from training the same "
            "run: mount its file system with locks (Lustre: flock), or choose an --output on another one."
        ) from error
    return True
