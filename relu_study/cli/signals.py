"""How the command ends when it is told to: by SIGTERM, as at the end of a job's time, no otherwise than by Ctrl-C."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

STOPS = (signal.SIGINT, signal.SIGTERM)


class StopSignal(KeyboardInterrupt):
    """The command was told to end; `status` is what it exits with: 128 and the signal's number."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.status = 128 + number


@contextlib.contextmanager
def handle_signals() -> Iterator[None]:
    """Raise Stopped at the first of these signals, and end at once at the second. One that is ignored stays so (nohup)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in STOPS}
    minded = [number for number, handler in before.items() if handler is not signal.SIG_IGN]

    def at_once(number: int, _: FrameType | None) -> None:
        os._exit(128 + number)

    def first(number: int, _: FrameType | None) -> None:
        for each in minded:
            signal.signal(each, at_once)
        raise StopSignal(number)

    for number in minded:
        signal.signal(number, first)
    try:
        yield
    finally:
        for number in minded:
            signal.signal(number, before[number])
