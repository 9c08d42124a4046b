"""Arguments of the small commands: help with examples, and mistakes as one line."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from jaxdfl.refusal import refuse
from jaxdfl.spelling import did_you_mean


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` whose mistakes are ValueErrors of one line."""

    def __init__(self, command: str, about: str, examples: str):
        super().__init__(
            prog=f"jaxdfl {command}", description=about, epilog="examples:\n" + examples, allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )  # fmt: skip

    def error(self, message: str) -> NoReturn:
        """Raises: ValueError, always."""
        raise ValueError(message + ".")

    def read(self, argv: Sequence[str]) -> argparse.Namespace:
        """The arguments.

        Raises:
            ValueError: an unknown option (the closest known one is named), or a missing or wrong value.
        """
        found, unknown = self.parse_known_args(argv)
        if unknown:
            known = [flag for action in self._actions for flag in action.option_strings]
            raise ValueError(f"unknown option {unknown[0]!r}.{did_you_mean(unknown[0], known)} See --help.")
        return found


def one_line(work: Callable[[Sequence[str]], Any]) -> Callable[[Sequence[str]], int]:
    """A command's `main` from its work: 0, or one line and 2 where it raises ValueError or OSError."""

    def main(argv: Sequence[str]) -> int:
        try:
            work(argv)
        except BrokenPipeError:  # a reader such as `head` has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        except (ValueError, OSError) as error:
            return refuse(error)
        return 0

    return main


def options(argv: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Flags with the words that follow each, `--flag=value` taken apart; words before any flag under the first."""
    found: list[tuple[str, list[str]]] = []
    for word in argv:
        if word.startswith("--"):
            flag, equals, value = word.partition("=")
            found.append((flag.replace("_", "-"), [value] if equals else []))
        elif found:
            found[-1][1].append(word)
        else:
            found.append((word, []))
    return found
