"""Points as Ray tasks, on a Ray of this machine's own or on a cluster that is there."""

# pyright: reportMissingImports=false

import logging
import os
from collections.abc import Iterable

import ray
from ray.exceptions import RayError, RayTaskError

from jaxdfl.exit_codes import FAILED
from jaxdfl.launchers.fleet import End, Point
from jaxdfl.launchers.worker import Work

WORKERS = 2  # of a Ray of our own


class Ray:
    """An engine. Each task takes so many cores and GPUs; Ray hands them out, one worker process to a task.

    Args:
        address: of a cluster; None starts a Ray here, with `room` workers among which the cores are divided.

    Raises:
        ValueError: there is no cluster at that address, or no such GPU here.
    """

    def __init__(self, address: str | None, *, room: int | None, cpus: int | None, gpus: int):
        if address is None:
            room = room or WORKERS
            cpus = cpus or max(1, (os.cpu_count() or 1) // room)
        self.room, self.cpus = room, cpus or 1
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        ours = {"num_cpus": (room or 1) * self.cpus, "include_dashboard": False} if address is None else {}
        try:
            ray.init(address or "local", log_to_driver=False, logging_level=logging.ERROR, **ours)
        except (OSError, RuntimeError, ValueError) as error:
            raise ValueError(f"`--ray-address` {address or 'of this machine'}: {error}") from None
        if address is None and gpus > ray.cluster_resources().get("GPU", 0):  # Ray would wait for more to come
            ray.shutdown()
            raise ValueError(f"`--gpus` {gpus}: this machine has not so many.")
        # A worker process for each task, as JAX in it was; and no try of Ray's own, of which nobody would be told.
        self.task = ray.remote(num_cpus=self.cpus, num_gpus=gpus, max_calls=1, max_retries=0)(_work)
        self.running: dict[ray.ObjectRef, Point] = {}

    def start(self, point: Point) -> str:
        """Hands a point to Ray."""
        self.running[self.task.remote(point, self.cpus)] = point
        return ""

    def ended(self) -> Iterable[tuple[Point, End]]:
        """Points whose tasks have ended, or whose workers Ray has lost."""
        ready, _ = ray.wait(list(self.running), timeout=1)
        for reference in ready:
            yield self.running.pop(reference), _end(reference)

    def stop(self) -> None:
        """Cancels all tasks: those that wait are dropped, those that run are interrupted."""
        for reference in self.running:
            ray.cancel(reference)

    def close(self) -> None:
        """Leaves the cluster; a Ray of our own ends."""
        ray.shutdown()


def _work(point: Point, threads: int) -> End:
    return Work()(point, threads)


def _end(reference: "ray.ObjectRef") -> End:
    try:
        return ray.get(reference)
    except RayTaskError as error:  # such as a directory that the machine does not have
        return End(FAILED, f"{type(error.cause).__name__}: {error.cause}")
    except RayError as error:
        return End(None, str(error).strip().partition("\n")[0])
