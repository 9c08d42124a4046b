"""A short run of several methods and programs, for tests to kill: `python short_run.py OPTIONS`."""

import sys
from dataclasses import replace

from jaxdfl.experiment import main
from jaxdfl.presets import BILINEAR, named

SHORT = replace(
    BILINEAR,
    preset="short",
    methods=("dec_lora", "tad_lora:2", "rolora+event_triggered:0.1", "gradient_tracking"),  # the first two share one
    topologies=("erdos_renyi:0.2",),
    seeds=(0, 1),
    clients=4,
    rounds=40,
    local_steps=2,
    eval_every=5,
    checkpoints=True,
    checkpoint_every=10,
)

if __name__ == "__main__":
    sys.exit(main(named(SHORT)))
