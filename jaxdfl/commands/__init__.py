"""The command line: `jaxdfl COMMAND ...`. A command is a module of this package with `main(argv) -> exit code`.

What a person got wrong is answered with one line on stderr and exit code 2.
"""

import sys
from collections.abc import Sequence
from importlib import import_module

from jaxdfl import __version__
from jaxdfl.refusal import refuse
from jaxdfl.spelling import did_you_mean

COMMANDS = {  # name -> what it is for; its module is imported when it is called
    "run": "an experiment: methods x topologies x seeds, from a preset",
    "sweep": "the same over a grid: any setting may have several values",
    "preset": "all settings of a preset or a finished run, as a file for --preset",
    "report": "finished runs -> one HTML page, tables and figures",
    "topology": "what a network is like: spectrum, period T*, connectivity, a picture",
    "methods": "all methods and wrappers, with paper and file",
    "export": "an adapter of a finished run -> a PEFT folder",
    "replay": "a run folder once more: do the same numbers come out?",
    "doctor": "is this machine's arithmetic right?",
}
EXAMPLES = """\
    jaxdfl run --out runs/first                         a small encoder, generated sentences; minutes, offline
    jaxdfl report runs/first --out report               open report/report.html
    jaxdfl topology erdos_renyi:0.1 --clients 10        how fast does it mix?
    jaxdfl export runs/first --run 0 --to adapter       for peft.PeftModel.from_pretrained
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Calls a command; returns its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        print(_help())
        return 0
    if words[0] == "--version":
        print(__version__)
        return 0
    name, *rest = words
    if name not in COMMANDS:
        return refuse(f"unknown command {name!r}.{did_you_mean(name, COMMANDS)} Known: {', '.join(COMMANDS)}.")
    return import_module(f"jaxdfl.commands.{name}").main(rest)


def _help() -> str:
    commands = "\n".join(f"    {name:<10} {about}" for name, about in COMMANDS.items())
    return (
        f"jaxdfl {__version__}: decentralized federated LoRA fine-tuning, all clients at once, on one device.\n\n"
        f"Commands (jaxdfl COMMAND --help explains one):\n{commands}\n\nExamples:\n{EXAMPLES}"
    )
