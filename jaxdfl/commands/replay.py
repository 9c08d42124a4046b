"""`jaxdfl replay`: runs a run folder again, and compares row by row."""

from collections.abc import Sequence
from pathlib import Path

from jaxdfl.commands.parser import Parser
from jaxdfl.refusal import refuse
from jaxdfl.startup import programs_kept

EXAMPLES = """\
  jaxdfl replay runs/first                      says `identical`, or the first difference
  jaxdfl replay runs/first --to runs/again      and keeps what it has run
"""
DIFFERENT = 1  # exit code


def main(argv: Sequence[str]) -> int:
    """0 where the rows are identical, `DIFFERENT` where not, 2 where it could not be tried."""
    parser = Parser("replay", "Runs the runs of a folder again, and compares all rows but for their seconds.", EXAMPLES)
    parser.add_argument("folder", metavar="RUN", type=Path, help="a run folder; it is only read")
    parser.add_argument("--to", type=Path, help="a new folder for the second run; none keeps nothing of it")
    try:
        asked = parser.read(argv)
        from jaxdfl.replay import replay  # not above: --help need not wait for jax

        with programs_kept(True):
            difference, environments = replay(asked.folder, asked.to)
    except (ValueError, OSError, RuntimeError) as error:
        return refuse(error)
    for line in environments:
        print(f"environment: {line}")
    print("identical" if difference is None else f"different: {difference}")
    return 0 if difference is None else DIFFERENT
