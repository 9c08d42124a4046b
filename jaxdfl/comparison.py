"""Finished runs side by side: the rows of several run folders as one, refused where they are no comparison.

Runs may differ in their axes (method, topology, seed, learning rate) and in what changes speed alone. Anything else
that differs, be it a setting, the weights, the data or the version, is named, and nothing is compared.

Two views. By steps: the last evaluated round of each run. By bytes: on each topology and for each seed, the score at
the number of bytes that the most frugal of the methods that send at all had sent by its end, read off each method's
evaluated rounds, linearly between them.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxdfl.report import Score, Summary, summary_of
from jaxdfl.run_folder import at_rate, read_manifest, read_rows, run_key
from jaxdfl.settings import FREE_ON_RESUME
from jaxdfl.statistics import Interval, Signs, differences, interval, signs

Row = Mapping[str, Any]
AXES = ("methods", "topologies", "seeds", "learning_rate")
NO_MATTER = (*FREE_ON_RESUME, "preset", "eval_every", "remat")  # for the result


class Compared(NamedTuple):
    """One method on one topology, over its seeds."""

    method: str  # with its learning rate, where there are several
    topology: str
    period: int | None
    round: str  # last evaluated
    score: Interval
    gain: Interval | None  # above the baseline on the same topology, within each seed; None for the baseline itself
    signs: Signs | None  # of the same differences
    worst: Interval
    average_model: Interval
    cross_term: Interval
    bytes: Interval
    at_bytes: Interval  # the score at equal bytes
    gain_at_bytes: Interval | None


class Comparison(NamedTuple):
    """Several run folders as one."""

    summary: Summary  # of all of them; its manifest is the first's, with everybody's `runs` and `topologies`
    lines: tuple[Compared, ...]
    metrics: list[dict[str, Any]]
    rounds: list[dict[str, Any]]
    folders: tuple[str, ...]  # their names, without paths
    differing: dict[str, list[Any]]  # what does not matter and differs

    @property
    def score(self) -> Score:
        return self.summary.score


def compare(folders: Sequence[str | os.PathLike[str]], baseline: str | None = None) -> Comparison:
    """Reads run folders that belong together.

    Args:
        baseline: method that gains are measured against; None takes `dec_lora`, or the first.

    Raises:
        ValueError: no folder, no rows, runs that differ in more than axes (the first difference is named), a run that
            is in two of the folders, or a baseline that is in none.
    """
    if not folders:
        raise ValueError("name at least one run folder.")
    paths = [Path(folder) for folder in folders]
    manifests = [read_manifest(path) for path in paths]
    for path, manifest in zip(paths[1:], manifests[1:], strict=True):
        _require_same(paths[0], manifests[0], path, manifest)
    manifest = _joined(paths, manifests)
    metrics, rounds = (_rows(paths, manifests, name) for name in ("metrics.jsonl", "rounds.jsonl"))
    if not metrics:
        raise ValueError(f"{paths[0] / 'metrics.jsonl'} holds no rows; nothing has been evaluated yet.")
    known = list(dict.fromkeys(row["method"] for row in metrics))
    if baseline is not None and baseline not in known:
        raise ValueError(f"`--baseline` must be one of {', '.join(known)}, got {baseline!r}.")
    summary = summary_of(manifest, metrics, baseline)
    settings = [each["settings"] for each in manifests]
    differing = {name: [each.get(name) for each in settings] for name in NO_MATTER if name != "out"}
    return Comparison(
        summary,
        tuple(_lines(summary, metrics)),
        metrics,
        rounds,
        tuple(path.resolve().name for path in paths),
        {name: values for name, values in differing.items() if any(each != values[0] for each in values)},
    )


def _require_same(first: Path, one: Row, second: Path, other: Row) -> None:
    """What two runs must share, the likeliest mistakes first."""
    for what, values in _identity(one).items():
        if values != (theirs := _identity(other).get(what)):
            raise ValueError(
                f"{first} and {second} are no comparison: {what} is {values} in the first and {theirs} in the second; "
                f"runs may differ in {', '.join(AXES)} alone."
            )


def _identity(manifest: Row) -> dict[str, Any]:
    settings = {name: value for name, value in manifest["settings"].items() if name not in (*AXES, *NO_MATTER)}
    model, data = manifest["model"], manifest["data"]
    paths = ("weights", "data_dir", "init_adapter")  # the same files may lie elsewhere: their hashes are below
    return {name: value for name, value in settings.items() if name not in paths} | {
        "the model": [model.get(key) for key in ("name", "sha256", "dtype", "init_adapter")],
        "the data": [data.get("task"), *(_digest(data.get(split)) for split in ("train", "validation"))],
        "the version of jaxdfl": manifest["jaxdfl"],
    }


def _digest(split: Row | None) -> list[Any] | None:
    return None if split is None else [split.get("examples"), split.get("sha256")]


def _joined(paths: Sequence[Path], manifests: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The first manifest with everybody's runs and topologies."""
    runs: dict[tuple, tuple[Path, dict[str, Any]]] = {}
    for path, manifest in zip(paths, manifests, strict=True):
        for run in _named_rates(manifest["runs"], manifest, manifests):
            key = run_key(run)
            if key in runs:
                raise ValueError(
                    f"{at_rate(run)} on {run['topology']}, seed {run['seed']}, is in {runs[key][0]} and in {path}."
                )
            runs[key] = path, run
    topologies = {spec: found for each in manifests for spec, found in each["topologies"].items()}
    partitions = {seed: found for each in manifests for seed, found in each.get("partitions", {}).items()}
    joined = {"runs": [run for _, run in runs.values()], "topologies": topologies, "partitions": partitions}
    return {**manifests[0], **joined}


