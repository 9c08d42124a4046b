"""Sizes and words of the tiny BERT that `conftest` makes."""

WORDS = {0: ("dull", "poor", "sad"), 1: ("fine", "good", "glad")}
VOCABULARY = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "film", "story", *WORDS[0], *WORDS[1])
WIDTH, POSITIONS, CLIENTS = 16, 24, 4
