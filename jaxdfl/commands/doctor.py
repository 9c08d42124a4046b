"""`jaxdfl doctor`: versions, devices, memory, and a numerical self-test."""

from collections.abc import Sequence

from jaxdfl import doctor
from jaxdfl.commands.parser import Parser, one_line


def main(argv: Sequence[str]) -> int:
    """1 where the self-test fails, else 0."""
    parser = Parser("doctor", "Is this machine's arithmetic right? Versions, devices, memory, self-test.", EXAMPLES)
    return one_line(parser.read)(argv) or doctor.main()


EXAMPLES = "  jaxdfl doctor       exit code 1 where compiled code gives wrong numbers\n"
