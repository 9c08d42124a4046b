"""What is printed to be typed, page by page and in the order of printing: commands, and the files that a page shows."""

import importlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from jaxdfl.commands import COMMANDS, EXAMPLES
from jaxdfl.commands.sweep import ABOUT

ROOT = Path(__file__).parents[1]
FIRST = ("README.md", "docs/tutorial.md")  # the way in; the others follow as README names them
PROGRAMS = (
    "jaxdfl", "python", "pip", "pip-audit", "pytest", "pre-commit", ".ci/run", "mkdocs", "tensorboard", "mlflow",
    "wandb",
)  # fmt: skip
PROGRAM = re.compile(rf"(?:[A-Z_]+=\S+ )?(?:{'|'.join(map(re.escape, PROGRAMS))}|\S+/bin/\w+)(?= |$)")
NAME = re.compile(r"\S+|jaxdfl \w+")  # between backticks: a program or a command that is spoken of
BLANK = re.compile(r"(?<![\w=])(?!DATA\b)[A-Z]{2,}(?![\w=])")  # to be filled in: `jaxdfl methods NAME`
PART = re.compile(
    r"^```(?P<language>\w*)\n(?P<block>.*?)^```|(?P<indented>(?:^    [^\n]*\n)+)|`(?P<inline>[^`]+)`",
    re.DOTALL | re.MULTILINE,
)


class Step(NamedTuple):
    """A command; or, where `file` has a name, what the page shows as that file."""

    text: str
    file: str | None = None


def markdown(text: str) -> Iterator[Step]:
    """All lines of ```bash blocks; of indented lines and of words between backticks those that are commands."""
    for part in PART.finditer(text):
        if part["language"] == "toml":
            yield Step(part["block"], re.findall(r"`([\w.]+\.toml)`", text[: part.start()])[-1])
        elif part["language"] == "bash":
            together = re.search(r"^export |&$", part["block"], re.MULTILINE)  # lines that need one shell
            yield from [Step(part["block"].strip())] if together else lines(part["block"])
        elif part["indented"]:
            yield from (step for step in lines(part["indented"]) if PROGRAM.match(step.text))
        elif part["inline"]:
            words = " ".join(part["inline"].split())
            if PROGRAM.match(words) and not NAME.fullmatch(words) and not BLANK.search(words):
                yield from lines(words)


def lines(text: str) -> Iterator[Step]:
    """Commands without comments; of `one && two` both."""
    for line in re.sub(r"\\\n\s*", "", text).splitlines():
        command = re.split(r"  |\s#", line.strip())[0]
        yield from (Step(each) for each in command.split(" && ") if each)


def notebook(path: Path) -> Iterator[Step]:
    """Its words, and the lines of code that are for a shell."""
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        text = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            yield from markdown(text + "\n")
        else:
            yield from lines("\n".join(re.findall(r"^[!%](pip .*|jaxdfl .*)$", text, re.MULTILINE)))


def helps() -> Iterator[Step]:
    """The help of `jaxdfl`, then that of each command."""
    texts = [EXAMPLES]
    for name in COMMANDS:
        texts.append(ABOUT if name == "sweep" else importlib.import_module(f"jaxdfl.commands.{name}").EXAMPLES)
    for text in texts:
        yield from (step for step in lines(text) if PROGRAM.match(step.text))


def pages() -> dict[str, list[Step]]:
    """All steps, by the page that prints them; one that a page repeats is there once. Some pages print Python alone."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    docs = [str(path.relative_to(ROOT)) for path in sorted((ROOT / "docs").rglob("*.md"))]
    names = [*FIRST, *re.findall(r"\]\((docs/\S+?\.md)\)", readme), *docs, "benchmarks/README.md", "CONTRIBUTING.md"]
    found = {name: list(markdown((ROOT / name).read_text(encoding="utf-8"))) for name in dict.fromkeys(names)}
    found["the helps"] = list(helps())
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        found[str(path.relative_to(ROOT))] = list(notebook(path))
    python = {name for name in names if python_in(ROOT / name)}
    return {name: list(dict.fromkeys(steps)) for name, steps in found.items() if steps or name in python}


def printed_commands(start: str) -> list[str]:
    """Every printed command that begins so."""
    return sorted(
        {step.text for steps in pages().values() for step in steps if not step.file and step.text.startswith(start)}
    )


def python_in(path: Path) -> str:
    """Its blocks of Python as one program; a block that shows a file of the package is none."""
    blocks = re.findall(r"^```python\n(.*?)^```", path.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return "\n".join(block for block in blocks if "--8<--" not in block)
