"""Where the points of a sweep run: the options that say so, and the way to the engines of `jaxdfl.launchers`."""

import argparse
import os
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path

from jaxdfl.commands.parser import Parser, options
from jaxdfl.console import OUT
from jaxdfl.exit_codes import FAILED, REFUSED, STOPPED
from jaxdfl.launchers.fleet import TRIES, End, Engine, Point, launch
from jaxdfl.refusal import refuse
from jaxdfl.run_folder import RunFolder
from jaxdfl.settings import Settings

CLUSTERS = ("ray", "slurm")
FLAGS = {  # of a sweep alone -> the launchers that know them
    "--launcher": ("local", *CLUSTERS), "--workers": CLUSTERS, "--cpus": CLUSTERS, "--gpus": CLUSTERS,
    "--tries": CLUSTERS, "--ray-address": ("ray",), "--minutes": ("slurm",), "--slurm": ("slurm",),
}  # fmt: skip


def apart(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """The options of `FLAGS`, and all others."""
    pairs = options(argv)
    ours = [word for flag, words in pairs if flag in FLAGS for word in (flag, *words)]
    return ours, [word for flag, words in pairs if flag not in FLAGS for word in (flag, *words)]


def read(argv: Sequence[str]) -> argparse.Namespace:
    """The options of `FLAGS`.

    Raises:
        ValueError: a value is wrong, missing, or of another launcher.
    """
    parser = Parser("sweep", "", "")
    parser.add_argument("--launcher", choices=("local", *CLUSTERS), default="local")
    for flag in ("--workers", "--cpus", "--minutes"):
        parser.add_argument(flag, type=int)
    parser.add_argument("--gpus", type=int, default=0)
    parser.add_argument("--tries", type=int, default=TRIES)
    parser.add_argument("--ray-address")
    parser.add_argument("--slurm", nargs="+", default=[], metavar="KEY=VALUE")
    how = parser.read(argv)
    for flag, launchers in FLAGS.items():
        if flag in argv and how.launcher not in launchers:
            raise ValueError(f"`{flag}` goes with `--launcher {' or '.join(launchers)}`, here it is {how.launcher}.")
        value = getattr(how, flag.removeprefix("--").replace("-", "_"))
        if isinstance(value, int) and value < (least := 0 if flag == "--gpus" else 1):
            raise ValueError(f"`{flag}` must be at least {least}, got {value}.")
    for option in how.slurm:
        if "=" not in option:
            raise ValueError(f"`--slurm` takes KEY=VALUE, such as partition=gpu, got {option!r}.")
    if how.launcher == "slurm" and how.minutes is None:
        raise ValueError("`--launcher slurm` needs `--minutes`, after which a job saves and is queued again.")
    return how


def run(
    how: argparse.Namespace,
    out: Path,
    asked: Sequence[Sequence[str]],
    settings: Sequence[Settings],
    folders: Sequence[Path],
) -> int:
    """Runs all points on workers; returns 0 where all are done, else, with a line, the exit code that says most."""
    points = [_point(each, folder) for each, folder in zip(asked, folders, strict=True)]
    try:
        if any(each.dry_run for each in settings):
            raise ValueError("`--dry-run` writes nothing and runs here; leave out `--launcher`.")
        for each, folder in zip(settings, folders, strict=True):
            RunFolder.check(folder, each.overwrite, each.resume)
        with closing(_engine(how, out)) as engine:
            for each, folder in zip(settings, folders, strict=True):
                if each.overwrite:  # here and once, so that a point can be begun again
                    RunFolder(folder, overwrite=True).close()
            out.mkdir(parents=True, exist_ok=True)
            ends = launch(engine, points, how.tries, lambda line: OUT.print(line, soft_wrap=True))
    except (ValueError, OSError) as error:
        return refuse(error)
    return _verdict(points, ends)


def _engine(how: argparse.Namespace, out: Path) -> Engine:
    """The engine that was asked for.

    Raises:
        ValueError: it is not installed, not here, or does not know an option.
    """
    try:
        if how.launcher == "ray":
            from jaxdfl.launchers.on_ray import Ray

            return Ray(how.ray_address, room=how.workers, cpus=how.cpus, gpus=how.gpus)
        from jaxdfl.launchers.on_slurm import Slurm

        pairs = dict(option.split("=", 1) for option in how.slurm)
        options = {key: int(value) if value.isdecimal() else value for key, value in pairs.items()}
        return Slurm(
            out / "slurm", room=how.workers, cpus=how.cpus, gpus=how.gpus, minutes=how.minutes, options=options
        )
    except ModuleNotFoundError as error:
        raise ValueError(
            f"`--launcher {how.launcher}` needs {error.name}: pip install 'jaxdfl[{how.launcher}]'."
        ) from None


def _point(arguments: Sequence[str], folder: Path) -> Point:
    """A point as workers run it: each goes on from where the one before it has got to."""
    again = ("--out", str(folder), "--no-overwrite", "--resume")
    python = ("-m", "jaxdfl.launchers", *arguments, *again)
    return Point(str(folder), python, os.getcwd(), str(folder.absolute().with_name(folder.name + ".log")))


def _verdict(points: Sequence[Point], ends: Mapping[Point, End]) -> int:
    """One line and an exit code for the worst that has happened; 0 for nothing."""
    for code in (REFUSED, FAILED, STOPPED):
        found = [point for point in points if ends[point].code == code]
        if found:
            first = f"{found[0].folder}: {ends[found[0]].said}" if code != STOPPED else found[0].folder
            what = {REFUSED: "refused", FAILED: "not done", STOPPED: "stopped"}[code]
            resume = "" if code == REFUSED else "; the same command with --resume goes on"
            return refuse(f"{len(found)} of {len(points)} points {what}{resume}. {first}", code)
    return 0
