"""Stopping between two steps: a first signal asks for it, a second Ctrl-C or SIGTERM does it.

SIGINT is Ctrl-C, SIGTERM a scheduler's or a shutdown's: both are for good. SIGUSR2 is what a
cluster sends some time before it takes the machine away (time-out, preemption), so that the job
goes back into the queue; a SIGTERM that follows it is the same wish and must not cut off saving.
The exit code of a stopped run is the shell's, 128 + the signal.

torchrun sends SIGTERM to all processes as soon as one has ended, and so to one that is just about
to say why: on the command line (`told_first`) a signal waits until a failed run has said its line.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, ClassVar, Self

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)


class Interrupted(KeyboardInterrupt):
    """The run was asked to stop; the message says where it can go on (ends a sweep as well)."""

    def __init__(self, message: str = "", number: int = signal.SIGINT) -> None:
        super().__init__(message)
        self.number = number

    @property
    def exit_code(self) -> int:
        """130 for SIGINT, 143 for SIGTERM, 140 for SIGUSR2."""
        return 128 + self.number


class StopRequest:
    """Within its context, turns a signal into `requested`; handlers are put back after it."""

    untold: ClassVar[list["StopRequest"] | None] = None  # that ended with an error; see told_first

    def __init__(self) -> None:
        self.requested: int | None = None  # the signal that asked for it
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # others cannot set handlers
            self._before = {number: signal.signal(number, self._ask) for number in SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        if error is not None and StopRequest.untold is not None:
            StopRequest.untold.append(self)
        else:
            self.put_back()

    def put_back(self) -> None:
        """Let signals do again what they did before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def check(self) -> None:
        """Raise `Interrupted` if a stop was asked for."""
        if self.requested is not None:
            raise Interrupted(number=self.requested)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        again = number == signal.SIGINT or number == self.requested == signal.SIGTERM
        if self.requested is not None and again:
            signal.default_int_handler(number, frame)
        self.requested = self.requested or number


@contextmanager
def told_first() -> Iterator[None]:
    """Within, let the signals after a run's error wait until `told`, or the end of the context."""
    StopRequest.untold = []
    try:
        yield
    finally:
        _release()
        StopRequest.untold = None


def told() -> int | None:
    """Go on after a run, its error told if there was one; return a signal that came with that."""
    numbers = [each.requested for each in _release() if each.requested is not None]
    return numbers[0] if numbers else None


def _release() -> list[StopRequest]:
    ended, StopRequest.untold = StopRequest.untold or [], []
    for each in reversed(ended):
        each.put_back()
    return ended


@contextmanager
def raising_at_signals(message: str) -> Iterator[None]:
    """Within, let the first signal raise `Interrupted`, and a Ctrl-C after it once more.

    For what has its runs in other processes: while they save, a further SIGTERM is the same wish.
    """

    def first(number: int, frame: FrameType | None) -> None:
        for each in SIGNALS:
            signal.signal(each, again if each == signal.SIGINT else lambda *_: None)
        raise Interrupted(message, number)

    def again(number: int, frame: FrameType | None) -> None:
        raise Interrupted("stopped at once; checkpoints are kept", number)

    before = {number: signal.signal(number, first) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