def _rows(paths: Sequence[Path], manifests: Sequence[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    return [
        row
        for path, manifest in zip(paths, manifests, strict=True)
        for row in _named_rates(read_rows(path / name, torn=True), manifest, manifests)
    ]


def _named_rates(rows: Iterable[dict[str, Any]], manifest: Row, manifests: Iterable[Row]) -> list[dict[str, Any]]:
    """Rows or runs of a folder that all have one learning rate name it where other folders have another."""
    rates = {rate for each in manifests for rate in each["settings"]["learning_rate"]}
    if len(rates) == 1:
        return list(rows)
    return [{"learning_rate": manifest["settings"]["learning_rate"][0], **row} for row in rows]


def _lines(summary: Summary, metrics: Sequence[Row]) -> Iterable[Compared]:
    score, key = summary.score, f"{summary.score.name}_mean"
    curves: dict[tuple[str, str], dict[int, list[Row]]] = {}  # (topology, method) -> seed -> rows by round
    for row in sorted(metrics, key=lambda row: row["round"]):
        curves.setdefault((row["topology"], at_rate(row)), {}).setdefault(row["seed"], []).append(row)
    at_bytes = {line: _at_equal_bytes(curves, line, key) for line in curves}
    against = {at_rate(row): at_rate({**row, "method": summary.baseline}) for row in metrics}
    periods = {(run["topology"], at_rate(run)): run.get("period") for run in summary.manifest["runs"]}
    for line in summary.lines:
        here, base = (line.topology, line.method), (line.topology, against[line.method])
        is_base = base == here or base not in curves

        def last(name: str, which: tuple[str, str] = here) -> dict[int, float]:
            return {seed: _number(rows[-1], name) for seed, rows in curves[which].items()}

        gains = None if is_base else differences(last(key), last(key, base))
        by_bytes = None if is_base else differences(at_bytes[here], at_bytes[base])
        yield Compared(
            method=line.method, topology=line.topology, period=periods.get(here), round=line.rounds,
            score=interval(list(last(key).values())),
            gain=None if gains is None else interval(gains),
            signs=None if gains is None else signs(gains, larger_is_better=score.percent),
            worst=interval(list(last(f"{score.name}_worst").values())),
            average_model=interval(list(last(f"{score.name}_average_model").values())),
            cross_term=interval(list(last("cross_term").values())),
            bytes=interval(list(last("bytes").values())),
            at_bytes=interval(list(at_bytes[here].values())),
            gain_at_bytes=None if by_bytes is None else interval(by_bytes),
        )  # fmt: skip


def _at_equal_bytes(
    curves: Mapping[tuple[str, str], Mapping[int, Sequence[Row]]], line: tuple[str, str], key: str
) -> dict[int, float]:
    """By seed: the score when as much was sent as the most frugal sender on the topology sends in all."""
    found = {}
    for seed, rows in curves[line].items():
        totals = [
            _number(each[seed][-1], "bytes")
            for (topology, _), each in curves.items()
            if topology == line[0] and seed in each
        ]
        budget = min((total for total in totals if total > 0), default=np.inf)
        sent, scores = ([_number(row, name) for row in rows] for name in ("bytes", key))
        found[seed] = float(np.interp(budget, sent, scores)) if sent[-1] > budget else scores[-1]
    return found


def _number(row: Row, key: str) -> float:
    return np.nan if row.get(key) is None else float(row[key])
