"""Settings that the studies of `experiments/` start from: same problem and budget, so that their figures compare."""

from dataclasses import replace

from jaxdfl.settings import Settings

BILINEAR = Settings(  # a proving ground without text: seconds a run
    preset="bilinear",
    task="bilinear:1",
    weights="none",
    methods=("dec_lora", "tad_lora"),
    topologies=("erdos_renyi:0.1",),
    seeds=tuple(range(10)),
    partition="own",
    rounds=150,
    local_steps=5,
    batch_size=8,
    learning_rate=(5e-3,),
    rank=4,
    alpha=8.0,
    eval_every=150,
    checkpoints=False,
)

DEMO = Settings(  # small and mildly skewed: so few steps on the paper's mixtures leave every method at chance
    preset="demo",
    task="natural_logic",
    weights="demo",
    methods=("dec_lora", "tad_lora"),
    topologies=("erdos_renyi:0.3",),
    clients=4,
    partition="dirichlet:3",
    rounds=24,
    local_steps=5,
    batch_size=8,
    learning_rate=(5e-3,),
    eval_every=8,
    eval_examples=200,
)

PAPER = Settings(  # TAD-LoRA, arXiv 2602.00451, as secondary sources give it
    preset="paper",
    task="mnli",
    weights="FacebookAI/roberta-large",
    methods=("dec_lora", "tad_lora"),
    topologies=("erdos_renyi:0.5", "erdos_renyi:0.1", "erdos_renyi:0.02"),
    seeds=(0, 1, 2),
    lora_dropout=0.1,
    moments="reset_each_round",
    clip=1.0,
    eval_every=25,
)

MINILM = replace(PAPER, preset="minilm", weights="demo", eval_examples=2000)  # the paper's budget, a small model


def named(*presets: Settings) -> dict[str, Settings]:
    """Presets by name, as `jaxdfl.experiment.main` takes them."""
    return {preset.preset: preset for preset in presets}


PRESETS = named(  # of `jaxdfl run`
    DEMO, BILINEAR, replace(DEMO, preset="rotten_tomatoes", task="rotten_tomatoes", max_length=32), MINILM, PAPER
)
