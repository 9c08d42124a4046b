"""TAD-LoRA and its rivals on natural language inference.

python experiments/mnli.py                          a demonstration, offline, in minutes on two CPU cores
python experiments/mnli.py --preset minilm --data-dir DIR     a small model on real MNLI
python experiments/mnli.py --preset paper           RoBERTa-large on real MNLI, as in arXiv 2602.00451
"""

import sys

from jaxdfl.experiment import main
from jaxdfl.settings import Settings

DEMO = Settings(  # small and mildly skewed: so few steps on the paper's mixtures leave every method at chance
    preset="demo",
    task="natural_logic",
    weights="demo",
    methods=("dec_lora", "ffa_lora", "rolora", "tad_lora"),
    topologies=("erdos_renyi:0.3",),
    clients=4,
    partition="dirichlet:3",
    rounds=24,
    local_steps=5,
    batch_size=8,
    learning_rate=5e-3,
    eval_every=8,
    eval_examples=200,
)

PAPER = Settings(
    preset="paper",
    task="mnli",
    weights="FacebookAI/roberta-large",
    methods=("dec_lora", "ffa_lora", "rolora", *(f"tad_lora:{period}" for period in (1, 2, 3, 5, 10, 15))),
    topologies=("erdos_renyi:0.5", "erdos_renyi:0.1", "erdos_renyi:0.02"),
    seeds=(0, 1, 2),
    lora_dropout=0.1,
    moments="reset_each_round",
    clip=1.0,
    eval_every=25,
)

MINILM = Settings(
    preset="minilm",
    task="mnli",
    weights="demo",
    methods=("dec_lora", "ffa_lora", "rolora", "tad_lora"),
    topologies=("erdos_renyi:0.5", "erdos_renyi:0.02"),
    lora_dropout=0.1,
    moments="reset_each_round",
    clip=1.0,
    eval_every=25,
    eval_examples=2000,
)

if __name__ == "__main__":
    sys.exit(main({preset.preset: preset for preset in (DEMO, MINILM, PAPER)}))
