"""Points as jobs of Slurm, through submitit: one job for a point, and as many more as it takes."""

# pyright: reportMissingImports=false

import subprocess
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

import submitit
from submitit.core.utils import FailedJobError, FailedSubmissionError, UncompletedJobError
from submitit.helpers import DelayedSubmission

from jaxdfl.exit_codes import FAILED
from jaxdfl.launchers.fleet import End, Point
from jaxdfl.launchers.worker import Work

TIMEOUTS = 1000  # of a job: each has done its minutes, so there is no end to them but the end of the run
SHARED = (
    "mem_gb",
    "nodes",
    "tasks_per_node",
    "name",
    "stderr_to_stdout",
)  # settings that submitit knows on all clusters


class Job(Work):
    """A point in a job. At its time limit, or when it is preempted, its run saves, and the job is queued again."""

    def checkpoint(self, point: Point) -> DelayedSubmission:
        """What submitit queues; it calls this on SIGUSR2, a while before Slurm kills the job."""
        self.stop()
        return DelayedSubmission(Job(), point)


class Slurm:
    """An engine. Submitit keeps its scripts, pickles and logs in `folder`.

    Args:
        minutes: after which a job saves and is queued again.
        options: of sbatch, as submitit spells them; `cluster` "local" runs jobs as processes of this machine.

    Raises:
        ValueError: there is no Slurm here, or no such option.
    """

    def __init__(
        self, folder: Path, *, room: int | None, cpus: int | None, gpus: int, minutes: int,
        options: Mapping[str, str | int],
    ):  # fmt: skip
        given = dict(options)
        cluster = str(given.pop("cluster", "slurm"))
        self.room, self.stopping = room, False
        self.running: dict[Point, submitit.Job] = {}
        try:
            self.executor = submitit.AutoExecutor(folder, cluster, slurm_max_num_timeout=TIMEOUTS)
            self.executor.update_parameters(
                **{"name": "jaxdfl", "timeout_min": minutes, "cpus_per_task": cpus, "gpus_per_node": gpus or None},
                **{key if key in SHARED else f"slurm_{key}": value for key, value in given.items()},
            )
        except (AssertionError, NameError, RuntimeError, ValueError, TypeError) as error:
            raise ValueError(f"`--launcher slurm`: {error}") from None

    def start(self, point: Point) -> str:
        """Submits a point."""
        try:
            job = self.executor.submit(Job(), point)
        except (FailedSubmissionError, subprocess.SubprocessError) as error:
            raise OSError(f"it could not be submitted: {error}") from error
        self.running[point] = job
        return f", job {job.job_id}"

    def ended(self) -> Iterable[tuple[Point, End]]:
        """Points whose jobs are over, as their results and now and then sacct say."""
        over = [point for point, job in self.running.items() if job.done(force_check=self.stopping)]
        for point in over:
            yield point, _end(self.running.pop(point))
        if not over:
            time.sleep(1)

    def stop(self) -> None:
        """Cancels all jobs; Slurm's SIGTERM lets those that run save, for as long as its KillWait."""
        self.stopping = True
        for job in self.running.values():
            job.cancel(check=False)

    def close(self) -> None:
        """Nothing is held."""


def _end(job: submitit.Job) -> End:
    try:
        return job.result()
    except FailedJobError as error:  # the worker's own; it is an UncompletedJobError too
        trace = str(error).partition("\n" + "-" * 22 + "\nYou can")[0]
        return End(FAILED, trace.strip().splitlines()[-1])
    except UncompletedJobError:
        return End(None, f"job {job.job_id} left no result (state {job.state})")
