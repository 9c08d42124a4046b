"""The run folder: everything a run leaves behind, in files that a later program can read on its own.

    manifest.json    settings, models, data, environment; written whole or not at all
    metrics.jsonl    one row per run and evaluated round; messages and bytes are totals since round 0
    rounds.jsonl     one row per run and round; messages and bytes are those of that round alone
    checkpoints/     see `jaxdfl.checkpoint`
    summary.*, figures/    see `jaxdfl.report`

`round` is the number of rounds completed, so 0 is before training. A row is strict JSON on one line with its keys in
the order given; a number that is not finite is written as null, since JSON has no word for it.
"""

import importlib.metadata
import json
import math
import os
import platform
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from jaxdfl import __version__

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "transformers", "datasets", "safetensors", "numpy")
WRITTEN = (
    "metrics.jsonl", "rounds.jsonl", "summary.csv", "summary.md", "study.md", "figures", "checkpoints", "manifest.json",
)  # fmt: skip


class RunFolder:
    """A folder that one run may write to.

    Raises:
        ValueError: the folder holds something and `overwrite` is off; or `overwrite` is on, and the folder holds files
            but no manifest of ours, so that it may be the wrong folder. Overwriting removes what a run wrote
            (`WRITTEN`), and nothing else.
    """

    def __init__(self, path: str | os.PathLike[str], overwrite: bool = False):
        self.path = self.check(path, overwrite)
        if self.path.exists():
            for name in WRITTEN:  # the manifest last: until then the folder is recognised
                _remove(self.path / name)
        self.path.mkdir(parents=True, exist_ok=True)

    @staticmethod
    def check(path: str | os.PathLike[str], overwrite: bool = False) -> Path:
        """The path, if a run may write there; refuses as the constructor does, and changes nothing."""
        path = Path(path)
        if path.exists() and not path.is_dir():
            raise ValueError(f"{path} is a file; name a folder for the run.")
        if path.exists() and any(path.iterdir()):
            if not overwrite:
                raise ValueError(f"{path} is not empty; name another folder, or replace its run with --overwrite.")
            if not _is_ours(path / "manifest.json"):
                raise ValueError(
                    f"{path} holds files but no manifest.json of jaxdfl; empty it by hand, if it is right."
                )
        return path

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints belong; made when the first is saved."""
        return self.path / "checkpoints"

    def write_manifest(self, manifest: Mapping[str, Any]) -> None:
        """Writes (or replaces, at one stroke) manifest.json, led by the version of jaxdfl."""
        text = json.dumps(_strict({"jaxdfl": __version__, **manifest}), indent=2, ensure_ascii=False, allow_nan=False)
        unfinished = self.path / "manifest.json.unfinished"
        unfinished.write_text(text + "\n", encoding="utf-8")
        os.replace(unfinished, self.path / "manifest.json")

    def log_metrics(self, row: Mapping[str, Any]) -> None:
        """Appends a row to metrics.jsonl; on the disk when this returns."""
        self._append("metrics.jsonl", row)

    def log_round(self, row: Mapping[str, Any]) -> None:
        """Appends a row to rounds.jsonl; on the disk when this returns."""
        self._append("rounds.jsonl", row)

    def _append(self, name: str, row: Mapping[str, Any]) -> None:
        with open(self.path / name, "a", encoding="utf-8") as file:  # opened for each row, so each is flushed
            file.write(json.dumps(_strict(row), ensure_ascii=False, allow_nan=False) + "\n")


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


def read_rows(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The rows of a .jsonl file, in the order written; null comes back as None.

    Raises:
        ValueError: there is no such file, or a line is no JSON object (as when a run was killed while writing).
    """
    if not Path(path).is_file():
        raise ValueError(f"{path} does not exist; the run has written no such rows.")
    rows = []
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                row = None
            if not isinstance(row, dict):
                raise ValueError(f"{path}, line {number}: {line.strip()[:60]!r} is no JSON object; delete the line.")
            rows.append(row)
    return rows


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
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "xla_flags": [
            flag.split("=")[0] if "/" in flag else flag for flag in flags
        ],  # a flag's path is nobody's business
        "git": _git(Path(__file__).parents[1]),
    }


def _strict(value: Any) -> Any:
    """The value in JSON's own types: arrays as lists or numbers, paths as text, what is not finite as null."""
    if isinstance(value, Mapping):
        return {str(key): _strict(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_strict(each) for each in value]
    if hasattr(value, "tolist"):  # NumPy and JAX arrays and scalars
        return _strict(value.tolist())
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _is_ours(manifest: Path) -> bool:
    try:
        return "jaxdfl" in json.loads(manifest.read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return False


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
