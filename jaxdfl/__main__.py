"""`python -m jaxdfl COMMAND ...`, the same as `jaxdfl COMMAND ...`."""

import sys

from jaxdfl.commands import main

if __name__ == "__main__":
    sys.exit(main())
