"""TAD-LoRA and its rivals on natural language inference.

python experiments/mnli.py                          a demonstration, offline, in minutes on two CPU cores
python experiments/mnli.py --preset minilm --data-dir DIR     a small model on real MNLI
python experiments/mnli.py --preset paper           RoBERTa-large on real MNLI, as in arXiv 2602.00451
"""

import sys
from dataclasses import replace

from jaxdfl import presets
from jaxdfl.experiment import main

RIVALS = ("dec_lora", "ffa_lora", "rolora")

DEMO = replace(presets.DEMO, methods=(*RIVALS, "tad_lora"))
MINILM = replace(
    presets.MINILM, methods=DEMO.methods, topologies=("erdos_renyi:0.5", "erdos_renyi:0.02"), seeds=(0,)
)  # fmt: skip
PAPER = replace(presets.PAPER, methods=(*RIVALS, *(f"tad_lora:{period}" for period in (1, 2, 3, 5, 10, 15))))

if __name__ == "__main__":
    sys.exit(main(presets.named(DEMO, MINILM, PAPER)))
