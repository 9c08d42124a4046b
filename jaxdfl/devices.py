"""Which devices the clients are spread over.

On accelerators all of them. On a CPU one XLA device a core: a client's products are too small to keep several cores busy
(measured, `benchmarks/`), and every core then works through clients of its own. The number of CPU devices is fixed when
jax starts, so `start` comes before anything is computed.
"""

import os

import jax
from jax.sharding import Mesh

from jaxdfl.settings import Settings
from jaxdfl.simulate.clients import clients_mesh

MOST = 8  # CPU devices by default: each holds a copy of the frozen weights


def start(settings: Settings) -> None:
    """Gives a CPU as many devices as the settings ask for, if jax has not started yet."""
    try:
        jax.config.update("jax_num_cpu_devices", settings.devices or min(_cores(), settings.clients, MOST))
    except RuntimeError:
        return  # it runs already, and keeps the devices that it has


def mesh(settings: Settings) -> Mesh | None:
    """The devices that share the clients; None where one does it all.

    Raises:
        ValueError: there are not as many devices as the settings ask for.
    """
    there = jax.device_count()
    if settings.devices is not None and settings.devices > there:
        raise ValueError(f"`--devices` must be at most {there}, which this machine has, got {settings.devices}.")
    count = min(settings.devices or there, settings.clients)
    return clients_mesh(count) if count > 1 else None


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
