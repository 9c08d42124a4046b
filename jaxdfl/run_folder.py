"""The run folder: everything a run leaves behind, in files that a later program can read on its own.

    manifest.json    settings, models, data, environment; written whole or not at all
    metrics.jsonl    one row per run and evaluated round; messages and bytes are totals since round 0
    rounds.jsonl     one row per run and round; messages and bytes are those of that round alone
    checkpoints/     see `jaxdfl.checkpoint`; a folder for each run
    summary.*, figures/    see `jaxdfl.report`
    tensorboard/, wandb/    see `jaxdfl.trackers`
    .lock            held by the process that writes

`round` is the number of rounds completed, so 0 is before training. A row is strict JSON on one line with its keys in
the order given; a number that is not finite is written as null, since JSON has no word for it.
"""

import errno
import importlib.metadata
import json
import math
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
from filelock import FileLock, Timeout

from jaxdfl import __version__

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "transformers", "datasets", "safetensors", "numpy")
WRITTEN = (
    "metrics.jsonl", "rounds.jsonl", "summary.csv", "summary.md", "study.md", "figures", "checkpoints", "tensorboard",
    "wandb", "manifest.json",
)  # fmt: skip
ROWS = ("metrics.jsonl", "rounds.jsonl")
IDENTITY = ("method", "topology", "seed", "learning_rate")  # what tells a run's rows from another's; the last may lack
LOCK = ".lock"
WITHOUT_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)  # what file systems say that know none


class RunFolder:
    """A folder that one run may write to, and one process at a time.

    With `resume`, a folder that holds a run of ours stays as it is, and `resumed` is true.

    Raises:
        ValueError: the folder holds something, and neither `overwrite` nor `resume` is on; or one is on, and the folder
            holds files but no manifest of ours, so that it may be the wrong folder; or another process writes to it.
            Overwriting removes what a run wrote (`WRITTEN`), and nothing else.
    """

    def __init__(self, path: str | os.PathLike[str], overwrite: bool = False, resume: bool = False):
        self.path = self.check(path, overwrite, resume)
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = _locked(self.path)
        self.check(path, overwrite, resume)  # since another process may have come and gone before the lock was ours
        self.resumed = resume and _is_ours(self.path / "manifest.json")
        if not self.resumed:
            for name in WRITTEN:  # the manifest last: until then the folder is recognised
                _remove(self.path / name)

    @staticmethod
    def check(path: str | os.PathLike[str], overwrite: bool = False, resume: bool = False) -> Path:
        """The path, if a run may write there; refuses as the constructor does, and changes nothing."""
        path = Path(path)
        if path.exists() and not path.is_dir():
            raise ValueError(f"{path} is a file; name a folder for the run.")
        if path.exists() and any(each.name != LOCK for each in path.iterdir()):
            if not (overwrite or resume):
                raise ValueError(
                    f"{path} is not empty; name another folder, go on with its run (--resume), or replace it "
                    "(--overwrite)."
                )
            if not _is_ours(path / "manifest.json"):
                raise ValueError(
                    f"{path} holds files but no manifest.json of jaxdfl; empty it by hand, if it is right."
                )
        return path

    def close(self) -> None:
        """Lets other processes write here."""
        self._lock.release(force=True)

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints belong; made when the first is saved."""
        return self.path / "checkpoints"

    def write_manifest(self, manifest: Mapping[str, Any]) -> None:
        """Writes (or replaces, at one stroke) manifest.json, led by the version of jaxdfl."""
        text = json.dumps(strict({"jaxdfl": __version__, **manifest}), indent=2, ensure_ascii=False, allow_nan=False)
        _replace(self.path / "manifest.json", text + "\n")

    def log_metrics(self, row: Mapping[str, Any]) -> None:
        """Appends a row to metrics.jsonl; on the disk when this returns."""
        self._append("metrics.jsonl", row)

    def log_round(self, row: Mapping[str, Any]) -> None:
        """Appends a row to rounds.jsonl; on the disk when this returns."""
        self._append("rounds.jsonl", row)

    def rows(self, name: str, run: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The rows of one run in one of the files; none where there is no file."""
        rows = read_rows(self.path / name, torn=True) if (self.path / name).exists() else []
        return of_run(rows, run)

    def sync(self) -> None:
        """Returns when the rows would outlive a loss of power."""
        for name in ROWS:
            if (self.path / name).exists():
                with open(self.path / name, "rb+") as file:
                    os.fsync(file.fileno())

    def keep_rows(self, wanted: Callable[[Mapping[str, Any]], bool]) -> None:
        """Drops all other rows from both files, each at one stroke, and with them a last line that was cut off."""
        for name in ROWS:
            lines = list(_lines(self.path / name)) if (self.path / name).exists() else []
            kept = "".join(line for line, row in lines if row is not None and wanted(row))
            if kept != "".join(line for line, _ in lines):
                _replace(self.path / name, kept)

    def _append(self, name: str, row: Mapping[str, Any]) -> None:
        with open(self.path / name, "a", encoding="utf-8") as file:  # opened for each row, so each is flushed
            file.write(json.dumps(strict(row), ensure_ascii=False, allow_nan=False) + "\n")


