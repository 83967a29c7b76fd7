"""The lock of a folder: one process at a time, on one machine or on many that share the disk.

    <folder>/.lock    {"host", "pid", "since", "birth", "place", "token"}

Created in one atomic step, touched every `BEAT` seconds, removed at the end. One that a dead
process left behind is *stale* and taken over: on the same machine when the process is gone, from
another when it was not touched for `STALE` seconds (by the clock of the disk's server, which they
share).
Taking over is serialised by flock on <folder>/.lock.guard; where the file system has no flock, two
processes could take over the same stale lock, and the one that lost it stops at its next beat.
"""

import fcntl
import json
import os
import socket
import sys
import threading
import time
import uuid
from _thread import interrupt_main
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from experiments.config.errors import BadInput

NAME, GUARD = ".lock", ".lock.guard"
BEAT, STALE = 20.0, 180.0  # seconds


class Busy(BadInput):
    """Another process holds the folder."""


@dataclass(frozen=True)
class Holder:
    """The process that holds a lock."""

    host: str
    pid: int
    since: str
    birth: int  # of the process, in the kernel's ticks: a process id comes again, this does not
    place: str  # machine since its last boot, and name space: where `pid` means something
    token: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"


UNKNOWN = Holder("an unknown host", 0, "?", 0, "", "")  # a lock file that cannot be read


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Hold a folder for this process; raises `Busy` if another one does."""
    path = folder / NAME
    since = datetime.now().astimezone().isoformat(timespec="seconds")
    birth = _birth(os.getpid()) or 0
    mine = Holder(socket.gethostname(), os.getpid(), since, birth, _place(), uuid.uuid4().hex)
    _take(path, mine)
    done = threading.Event()
    beat = threading.Thread(target=_beat, args=(path, mine, done), daemon=True)
    beat.start()
    try:
        yield
    finally:
        done.set()
        beat.join()
        if _read(path) == mine:
            path.unlink(missing_ok=True)


def holder(folder: Path) -> Holder | None:
    """Return the living process that holds a folder, None if there is none."""
    path = folder / NAME
    held = _read(path)
    return None if held is None or _stale(path, held) else held


def died(folder: Path) -> Holder | None:
    """Return the dead process that left a folder locked, None if there is none."""
    path = folder / NAME
    held = _read(path)
    return held if held is not None and _stale(path, held) else None


def _take(path: Path, mine: Holder) -> None:
    with path.with_name(GUARD).open("w") as guard:
        with suppress(OSError):  # a file system without flock
            fcntl.flock(guard, fcntl.LOCK_EX)
        held = _read(path)
        if held is not None:
            if not _stale(path, held):
                raise Busy(f"{path.parent}: another process is running this run: {held}")
            path.unlink(missing_ok=True)
        try:
            with path.open("x", encoding="utf-8") as file:
                file.write(json.dumps(asdict(mine)))
        except FileExistsError as error:
            raise Busy(f"{path.parent}: another process has just taken this run") from error
        except OSError:  # the disk is full, say: half a lock must not stay
            path.unlink(missing_ok=True)
            raise


def _beat(path: Path, mine: Holder, done: threading.Event) -> None:
    while not done.wait(BEAT):
        held = _read(path)
        if held == mine:
            with suppress(OSError):
                os.utime(path)
        elif held not in (None, UNKNOWN):  # unreadable for a moment: the disk, not a thief
            print(f"{path}: taken over by {held}; stopping", file=sys.stderr, flush=True)
            interrupt_main()
            return


def _read(path: Path) -> Holder | None:
    try:
        return Holder(**json.loads(path.read_text(encoding="utf-8")))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, TypeError):
        return UNKNOWN


def _stale(path: Path, held: Holder) -> bool:
    if held.place and held.place == _place():
        return _birth(held.pid) != held.birth
    guard = path.with_name(GUARD)
    try:
        touched = path.stat().st_mtime
    except FileNotFoundError:
        return True
    try:
        os.utime(guard)  # what time it is for the server of the disk
        now = guard.stat().st_mtime
    except OSError:
        now = time.time()
    return now - touched > STALE


def _birth(pid: int) -> int | None:
    """Return when a process was started, None if it is gone or a zombie."""
    try:
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if state in "ZX" else int(rest[18])
    except OSError:
        pass
    if Path("/proc/self/stat").exists():
        return None
    try:
        os.kill(pid, 0)  # a system without /proc
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return 0


def _place() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()
