"""Where an interrupted run can go on: from states that are whole, and whose rows are all there.

A run is a pure function of its settings and state (batches, networks and keys follow from seed and round), so it ends
with the same numbers, bit for bit, however often it was interrupted. Runs of one program go on together, from a round
that all of them can go on from.
"""

import re
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxdfl import checkpoint
from jaxdfl.run_folder import RunFolder, run_key
from jaxdfl.settings import FREE_ON_RESUME, Settings
from jaxdfl.simulate.rounds import SimState

Identity = Mapping[str, Any]  # method, topology, seed (and learning rate) of a run, as rows have it
NEW = -1  # the point of runs that start from nothing; 0 has the rows of the first evaluation
# Of a manifest, beside the settings. Not the topologies' spectra: the streams tell the network, and the last digit of
# an eigenvalue is its library's.
SAME = ("model", "data", "partitions", "streams", "runs")


def evaluates(settings: Settings, round: int) -> bool:
    """Whether the clients are scored after so many rounds, and a row of metrics says how well."""
    return round % settings.eval_every == 0 or round == settings.rounds


def require_same(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuses to go on with another run than the one begun. Both are manifests as read from JSON.

    Raises:
        ValueError: names the first difference, and both values.
    """
    old, new = (
        {name: value for name, value in manifest["settings"].items() if name not in FREE_ON_RESUME}
        for manifest in (before, now)
    )
    parts = (first_difference(_part(before, part), _part(now, part), part) for part in SAME)
    difference = first_difference(old, new, "--") or next(filter(None, parts), None)
    if difference is not None:
        where, was, is_now = difference
        raise ValueError(
            f"the run in --out has {where} = {was}, now it is {is_now}; `--resume` goes on with the same run: give the "
            "same settings and data, or another --out."
        )


def _part(manifest: Mapping[str, Any], part: str) -> Any:
    """A part of a manifest, without the one fact that is of how it was run: which runs go together."""
    found = manifest.get(part)
    if part != "runs" or not isinstance(found, list):
        return found
    return [{k: v for k, v in run.items() if k != "group"} if isinstance(run, Mapping) else run for run in found]


def first_difference(old: Any, new: Any, where: str) -> tuple[str, Any, Any] | None:
    """The first place where two JSON values differ, and what they have there."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for name in dict.fromkeys([*old, *new]):
            below = f"--{name.replace('_', '-')}" if where == "--" else f"{where}.{name}"
            found = first_difference(old.get(name, "absent"), new.get(name, "absent"), below)
            if found is not None:
                return found
        return None
    return None if old == new else (where, _short(old), _short(new))


def run_folder(folder: RunFolder, number: int, run: Identity) -> Path:
    """Where the states of a run belong; led by its number, since two names may look alike as file names."""
    name = "-".join([f"{number:03d}", run["method"], run["topology"], f"seed{run['seed']}"])
    return folder.checkpoints / re.sub(r"[^\w.-]", "_", name)


def point(folder: RunFolder, runs: Sequence[tuple[Path, Identity]], ended: Collection[int], settings: Settings) -> int:
    """The last round that all the runs can go on from, by the states in their folders and their rows; or `NEW`.

    Runs whose rows are all there need no state: they are over. Says on stderr which states are damaged.

    Args:
        ended: places of runs that ended early, on numbers that are not finite: they have no later rows.
    """
    if len(ended) == len(runs):
        return settings.rounds
    last = min(_reached(folder, run, settings) for place, (_, run) in enumerate(runs) if place not in ended)
    rounds = set.intersection(*(set(checkpoint.rounds_saved(path)) for path, _ in runs))
    for round in sorted((each for each in rounds if each <= last), reverse=True):
        try:
            for path, _ in runs:
                checkpoint.verify(checkpoint.round_folder(path, round))
            return round
        except (OSError, ValueError) as error:
            print(f"warning: {error} An earlier state is taken.", file=sys.stderr)
    return settings.rounds if last == settings.rounds and not rounds else NEW


def trim(folder: RunFolder, runs: Sequence[Identity], places: Sequence[Path], point: int) -> None:
    """Drops what the runs will write again when they go on from `point`, and a last line that was cut off."""
    keys = set(map(run_key, runs))
    folder.keep_rows(lambda row: run_key(row) not in keys or row["round"] <= point)
    for place in places:
        checkpoint.drop_after(place, point)


class Keeper:
    """Saves the states of runs that go together, each in a folder of its own, when it is time to.

    A state that cannot be saved (the disk is full, say) is told of on stderr, and those saved before it stay.
    """

    def __init__(self, settings: Settings, places: Sequence[Path]):
        self.settings, self.places, self.saved = settings, places, time.monotonic()

    def __call__(self, round: int, states: Sequence[SimState], *, now: bool) -> None:
        """Saves all states, if `now`, or if so many rounds or minutes have passed, or at the end."""
        settings = self.settings
        waited = time.monotonic() - self.saved > 60 * settings.checkpoint_minutes
        counted = settings.checkpoint_every is not None and round % settings.checkpoint_every == 0
        if not settings.checkpoints or not (now or waited or counted or round == settings.rounds):
            return
        try:
            for place, state in zip(self.places, states, strict=True):
                checkpoint.save(checkpoint.round_folder(place, round), state)
        except OSError as error:
            print(f"warning: {error}. The run goes on; earlier states stay.", file=sys.stderr)
            return
        for place in self.places:  # only now, so that some round is whole for all of them at any time
            checkpoint.keep_last(place, settings.checkpoints_kept)
        self.saved = time.monotonic()

    def last_good(self, number: int, state: SimState) -> None:
        """Saves the last state of a run before its numbers went wrong."""
        path = self.places[number] / f"last-good-{int(state.round):06d}"
        if self.settings.checkpoints and not path.exists():
            checkpoint.save(path, state)


def _reached(folder: RunFolder, run: Identity, settings: Settings) -> int:
    """The last round up to which every row is there, `NEW` where there is none."""
    by_round = {row["round"] for row in folder.rows("rounds.jsonl", run)}
    evaluated = {row["round"] for row in folder.rows("metrics.jsonl", run)}
    reached = NEW
    for round in range(settings.rounds + 1):
        if (round > 0 and round not in by_round) or (evaluates(settings, round) and round not in evaluated):
            break
        reached = round
    return reached


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
