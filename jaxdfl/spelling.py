"""Hints for names that nobody knows."""

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """` Did you mean 'tad_lora'?` for a misspelt name, or the empty string where none comes close."""
    match = difflib.get_close_matches(name, list(known), n=1, cutoff=0.7)
    return f" Did you mean {match[0]!r}?" if match else ""
