"""The host's memory: what is free goes back to the system."""

import ctypes
from contextlib import suppress


def return_freed() -> None:
    """Has glibc give back what is free by now, which takes some milliseconds; elsewhere nothing happens.

    By itself it keeps blocks of up to 32 MiB for later, and the leaves of stacked states fit no later ones.
    """
    with suppress(OSError, AttributeError, TypeError):  # no glibc: no such function, or no library of that kind at all
        ctypes.CDLL(None).malloc_trim(0)
