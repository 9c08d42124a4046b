"""`jaxdfl run`: one experiment, methods x topologies x seeds x learning rates, from a preset."""

from collections.abc import Sequence

from jaxdfl import experiment
from jaxdfl.presets import PRESETS

EXAMPLES = """\
  jaxdfl run                                       the preset demo: offline, in minutes
  jaxdfl run --preset bilinear --methods dec_lora tad_lora:1 tad_lora:5 --seeds 0 1 2 --out runs/periods   seconds
  jaxdfl run --preset runs/periods --seeds 3 4 --out runs/more     the settings of that run, with other seeds
  jaxdfl run --preset rotten_tomatoes --topologies ring "small_world:4:0.2" --clients 8
  jaxdfl run --methods "tad_lora:5+event_triggered:0.1+packet_loss:0.2" --out runs/composed
  jaxdfl run --preset mine.toml --seeds 0 1 2      settings from a file of your own (see `jaxdfl preset --help`)
  jaxdfl run --track tensorboard --out runs/seen   shown by `tensorboard --logdir runs`; needs the extra of that name
  jaxdfl run --preset paper --distributed          one of several processes that are one run (docs/howto/devices.md)
  jaxdfl run --preset paper                        RoBERTa-large on MNLI; needs a GPU and the hub
"""


def main(argv: Sequence[str]) -> int:
    """Runs it; see `jaxdfl.experiment.main`."""
    try:
        return experiment.main(PRESETS, argv, command=("jaxdfl", "run"))
    finally:
        if "-h" in argv or "--help" in argv:
            print("examples:", EXAMPLES, sep="\n")
