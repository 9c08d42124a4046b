"""`jaxdfl report`: finished runs as one HTML page, tables and figures."""

from collections.abc import Sequence
from pathlib import Path

from jaxdfl.commands.parser import Parser, one_line

EXAMPLES = """\
  jaxdfl report runs/first --out report                            open report/report.html
  jaxdfl report runs/periods runs/more --out report                runs of one comparison, made apart
  jaxdfl report runs/periods --baseline tad_lora:1 --out report    what others are measured against
"""
ABOUT = (
    "Finished runs as one self-contained page (report.html), tables.md, tables.tex, and figures/ as PDF and PNG. Runs "
    "that differ in more than method, topology, seed and learning rate are refused."
)


def work(argv: Sequence[str]) -> None:
    """Writes everything into --out, replacing an earlier report there."""
    parser = Parser("report", ABOUT, EXAMPLES)
    parser.add_argument("folders", metavar="RUN", nargs="+", help="run folders of one comparison")
    parser.add_argument("--out", required=True, help="folder of the report")
    parser.add_argument("--baseline", help="method to measure against; dec_lora, or the first, unless named")
    asked = parser.read(argv)
    from jaxdfl.comparison import compare  # not above: --help need not wait for jax
    from jaxdfl.page.files import write

    print(write(Path(asked.out), compare(asked.folders, asked.baseline)))


main = one_line(work)
