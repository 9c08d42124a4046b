"""Rows of a local file (jsonl, csv, parquet, GLUE tsv), each with the place to name when something in it is wrong."""

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

Row = tuple[str, Mapping[str, Any]]  # ("train.jsonl, line 3", {"sentence": ..., "label": ...})


def read_rows(path: Path, header: Sequence[str] | None = None) -> Iterator[Row]:
    """Rows of one file, read by its ending. Texts must be UTF-8 (a byte order mark is skipped).

    A tsv is read as GLUE writes it: no quoting, one example a line, column names in the first line unless `header`
    gives them. Lines are counted from 1, as an editor shows them.

    Raises:
        ValueError: a row cannot be read; the message names the file and the line.
    """
    readers = {".jsonl": _jsonl, ".csv": _csv, ".parquet": _parquet, ".tsv": lambda path: _tsv(path, header)}
    if path.suffix not in readers:
        raise ValueError(f"`path` must end in one of {', '.join(readers)}, got {path}.")
    return readers[path.suffix](path)


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """(place, line with its ending). Split at newlines only: sentences may hold other separators, such as U+2028."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            place = f"{path}, line {number}"
            try:
                yield place, line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(f"{place}: not UTF-8 at byte {error.start + 1} of the line; re-encode it.") from None


def _jsonl(path: Path) -> Iterator[Row]:
    for place, line in _lines(path):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{place}: not JSON ({error.msg}, column {error.colno}); one object a line.") from None
        if not isinstance(row, dict):
            raise ValueError(f"{place}: must be a JSON object, got {type(row).__name__}.")
        yield place, row


def _tsv(path: Path, header: Sequence[str] | None) -> Iterator[Row]:
    for place, line in _lines(path):
        fields = line.rstrip("\r\n").split("\t")
        if header is None:
            header = fields
        else:
            yield place, _named(header, fields, place)


def _csv(path: Path) -> Iterator[Row]:
    reader = csv.reader((line for _, line in _lines(path)), strict=True)
    header = None
    while True:
        place = f"{path}, line {reader.line_num + 1}"  # where the row starts; quoted texts may span lines
        try:
            fields = next(reader, None)
        except csv.Error as error:
            raise ValueError(f"{place}: not CSV ({error}).") from None
        if fields is None:
            return
        if header is None:
            header = fields
        else:
            yield place, _named(header, fields, place)


def _parquet(path: Path) -> Iterator[Row]:
    from pyarrow import ArrowException, parquet  # comes with `datasets`; here so that other readers start fast

    try:
        rows = parquet.read_table(path).to_pylist()
    except (ArrowException, OSError) as error:
        raise ValueError(f"{path}: not a parquet file ({str(error).splitlines()[0]}).") from None
    for number, row in enumerate(rows, start=1):
        yield f"{path}, row {number}", row


def _named(header: Sequence[str], fields: Sequence[str], place: str) -> Mapping[str, str]:
    if len(fields) != len(header):
        raise ValueError(f"{place}: {len(fields)} fields where the header has {len(header)}; mend or delete the line.")
    return dict(zip(header, fields, strict=True))
