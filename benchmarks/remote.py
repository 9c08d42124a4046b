"""A worker process as its parent sees it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.systems import SYSTEMS
from benchmarks.worker import Result

ROOT = Path(__file__).parents[1]


class Remote:
    """A system at work in a process of its own, idle between `go` and `go`.

    What it and its libraries say goes to `log`.

    Raises (every method):
        RuntimeError: the process has ended; with the last lines of its log.
    """

    def __init__(self, name: str, workload: Path, log: Path, **options: Any):
        system = SYSTEMS[name]
        words = [system.interpreter(sys.executable), "-m", "benchmarks.worker", name, str(workload)]
        paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        self.name, self.log = name, log
        with log.open("w") as out:
            self.process = subprocess.Popen(
                [*words, json.dumps(options)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=out, text=True,
                env={**os.environ, "PYTHONPATH": paths, **system.environment},
            )  # fmt: skip

    def hear(self) -> dict[str, Any]:
        """The next reply: that of the setup, of a turn, or at the end."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            last = "\n".join(self.log.read_text(errors="replace").splitlines()[-12:])
            raise RuntimeError(f"{self.name} has ended before its time:\n{last}")
        return json.loads(line)

    def go(self) -> dict[str, Any]:
        """A turn; its reply has `seconds` and `peak_mib`."""
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        return self.hear()

    def end(self) -> Result:
        """Lets a system finish that has had all its turns."""
        found = self.go()
        self.process.wait()
        return Result(**found)

    def __enter__(self) -> "Remote":
        return self

    def __exit__(self, *_: object) -> None:
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()
        try:
            self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
