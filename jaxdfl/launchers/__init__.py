"""The points of a sweep on the workers of a cluster, through engines that are there for it: Ray, and Slurm by submitit.

    fleet.py       the records, and the loop: begin, watch, begin again where a worker died
    worker.py      what a worker does: one point, in a process of its own
    __main__.py    that process
    on_ray.py on_slurm.py    engines; each is imported when it is asked for, and so is what it stands on

All machines see the same files, where the same paths lead to them.
"""

from jaxdfl.launchers.fleet import End, Engine, Point, launch

__all__ = ["End", "Engine", "Point", "launch"]
