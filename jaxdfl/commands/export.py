"""`jaxdfl export`: an adapter of a finished run as a PEFT folder."""

from collections.abc import Sequence

from jaxdfl.commands.parser import Parser, one_line

EXAMPLES = """\
  jaxdfl export runs/first --run 0 --to adapter                      the average of all clients
  jaxdfl export runs/first --run 0 --client 3 --to adapter-of-3      one client's own
  jaxdfl run --init-adapter adapter --rank 8 --alpha 16              start from it again
"""


def work(argv: Sequence[str]) -> None:
    """Writes the folder, and says what it holds."""
    parser = Parser("export", "An adapter of a finished run as a folder for peft.PeftModel.from_pretrained.", EXAMPLES)
    parser.add_argument("folder", metavar="RUN", help="a run folder, with checkpoints")
    parser.add_argument("--to", required=True, help="the new folder")
    parser.add_argument(
        "--client", default="average",
        help="a number from 0; average (mean A, mean B; the default); or average-product (exact, of a larger rank)",
    )  # fmt: skip
    parser.add_argument("--run", type=int, help="number of the run in the folder, from 0; needed if there are several")
    asked = parser.read(argv)
    from jaxdfl.export import export  # not above: --help need not wait for jax

    print(f"{export(asked.folder, asked.to, client=asked.client, run=asked.run)}: {asked.to}")


main = one_line(work)
