"""`jaxdfl preset`: the settings of a preset, a file or a finished run, as the TOML file that `--preset` takes."""

from collections.abc import Sequence

from jaxdfl import __version__, preset_files
from jaxdfl.arguments import parse
from jaxdfl.commands.parser import one_line
from jaxdfl.presets import PRESETS

EXAMPLES = """\
  jaxdfl preset runs/first > mine.toml            what a run was run with
  jaxdfl preset minilm --rounds 50 > longer.toml  a preset, with changes: any options of `jaxdfl run`
  jaxdfl run --preset mine.toml --seeds 0 1 2     the command line replaces what the file says
"""
ABOUT = f"""\
usage: jaxdfl preset SOURCE [options of `jaxdfl run`] > FILE.toml

Prints all settings as a file for --preset. SOURCE is a preset, such a file, or a run folder.

examples:
{EXAMPLES}"""


def work(argv: Sequence[str]) -> None:
    """Prints them."""
    if "-h" in argv or "--help" in argv:
        print(ABOUT, end="")
        return
    if not argv or argv[0].startswith("-"):
        raise ValueError(f"name a preset, a .toml file or a run folder first. Known presets: {', '.join(PRESETS)}.")
    settings = parse(PRESETS, [*argv[1:], "--preset", argv[0]])
    print(f"# By jaxdfl {__version__}. Paths are seen from where `jaxdfl run --preset FILE` is typed.")
    print(preset_files.text(settings), end="")


main = one_line(work)
