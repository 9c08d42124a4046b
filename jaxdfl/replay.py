"""`python -m jaxdfl replay RUN`: runs the runs of a folder once more, and says whether the same numbers come out.

On a machine of the same kind, with the same versions, they are the same to the last bit. Where they are not, the first
difference is named, and in what the two environments differ.
"""

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

from jaxdfl.startup import precision, split_cpu  # isort: skip (it comes before jax)

from jaxdfl.arguments import from_manifest
from jaxdfl.execution import execute
from jaxdfl.manifest import begin
from jaxdfl.prepare import prepare
from jaxdfl.resume import SAME, first_difference
from jaxdfl.run_folder import IDENTITY, ROWS, read_manifest, read_rows, run_key

BY_ROUND = sorted(ROWS, reverse=True)  # rounds.jsonl first: metrics.jsonl has a row only where clients are scored
CLOCK = ("seconds",)  # keys of a row that are not the run's own


def replay(folder: Path, out: Path | None = None) -> tuple[str | None, list[str]]:
    """The first difference between the rows of `folder` and those of its runs run again (None: there is none), and
    in what the environments differ.

    The runs go to the new folder `out`; None: to a temporary one, which is removed. `folder` is only read. What the
    first run has not got to, as it was interrupted, is not compared.

    Raises:
        ValueError, OSError: the folder is none of ours, or its runs cannot be run here (their data are gone, say).
    """
    before = read_manifest(folder)
    settings = from_manifest(before)
    split_cpu(settings.cpu_devices if settings.sweep else 1)
    scratch = Path(tempfile.mkdtemp(prefix="jaxdfl-replay-"))
    try:
        settings = replace(
            settings,
            out=str(out or scratch / "run"),
            track=(),
            dry_run=False,
            overwrite=False,
            resume=False,
            checkpoints=out is not None,
        )
        with precision(settings.dtype):
            prepared = prepare(settings)
            run, manifest = begin(prepared, before["command"])
            execute(prepared, run, manifest, kept=out is not None)
        return (
            next(filter(None, (_parts(before, manifest), *(_rows(folder, run.path, name) for name in BY_ROUND))), None),
            _environments(before, manifest),
        )
    finally:
        shutil.rmtree(scratch)


def _parts(before: Mapping[str, Any], after: Mapping[str, Any]) -> str | None:
    for part in SAME:
        if part in before and (found := first_difference(before[part], after[part], part)):
            return f"manifest.json: {found[0]} was {found[1]}, is {found[2]}"
    return None


def _rows(before: Path, after: Path, name: str) -> str | None:
    """The first difference between rows of the same run and round."""
    first, second = (_by_run(read_rows(folder / name, torn=True)) for folder in (before, after))
    for run, rows in first.items():
        for old, new in zip_longest(rows, second.get(run, [])):
            if old is None:
                break  # the first run did not get there
            found = ("row", "there", "absent") if new is None else _first_key(old, new)
            if found is not None:
                who = " ".join(f"{key}={value}" for key, value in zip(IDENTITY, run, strict=True) if value is not None)
                return f"{name}: {who} round={old['round']}: {found[0]} was {found[1]}, is {found[2]}"
    return None


def _first_key(old: Mapping[str, Any], new: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
    """The first key of two rows that differs, and its values."""
    kept, again = ({key: value for key, value in row.items() if key not in CLOCK} for row in (old, new))
    found = first_difference(kept, again, "row")
    return found and (found[0].removeprefix("row."), *found[1:])


def _by_run(rows: Sequence[Mapping[str, Any]]) -> dict[tuple[Any, ...], list[Mapping[str, Any]]]:
    found: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        found.setdefault(run_key(row), []).append(row)
    return found


def _environments(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """What is not the same, one line each."""
    old, new = before["environment"], after["environment"]
    lines = [first_difference(old.get(key), new.get(key), key) for key in dict.fromkeys([*old, *new])]
    return [f"{where} was {was}, is {now}" for where, was, now in filter(None, lines)]
