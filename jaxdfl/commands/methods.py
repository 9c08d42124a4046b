"""`jaxdfl methods`: all methods and wrappers, from the registries and the docstrings behind them."""

import inspect
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

from jaxdfl.commands.parser import Parser, one_line
from jaxdfl.methods import METHODS, WRAPPERS
from jaxdfl.methods.specs import settable
from jaxdfl.spelling import did_you_mean

EXAMPLES = """\
  jaxdfl methods                  the whole list
  jaxdfl methods tad_lora         all that its file says: equations, source, departures from the paper
  jaxdfl run --methods dec_lora tad_lora:5 "tad_lora:5+event_triggered:0.1+packet_loss:0.2"
"""
Constructor = Callable[..., Any]


def work(argv: Sequence[str]) -> None:
    """Prints the list, or what the file of one of them says."""
    parser = Parser("methods", "Methods and wrappers: name with settings, paper, file.", EXAMPLES)
    parser.add_argument("name", nargs="?", help="one of them, in full")
    name, known = parser.read(argv).name, METHODS | WRAPPERS
    if name is None:
        for title, registry in (("Methods", METHODS), ("Wrappers, put behind a method as METHOD+WRAPPER", WRAPPERS)):
            print(f"{title}\n", *(entry(*each) for each in registry.items()), sep="\n")
    elif name in known:
        print(entry(name, known[name]), inspect.getdoc(_module(known[name])), sep="\n\n")
    else:
        raise ValueError(f"unknown method {name!r}.{did_you_mean(name, known)} Known: {', '.join(known)}.")


def entry(name: str, constructor: Constructor) -> str:
    """Three lines: name and settings; what it does; paper and file."""
    about = (inspect.getdoc(constructor) or "").splitlines()[0]
    return f"  {spelt(name, constructor)}\n      {about}\n      {paper(constructor)}, {file_of(constructor)}\n"


def spelt(name: str, constructor: Constructor) -> str:
    """`decaf[:SPLIT=sqrt_right][:GAUGE=...]`: a setting with a default in brackets."""
    parts = [
        f":{each.upper()}" if parameter.default is parameter.empty else f"[:{each.upper()}={parameter.default}]"
        for each, parameter in settable(constructor).items()
    ]
    return name + "".join(parts)


def paper(constructor: Constructor) -> str:
    """The first arXiv number that the file names."""
    found = re.search(r"\b\d{4}\.\d{5}\b", inspect.getdoc(_module(constructor)) or "")
    return f"arXiv {found[0]}" if found else "no paper"


def file_of(constructor: Constructor) -> str:
    """`jaxdfl/methods/tad_lora.py`."""
    return constructor.__module__.replace(".", "/") + ".py"


def _module(constructor: Constructor) -> Any:
    return sys.modules[constructor.__module__]


main = one_line(work)
