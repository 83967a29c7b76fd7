"""Evaluations of one closure side by side, as far as the same place and from there on.

Each evaluation is a Python thread with torch modes of its own, and one of them runs at a time: a
thread goes on when it is told to, and hands back when it comes to a place or to its end. So they
are coroutines that need no change of the model, and run in a fixed order. What a closure keeps
outside itself while it runs must be its thread's own (a `ContextVar`): others run in between.

An evaluation may come to the places in any order and any number of times. The first one that is
not through says which place is next; those that wait there too go with it, in their order. So
before any evaluation passes a place for the n-th time the first one has, or is through.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack

import torch
from torch import Tensor
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext

from agzo.torch_calls.surroundings import Closure, Surroundings


class Abandoned(BaseException):
    """Unwinds an evaluation whose result nobody waits for any more."""


class Lockstep:
    """Runs evaluations in lockstep.

        with Lockstep(evaluations) as lockstep:
            while (place := lockstep.place) is not None:
                lockstep.pass_through(place)
        losses = lockstep.results

    Inside an evaluation `wait(place)` returns when it may pass. What an evaluation raises is raised
    by the call that ran it; the `with` ends the others.
    """

    def __init__(self, evaluations: Sequence[Closure]) -> None:
        setting = _thread_setting()
        self._evaluations = [_Evaluation(each, setting) for each in evaluations]

    def __enter__(self) -> Lockstep:
        try:
            for each in self._evaluations:
                each.resume()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    @property
    def place(self) -> int | None:
        """The place to pass next; None when all evaluations are through."""
        return next((each.place for each in self._evaluations if not each.done), None)

    @property
    def results(self) -> list[Tensor]:
        """What the evaluations returned, in their order; all must be through."""
        return [each.result() for each in self._evaluations]

    def pass_through(self, place: int) -> None:
        """Let those that wait at a place pass it, one after another, each to its next place."""
        for each in [each for each in self._evaluations if not each.done and each.place == place]:
            each.resume()

    def wait(self, place: int) -> bool:
        """Wait at a place; return False, at once, in a thread that is none of the evaluations."""
        mine = next((each for each in self._evaluations if each.is_current()), None)
        if mine is not None:
            mine.wait(place)
        return mine is not None

    def _end(self) -> None:
        for each in self._evaluations:
            each.abandon()


class _Evaluation:
    """One closure in a thread of its own that runs only between `resume` and its next `wait`."""

    def __init__(self, closure: Closure, setting: Callable[[], ExitStack]) -> None:
        self._closure, self._setting = closure, setting
        self._go, self._back = threading.Semaphore(0), threading.Semaphore(0)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._abandoned = False
        self._result: Tensor | None = None
        self._error: BaseException | None = None
        self.place: int | None = None
        self.done = False

    def is_current(self) -> bool:
        return threading.current_thread() is self._thread

    def resume(self) -> None:
        """Run as far as the next place, or to the end; raise what the closure raises."""
        if not self._thread.is_alive():
            self._thread.start()
        self._go.release()
        self._back.acquire()
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def wait(self, place: int) -> None:
        self.place = place
        self._back.release()
        self._go.acquire()
        if self._abandoned:
            raise Abandoned

    def result(self) -> Tensor:
        assert self.done
        assert self._result is not None
        return self._result

    def abandon(self) -> None:
        """End the thread, where it waits (or will, if an interrupt came while it ran)."""
        if self._thread.ident is None:
            return  # never begun
        self._abandoned = True
        self._go.release()
        self._thread.join()

    def _run(self) -> None:
        self._go.acquire()
        try:
            with self._setting():
                self._result = self._closure()
        except Abandoned:
            pass
        except BaseException as error:
            self._error = error
        finally:
            self.done = True
            self._back.release()


def _thread_setting() -> Callable[[], ExitStack]:
    """Take what torch keeps for each thread here; the result sets it in another thread.

    Taken are recording of gradients, autocast, a default device, the number of CPU threads, and the
    CUDA stream. Other torch modes that are active around a step are not: they see none of its
    evaluations.
    """
    grad, threads = torch.is_grad_enabled(), torch.get_num_threads()
    stream = torch.cuda.current_stream() if torch.cuda.is_initialized() else None
    around = Surroundings()
    chosen = any(isinstance(mode, DeviceContext) for mode in _get_current_function_mode_stack())
    device = torch.get_default_device() if chosen else None

    def make() -> ExitStack:
        torch.set_num_threads(threads)
        stack = ExitStack()
        stack.enter_context(torch.set_grad_enabled(grad))
        if stream is not None:
            stack.enter_context(torch.cuda.stream(stream))
        if device is not None:
            stack.enter_context(device)
        stack.enter_context(around.entered())
        return stack

    return make
