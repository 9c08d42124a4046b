"""Several processes that are one run: how they find each other and agree, and which of them writes.

The same command is started once for each process, with `--distributed`. All of them prepare and compute the same; the
run's devices are those of all of them. The first keeps the run folder. The others keep one of their own in a temporary
place, which nobody reads, so that little else need know of them. What they must agree on (whether to stop, from which
states to go on) is asked here. Where there is one process, all of this is as if it were not there.
"""

import json
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from jaxdfl.resume import first_difference
from jaxdfl.settings import Settings
from jaxdfl.trees import on_words

DISTRIBUTED = "--distributed"
ADDRESS, COUNT, NUMBER = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"  # JAX itself reads the first
PATIENCE = 300  # seconds, for all to come


class Elsewhere(RuntimeError):
    """Another process refuses, and has said why."""


def join(patience: int = PATIENCE) -> None:
    """Waits for the other processes; before JAX begins. Who has joined has.

    Raises:
        ValueError: it is not known who they are, or the first does not come. (Where another does not, JAX ends us.)
    """
    if jax.distributed.is_initialized():
        return
    count, number = (_whole(name) for name in (COUNT, NUMBER))
    if number and ADDRESS in os.environ:
        _reach(os.environ[ADDRESS], patience)  # JAX would abort the process where it cannot
    try:
        jax.distributed.initialize(num_processes=count, process_id=number, initialization_timeout=patience)
    except (ValueError, TypeError) as error:  # something is not given, and nothing here tells of it
        raise ValueError(
            f"`{DISTRIBUTED}`: {error} Set {ADDRESS} (HOST:PORT of the first process), {COUNT} and {NUMBER} (from 0) "
            "in the environment of every process; on TPUs, with Slurm and Open MPI they are found."
        ) from None
    except RuntimeError as error:
        raise ValueError(f"`{DISTRIBUTED}`: {str(error).splitlines()[0]}") from None


def _reach(address: str, patience: int) -> None:
    """Returns when the first process listens."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise ValueError(f"{ADDRESS} in the environment must be HOST:PORT, got {address!r}.")
    until = time.monotonic() + patience
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() > until:
                raise ValueError(
                    f"`{DISTRIBUTED}`: no process listens at {address}, waited {patience} s ({error}); start the one "
                    f"with {NUMBER}=0 there."
                ) from None
        time.sleep(0.5)


def is_first() -> bool:
    """Whether this process keeps the run folder, and talks."""
    return jax.process_index() == 0


def of_another(settings: Settings, scratch: str) -> Settings:
    """The settings of a process that is not the first: the same run, of which nothing is kept."""
    return replace(settings, out=scratch, overwrite=False, resume=False, checkpoints=False, track=())


def any_of(mine: bool) -> bool:
    """Whether it holds in any process; all of them must ask."""
    return mine if jax.process_count() == 1 else bool(multihost_utils.process_allgather(np.asarray(mine)).any())


@contextmanager
def together() -> Iterator[None]:
    """What is done inside is done by all processes or refused by all.

    Raises:
        Elsewhere: another one has refused.
    """
    try:
        yield
    except (ValueError, OSError, RuntimeError):
        any_of(True)
        raise
    if any_of(False):
        raise Elsewhere("another process of this run refuses, and says why.")


def require_alike(mine: Mapping[str, Any], where: str = "--") -> None:
    """Refuses, in all processes, where one differs from the first in what is to be the same.

    Raises:
        ValueError: names the first difference, and both values.
        Elsewhere: it is another process that differs.
    """
    theirs = from_first(mine)
    with together():
        found = first_difference(theirs, json.loads(json.dumps(mine)), where)
        if found is not None:
            raise ValueError(
                f"process {jax.process_index()} has {found[0]} = {found[2]}, the first one {found[1]}; start all of "
                "them with the same command and data."
            )


def from_first(value: Any) -> Any:
    """What the first process has, of JSON's own types."""
    if jax.process_count() == 1:
        return value
    said = json.dumps(value).encode()
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(said))))
    letters = np.frombuffer(said[:size].ljust(size), np.uint8)
    return json.loads(multihost_utils.broadcast_one_to_all(letters).tobytes())


def states_from_first(states: Any) -> Any:
    """Arrays of the first process, on all of them; of the same shapes there."""
    if jax.process_count() == 1:
        return states
    sent = partial(on_words, lambda x: jnp.asarray(multihost_utils.broadcast_one_to_all(np.asarray(x))))
    return jax.tree.map(sent, states)


def _whole(name: str) -> int | None:
    text = os.environ.get(name)
    if text is not None and not text.isdecimal():
        raise ValueError(f"{name} in the environment must be a whole number, got {text!r}.")
    return None if text is None else int(text)
