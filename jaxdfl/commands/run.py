"""`jaxdfl run`: one experiment, methods x topologies x seeds x learning rates, from a preset."""

from collections.abc import Sequence

from jaxdfl import experiment
from jaxdfl.presets import PRESETS


def main(argv: Sequence[str]) -> int:
    """Runs it; see `jaxdfl.experiment.main`."""
    return experiment.main(PRESETS, argv, command=("jaxdfl", "run"))