def read_manifest(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """The manifest of a run folder.

    Raises:
        ValueError: the folder holds no manifest of ours.
    """
    path = Path(folder) / "manifest.json"
    if not _is_ours(path):
        raise ValueError(
            f"{path} is missing or not a manifest of jaxdfl; name the folder of a finished or running run."
        )
    return json.loads(path.read_text(encoding="utf-8"))


def read_rows(path: str | os.PathLike[str], *, torn: bool = False) -> list[dict[str, Any]]:
    """The rows of a .jsonl file, in the order written; null comes back as None.

    With `torn`, a last line that was cut off, as when a run was killed while writing, is left out.

    Raises:
        ValueError: there is no such file, or a line is no JSON object.
    """
    if not Path(path).is_file():
        raise ValueError(f"{path} does not exist; the run has written no such rows.")
    lines = list(_lines(Path(path)))
    if lines and lines[-1][1] is None and not torn:
        raise ValueError(_broken(path, len(lines), lines[-1][0]))
    return [row for _, row in lines if row is not None]


def _lines(path: Path) -> Iterator[tuple[str, dict[str, Any] | None]]:
    """Lines, ended by a newline each, and their rows; None for a last line that is none.

    Raises:
        ValueError: a line before the last is no row, which no interruption explains.
    """
    lines = path.read_text(encoding="utf-8", errors="replace").removesuffix("\n").split("\n")
    if lines == [""]:
        return
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            if number < len(lines):
                raise ValueError(_broken(path, number, line))
            row = None
        yield line + "\n", row


def _broken(path: str | os.PathLike[str], number: int, line: str) -> str:
    return f"{path}, line {number}: {line.strip()[:60]!r} is no JSON object; delete the line."


def run_key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """What a row, or a run's entry in the manifest, shares with all rows of its run and with no other."""
    return tuple(row.get(name) for name in IDENTITY)


def of_run(rows: Iterable[dict[str, Any]], run: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Those of one run; `run` may be a row of it, or its entry in the manifest."""
    return [row for row in rows if run_key(row) == run_key(run)]


def at_rate(run: Mapping[str, Any]) -> str:
    """The name of a run's (or a row's) method, with its learning rate where runs differ in it."""
    return f"{run['method']} @ {run['learning_rate']:g}" if "learning_rate" in run else run["method"]


def environment() -> dict[str, Any]:
    """What a result may depend on besides settings: versions, device, flags and commit. Names no host, user or path."""
    flags = os.environ.get("XLA_FLAGS", "").split()
    return {
        "packages": {name: _version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": processor(),
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "xla_flags": [
            flag.split("=")[0] if "/" in flag else flag for flag in flags
        ],  # a flag's path is nobody's business
        "git": _git(Path(__file__).parents[1]),
    }


def processor() -> str:
    """The processor's name, as far as the system tells."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def strict(value: Any) -> Any:
    """The value in JSON's own types: arrays as lists or numbers, paths as text, what is not finite as null."""
    if isinstance(value, Mapping):
        return {str(key): strict(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [strict(each) for each in value]
    if hasattr(value, "tolist"):  # NumPy and JAX arrays and scalars
        return strict(value.tolist())
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _is_ours(manifest: Path) -> bool:
    try:
        return "jaxdfl" in json.loads(manifest.read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return False


def _locked(folder: Path) -> FileLock:
    """Holds the folder's lock until it is released, or the process ends in whatever way.

    Raises:
        ValueError: another process holds it.
    """
    lock = FileLock(folder / LOCK, fallback_to_soft=False)  # a soft lock would outlive a machine that vanishes
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise ValueError(
            f"{folder} is in use: another process writes to it; wait for it, or name another folder."
        ) from None
    except OSError as error:
        if error.errno not in WITHOUT_LOCKS:
            raise
        print(f"warning: {folder} lies on a file system without locks; let one process write there.", file=sys.stderr)
    return lock


def _replace(path: Path, text: str) -> None:
    """Writes the file at one stroke, so that it is never seen half written."""
    unfinished = path.with_name(path.name + ".unfinished")
    with open(unfinished, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(unfinished, path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git(checkout: Path) -> dict[str, Any] | None:
    """Commit of the checkout, and whether files differ from it; None where there is no checkout or no git."""
    if not (checkout / ".git").exists():
        return None
    git = ("git", "--no-optional-locks", "-C", str(checkout))  # without locks, `status` writes nothing
    try:
        commit = subprocess.run((*git, "rev-parse", "HEAD"), capture_output=True, text=True, check=True).stdout.strip()
        status = subprocess.run((*git, "status", "--porcelain"), capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return {"commit": commit, "dirty": bool(status)}
