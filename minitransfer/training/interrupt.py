"""Ctrl-C as a request: the step is finished and saved first."""
from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from . import ranks


class Interrupt:
    """Has the user asked to stop? A second Ctrl-C does not ask, unless there are several ranks: `torchrun` passes it on to each, and ends what does not stop.

    `agreed` is for the loop to set: the signal comes to the ranks at different times, and they have to stop at the same step.
    """

    def __init__(self) -> None:
        self.pressed = self.agreed = False

    @property
    def asked(self) -> bool:
        return bool(self.pressed if ranks.world() == 1 else self.agreed)

    def handle(self, number: int, frame: FrameType | None) -> None:
        if self.pressed and ranks.world() == 1:
            raise KeyboardInterrupt
        self.pressed = True


@contextmanager
def interruptible() -> Iterator[Interrupt]:
    """Turn the first Ctrl-C into `.asked`. Only the main thread receives signals, and a process started to ignore it (nohup) goes on ignoring it."""
    interrupt = Interrupt()
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGINT) in (signal.SIG_IGN, None):
        yield interrupt
        return
    before = signal.signal(signal.SIGINT, interrupt.handle)
    try:
        yield interrupt
    finally:
        signal.signal(signal.SIGINT, before)
