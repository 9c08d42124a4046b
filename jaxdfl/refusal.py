"""How a person is told that something is wrong: in one line on stderr."""

import sys

from jaxdfl.exit_codes import REFUSED

LONGEST = 1200  # characters; more is cut out of the middle


def refuse(error: Exception | str, code: int = REFUSED) -> int:
    """Says it; returns the exit code."""
    said = " ".join(str(error).split()) or type(error).__name__
    if len(said) > LONGEST:
        said = f"{said[: LONGEST // 2]} [...] {said[-LONGEST // 3 :]}"
    print(f"error: {said}".encode(errors="backslashreplace").decode(), file=sys.stderr)
    return code
