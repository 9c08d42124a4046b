"""One table per model family: module paths here, and the same modules' names in a Hugging Face checkpoint.

Checkpoints keep a linear weight as [d_out, d_in], so a `kernel` is its transpose.
"""

import re

_BACKBONE = {
    "embeddings/word": "embeddings.word_embeddings",
    "embeddings/position": "embeddings.position_embeddings",
    "embeddings/type": "embeddings.token_type_embeddings",
    "embeddings/norm": "embeddings.LayerNorm",
    "encoder/layers/{}/attention/query": "encoder.layer.{}.attention.self.query",
    "encoder/layers/{}/attention/key": "encoder.layer.{}.attention.self.key",
    "encoder/layers/{}/attention/value": "encoder.layer.{}.attention.self.value",
    "encoder/layers/{}/attention/output": "encoder.layer.{}.attention.output.dense",
    "encoder/layers/{}/attention_norm": "encoder.layer.{}.attention.output.LayerNorm",
    "encoder/layers/{}/feed_forward/intermediate": "encoder.layer.{}.intermediate.dense",
    "encoder/layers/{}/feed_forward/output": "encoder.layer.{}.output.dense",
    "encoder/layers/{}/feed_forward_norm": "encoder.layer.{}.output.LayerNorm",
}
NAMES = {
    "bert": _BACKBONE | {"pooler": "pooler.dense", "classifier": "classifier"},
    "roberta": _BACKBONE | {"pooler": "classifier.dense", "classifier": "classifier.out_proj"},
}
_LEAVES = {"kernel": "weight", "bias": "bias", "scale": "weight", "table": "weight"}
_UNUSED = {  # left out on purpose: buffers, and the heads of pretraining
    "bert": ("embeddings.position_ids", "embeddings.token_type_ids", "cls."),
    "roberta": ("embeddings.position_ids", "embeddings.token_type_ids", "lm_head.", "pooler."),
}


def checkpoint_name(model_type: str, path: str) -> str:
    """The name, without the family's prefix, of the tensor that fills the leaf at `path`."""
    module, leaf = path.rsplit("/", 1)
    number = re.findall(r"\d+", module)
    return NAMES[model_type][re.sub(r"\d+", "{}", module)].format(*number) + "." + _LEAVES[leaf]


def plain_name(model_type: str, name: str) -> str | None:
    """A checkpoint's own spelling without prefix and in today's words; None for a tensor that has no use here."""
    plain = name.removeprefix(f"{model_type}.")
    plain = plain.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
    return None if plain.startswith(_UNUSED[model_type]) else plain
