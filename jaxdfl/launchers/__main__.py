"""The process in which a worker runs a point: `python -m jaxdfl.launchers`, with the arguments of `jaxdfl run`."""

import os
import signal
import sys
import threading

from jaxdfl.exit_codes import AT_ONCE


def end_with_the_worker() -> None:
    """Ends this process when the worker's does, even if it is killed: another worker will go on with the run."""
    os.read(sys.stdin.fileno(), 1)
    os._exit(AT_ONCE)


if __name__ == "__main__":
    for number in (signal.SIGUSR1, signal.SIGUSR2):  # Slurm sends them to all processes of a job; the worker answers
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=end_with_the_worker, daemon=True).start()
    from jaxdfl import experiment
    from jaxdfl.presets import PRESETS

    sys.exit(experiment.main(PRESETS, sys.argv[1:], command=("jaxdfl", "run")))
