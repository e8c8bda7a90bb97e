"""Who looks at a lock never keeps a run from starting."""

import errno
import fcntl
import os
import threading
import time

import pytest

from binaryvit.errors import BinaryViTError
from binaryvit.locks import hold, is_locked


def test_looking_all_the_time_keeps_nobody_from_taking_a_lock(tmp_path):
    path, looking = tmp_path / "run.lock", threading.Event()
    looking.set()

    def look() -> None:
        while looking.is_set():
            is_locked(path)

    watchers = [threading.Thread(target=look) for _ in range(3)]
    for watcher in watchers:
        watcher.start()
    try:
        for _ in range(200):
            with hold(path) as descriptor:
                assert descriptor is not None and is_locked(path)
    finally:
        looking.clear()
        for watcher in watchers:
            watcher.join()


def test_a_starter_waits_for_one_who_looks_and_not_for_one_who_trains(tmp_path):
    path = tmp_path / "run.lock"
    path.touch()
    descriptor = os.open(path, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    begun = time.monotonic()
    threading.Timer(0.2, os.close, [descriptor]).start()
    with hold(path) as first, hold(path) as second:
        assert first is not None and time.monotonic() - begun >= 0.2
        assert second is None


def test_a_lock_file_removed_on_another_machine_is_made_again(tmp_path, monkeypatch):
    calls, flock = [], fcntl.flock

    def stale_at_first(descriptor: int, kind: int) -> None:
        calls.append(kind)
        if len(calls) == 1:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        flock(descriptor, kind)

    monkeypatch.setattr(fcntl, "flock", stale_at_first)
    with hold(tmp_path / "run.lock") as descriptor:
        assert descriptor is not None
    (tmp_path / "run.lock").touch()
    calls.clear()
    assert not is_locked(tmp_path / "run.lock")


def test_a_lock_file_that_vanishes_each_time_is_a_sentence(tmp_path, monkeypatch):
    def stale(*_):
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    monkeypatch.setattr(fcntl, "flock", stale)
    with pytest.raises(BinaryViTError, match="says each time that it was removed"), hold(tmp_path / "run.lock"):
        pass


def test_a_place_without_room_for_a_lock_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(BinaryViTError, match="a part of its path is a file"), hold(tmp_path / "file" / "run.lock"):
        pass


def test_of_many_who_start_at_once_exactly_one_holds_the_lock(tmp_path):
    path, together, over = tmp_path / "run.lock", threading.Barrier(8), threading.Barrier(8)
    got = []

    def start() -> None:
        together.wait()
        with hold(path) as descriptor:
            got.append(descriptor is not None)
            over.wait()

    starters = [threading.Thread(target=start) for _ in range(8)]
    for starter in starters:
        starter.start()
    for starter in starters:
        starter.join()
    assert sorted(got) == [False] * 7 + [True] and not path.exists()


def test_a_lock_file_removed_between_opening_and_locking_is_made_again(tmp_path, monkeypatch):
    """Else two processes could each hold a file of that name."""
    path, flock = tmp_path / "run.lock", fcntl.flock

    def removed_at_first(descriptor: int, kind: int) -> None:
        monkeypatch.setattr(fcntl, "flock", flock)
        path.unlink()
        flock(descriptor, kind)

    monkeypatch.setattr(fcntl, "flock", removed_at_first)
    with hold(path) as first, hold(path) as second:
        assert first is not None and second is None
