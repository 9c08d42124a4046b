"""Where the rows of a run go as well, as they are written: to the backends that `--track` names, none of them required.

The run folder is the record; a backend is told the numbers of its rows as FILE/KEY by round (`rounds/loss`,
`metrics/accuracy_mean`). Lists stay in the rows, and so do numbers that are not finite. A run that is gone on with is
told from its first row on, whoever was told before, and each backend sees to it that none is doubled.

A backend is a module of this package with `begin(run) -> Tracker`. One that fails is warned of once and left out from
then on; no run ends or changes by it.
"""

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

from jaxdfl.run_folder import IDENTITY, RunFolder, at_rate, strict
from jaxdfl.spelling import did_you_mean

BACKENDS = {  # name, which is an extra too -> module here, package
    "tensorboard": ("event_files", "tensorboardX"),
    "wandb": ("weights_and_biases", "wandb"),
    "mlflow": ("mlflow_runs", "mlflow"),
}
NOT_OF_ONE_RUN = ("methods", "topologies", "seeds")  # of the settings
Points = Sequence[tuple[int, Mapping[str, float]]]  # (round, values by name), rounds never falling
Rows = Sequence[tuple[str, Mapping[str, Any]]]  # (file, row)


class Run(NamedTuple):
    """One run: a method on a topology with a seed and a learning rate."""

    number: int  # in its folder
    id: str  # its own, and the same whenever it is gone on with
    name: str
    group: str  # what names its run folder
    folder: Path
    config: Mapping[str, Any]


@runtime_checkable  # which beartype needs
class Tracker(Protocol):
    """A run at a backend; made anew when the run is gone on with, and told all of it."""

    def log(self, points: Points) -> None:
        """Takes values; rounds may come that an earlier process has told of."""
        ...

    def close(self, whole: bool) -> None:
        """Nothing more comes now; `whole` says whether the run has all its rounds."""
        ...


Begin = Callable[[Run], Tracker]


def check_names(names: Sequence[str]) -> None:
    """Refuses backends that nobody knows.

    Raises:
        ValueError: names the first.
    """
    for name in names:
        if name not in BACKENDS:
            hint = did_you_mean(name, BACKENDS)
            raise ValueError(f"`--track` knows no {name!r}.{hint} Known: {', '.join(BACKENDS)}.")


def load(names: Sequence[str]) -> dict[str, Begin]:
    """The backends of that name.

    Raises:
        ValueError: the package of one cannot be imported; names the extra.
    """
    found = {}
    for name in names:
        module, package = BACKENDS[name]
        try:
            found[name] = import_module(f"{__name__}.{module}").begin
        except Exception as error:  # of somebody else's package, anything
            raise ValueError(
                f"`--track {name}` needs the package {package}: pip install 'jaxdfl[{name}]' ({error})."
            ) from None
    return found


class Tracking:
    """The runs of a folder, as told to the backends that work."""

    def __init__(
        self, backends: Mapping[str, Begin], folder: RunFolder, manifest: Mapping[str, Any], warn: Callable[[str], None]
    ):
        self.working, self.folder, self.manifest, self.warn = dict(backends), folder, manifest, warn
        self.told: list[Told] = []

    def begin(self, number: int) -> Callable[[Rows], None]:
        """What tells of the rows of a run as they are written; all that are there have been told."""
        if not self.working:
            return lambda rows: None
        run = _described(self.folder.path, self.manifest, number)
        begun = {name: self.attempt(name, begin, run) for name, begin in list(self.working.items())}
        told = Told(self, {name: tracker for name, tracker in begun.items() if tracker is not None})
        self.told.append(told)
        entry = self.manifest["runs"][number]
        rows = [(file, row) for file in ("rounds", "metrics") for row in self.folder.rows(f"{file}.jsonl", entry)]
        told(sorted(rows, key=lambda each: each[1]["round"]))
        return told

    def attempt(self, name: str, work: Callable[..., Any], *given: Any) -> Any:
        """What the backend answers; None where it fails."""
        try:
            return work(*given)
        except Exception as error:
            del self.working[name]
            said = " ".join(str(error).split()) or type(error).__name__
            self.warn(f"--track {name} fails and is left out from here on: {said[:300]}")

    def close(self) -> None:
        """The runs that were begun are left; others may begin."""
        rounds = self.manifest["settings"]["rounds"]
        for told in self.told:
            for name, tracker in told.trackers.items():
                if name in self.working:  # a server that is gone would be waited for again
                    self.attempt(name, tracker.close, told.round == rounds)
        self.told = []


class Told:
    """One run, as told to its trackers."""

    def __init__(self, tracking: Tracking, trackers: Mapping[str, Tracker]):
        self.tracking, self.trackers, self.round = tracking, trackers, 0

    def __call__(self, rows: Rows) -> None:
        """Tells of more rows, in the order of their rounds."""
        points = [(row["round"], numbers(file, row)) for file, row in rows]
        for name, tracker in self.trackers.items():
            if points and name in self.tracking.working:
                self.tracking.attempt(name, tracker.log, points)
        self.round = max([self.round, *(round for round, _ in points)])


def numbers(file: str, row: Mapping[str, Any]) -> dict[str, float]:
    """What a backend is told of a row: FILE/KEY, where there is one finite number."""
    values = {f"{file}/{key}": value for key, value in strict(row).items() if key not in (*IDENTITY, "round")}
    return {key: float(value) for key, value in values.items() if type(value) in (int, float)}


def _described(folder: Path, manifest: Mapping[str, Any], number: int) -> Run:
    entry, settings = manifest["runs"][number], manifest["settings"]
    config = {name: value for name, value in settings.items() if name not in NOT_OF_ONE_RUN}
    return Run(
        number=number,
        id=f"{manifest['id']}-{number:03d}",
        name=f"{at_rate(entry)} on {entry['topology']}, seed {entry['seed']}",
        group="/".join(folder.resolve().parts[-2:]),
        folder=folder,
        config={**config, "learning_rate": settings["learning_rate"][0], **entry},
    )
