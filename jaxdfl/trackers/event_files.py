"""TensorBoard: event files under RUN/tensorboard/, a folder for each run; `tensorboard --logdir RUN` shows them.

A run that is gone on with is written anew and its earlier file removed, with a mark by which a TensorBoard that watches
drops what it has read. TensorBoard holds float32: counts above 2^24 are rounded.

tensorboardX's own writer hands events to a thread; where the disk is full, that thread ends and the next events wait
for it for ever. So records are written here, by its `RecordWriter`, which raises.
"""

import json
import re
import time
from typing import Any

from tensorboardX import RecordWriter  # pyright: ignore[reportMissingImports]
from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore
from tensorboardX.proto.summary_pb2 import Summary  # pyright: ignore
from tensorboardX.summary import text  # pyright: ignore[reportMissingImports]

from jaxdfl.trackers import Points, Run


class EventFile:
    """One run."""

    def __init__(self, run: Run):
        name = re.sub(r"[^\w.,@= +-]", "_", f"{run.number:03d} {run.name}")
        folder = run.folder / "tensorboard" / name
        folder.mkdir(parents=True, exist_ok=True)
        for earlier in folder.glob("events.out.tfevents.*"):
            earlier.unlink()
        self.writer = RecordWriter(str(folder / f"events.out.tfevents.{time.time_ns()}"))  # read in the order of names
        self._write(file_version="brain.Event:2")
        self._write(step=0, session_log=SessionLog(status=SessionLog.START))
        lines = (f"    {key} = {json.dumps(value)}" for key, value in run.config.items())
        self._write(step=0, summary=text("settings", "\n".join(lines)))
        self.writer.flush()

    def log(self, points: Points) -> None:
        """Each round is an event; on the disk when this returns."""
        for round, values in points:
            found = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
            self._write(step=round, summary=Summary(value=found))
        self.writer.flush()

    def close(self, whole: bool) -> None:
        """TensorBoard knows no end of a run."""
        self.writer.close()

    def _write(self, **what: Any) -> None:
        self.writer.write(Event(wall_time=time.time(), **what).SerializeToString())


begin = EventFile
