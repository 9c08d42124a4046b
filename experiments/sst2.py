"""TAD-LoRA and its rivals on the sentiment of single sentences: the presets of `mnli.py` on other data.

python experiments/sst2.py                          Rotten Tomatoes sentences from a package, offline
python experiments/sst2.py --preset minilm --data-dir DIR     a small model on real SST-2
python experiments/sst2.py --preset paper           RoBERTa-large on real SST-2, as in arXiv 2602.00451

Rotten Tomatoes holds most of SST-2's validation sentences: never train on one and test on the other.
"""

import sys
from dataclasses import replace

from mnli import DEMO, MINILM, PAPER

from jaxdfl.experiment import main

PRESETS = {
    "demo": replace(DEMO, task="rotten_tomatoes", max_length=32),  # holds most sentences; all are padded to the longest
    "minilm": replace(MINILM, task="sst2"),
    "paper": replace(PAPER, task="sst2"),
}

if __name__ == "__main__":
    sys.exit(main(PRESETS))
