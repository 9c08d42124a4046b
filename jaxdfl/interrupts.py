"""SIGINT and SIGTERM ask a run to stop at its next stop, where it can be saved; a second SIGINT ends it at once.

Python runs signal handlers between its own instructions, and a compiled program keeps it from them for minutes. So a
thread listens where the interpreter writes each signal as it arrives.
"""

import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from jaxdfl.exit_codes import AT_ONCE

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def interruptible(asked: Callable[[], None]) -> Iterator[Callable[[], bool]]:
    """Yields () -> whether a signal has asked to stop; `asked` is called once, from another thread, when it does.

    Outside the main thread, where Python lets nobody handle signals, none are.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    stop = threading.Event()
    heard, told = socket.socketpair()
    told.setblocking(False)

    def listen() -> None:
        while number := heard.recv(1):
            if stop.is_set() and number[0] == signal.SIGINT:
                os._exit(AT_ONCE)
            if not stop.is_set() and number[0] in SIGNALS:
                stop.set()
                asked()

    def nothing(*_: object) -> None:
        """Python calls this late; what matters has been done by then."""

    before = {each: signal.signal(each, nothing) for each in SIGNALS}
    wakeup = signal.set_wakeup_fd(told.fileno(), warn_on_full_buffer=False)
    listener = threading.Thread(target=listen, daemon=True, name="signals")
    listener.start()
    try:
        yield stop.is_set
    finally:
        signal.set_wakeup_fd(wakeup)
        for each, handler in before.items():
            signal.signal(each, handler)
        told.close()  # the listener reads an end, and ends
        listener.join()
        heard.close()


def say_stopping() -> None:
    """The usual `asked`."""
    print(
        "stopping at the next evaluated round, which is saved; Ctrl-C again ends at once.", file=sys.stderr, flush=True
    )
