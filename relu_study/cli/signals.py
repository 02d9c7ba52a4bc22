"""Signal handling: SIGTERM, for example at a job's time limit, stops a command like Ctrl-C."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopSignal(KeyboardInterrupt):
    """Interrupt raised by a signal. `status` is the exit status: 128 + the number of the signal."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.status = 128 + number


@contextlib.contextmanager
def handle_signals() -> Iterator[None]:
    """Raise StopSignal at the first signal, and exit at the second. Ignored signals stay ignored, as under nohup.

    Other threads than the main thread change no handler.
    """
    if threading.current_thread() is not threading.main_thread():  # Python sets signal handlers only in the main thread
        yield
        return
    previous = {number: signal.getsignal(number) for number in SIGNALS}
    handled = [number for number, handler in previous.items() if handler is not signal.SIG_IGN]

    def exit_now(number: int, _: FrameType | None) -> None:
        os._exit(128 + number)  # the cleanup after the first signal may be blocked

    def stop(number: int, _: FrameType | None) -> None:
        for other in handled:
            signal.signal(other, exit_now)
        raise StopSignal(number)

    for number in handled:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in handled:
            signal.signal(number, previous[number])
