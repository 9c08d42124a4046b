"""What a worker does with a point: runs it in a process of its own, where JAX begins anew, with its share of the cores.

The worker's own process stays free to hear that it should stop, and outlives a crash to tell of it.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from jaxdfl.launchers.fleet import End, Point

THREADS = ("NPROC", "OMP_NUM_THREADS")  # what XLA goes by (it takes one for each of its devices at least), and NumPy
TAIL = 4096  # bytes of a log that are looked at for its last line


class Work:
    """Runs a point until its process ends. With `threads`, it takes so many, not one for each core."""

    process: subprocess.Popen | None = None

    def __call__(self, point: Point, threads: int | None = None) -> End:
        share = {} if threads is None else dict.fromkeys(THREADS, str(threads))
        with (
            open(point.log, "ab") as log,
            # Its input is a pipe that says nothing, and ends when this process does.
            subprocess.Popen(
                [sys.executable, *point.python], stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT,
                cwd=point.directory, env=share | os.environ,
            ) as self.process,
            _terminated_with(self.process),
        ):  # fmt: skip
            while self.process.returncode is None:
                try:  # only with a time does Python look up now and then, and sees that Ray cancels
                    self.process.wait(timeout=3600)
                except subprocess.TimeoutExpired:
                    pass
                except KeyboardInterrupt:
                    self.process.terminate()
            return End(self.process.returncode, last_line(point.log))

    def stop(self) -> None:
        """Asks the process to save and end, and returns when it has. Signal handlers may call this."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(ChildProcessError):
                os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT)  # Popen.wait would wait for itself


@contextlib.contextmanager
def _terminated_with(process: subprocess.Popen) -> Iterator[None]:
    """SIGTERM goes on to the process; but outside the main thread, where Python lets nobody handle signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def last_line(path: str) -> str:
    """The last line of a file that is not empty."""
    with Path(path).open("rb") as file:
        file.seek(max(0, Path(path).stat().st_size - TAIL))
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    return lines[-1].removeprefix("error: ") if lines else ""
