"""Writes golden/{bert,roberta}: tiny checkpoints by transformers (torch), with inputs, adapters (PEFT's) and logits.

Run from the repository root: PYTHONPATH=. python tests/models/make_golden.py
"""

from pathlib import Path

import numpy as np
import peft
import torch
import transformers
from safetensors.numpy import save_file
from small_models import CONFIGS, attention_mask, batch

HERE = Path(__file__).parent / "golden"


def hugging_face_config(config, classes=3):
    """The transformers config that `EncoderConfig.from_transformers` reads as `config`."""
    return transformers.AutoConfig.for_model(
        config.model_type,
        vocab_size=config.vocabulary,
        max_position_embeddings=config.positions,
        type_vocab_size=config.types,
        hidden_size=config.width,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        intermediate_size=config.intermediate,
        hidden_act=config.activation,
        layer_norm_eps=config.epsilon,
        initializer_range=config.initializer_range,
        pad_token_id=max(config.position_offset - 1, 0),
        num_labels=classes,
    )


def torch_model(config, classes=3, seed=0):
    """A random torch model, in evaluation mode, with every parameter (biases and norms too) away from its default."""
    torch.manual_seed(seed)
    kind = transformers.AutoModelForSequenceClassification
    model = kind.from_config(hugging_face_config(config, classes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def torch_logits(model, examples):
    inputs = {
        "input_ids": np.asarray(examples.ids),
        "token_type_ids": np.asarray(examples.types),
        "attention_mask": attention_mask(examples),
    }
    with torch.no_grad():
        return model(**{name: torch.tensor(x.astype(np.int64)) for name, x in inputs.items()}).logits.numpy()


def add_adapters(model, targets=("query", "value"), rank=4, alpha=6.0, seed=1):
    """PEFT adapters with random A and B beside the torch model's layers; returns the wrapped model and its factors."""
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(targets))).eval()
    torch.manual_seed(seed)
    factors = {"a": {}, "b": {}}
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if ".lora_" in name:
                parameter.copy_(0.3 * torch.randn_like(parameter))
                layer, factor = name.split(".encoder.layer.")[1].split(".lora_")
                number, _, _, module = layer.split(".")  # 0.attention.self.query
                path = f"encoder/layers/{number}/attention/{module}"
                factors[factor[0].lower()][path] = parameter.numpy().copy()
    return wrapped, factors


def main():
    for name, config in CONFIGS.items():
        folder, model, examples = HERE / name, torch_model(config), batch(config)
        model.save_pretrained(folder)
        arrays = {"ids": examples.ids, "types": examples.types, "lengths": examples.lengths}
        arrays["logits"] = torch_logits(model, examples)
        wrapped, factors = add_adapters(model)
        wrapped.save_pretrained(folder / "adapter")
        (folder / "adapter" / "README.md").unlink()  # an empty card
        arrays["adapted_logits"] = torch_logits(wrapped, examples)
        arrays |= {f"{factor}:{path}": x for factor, by_path in factors.items() for path, x in by_path.items()}
        save_file({key: np.ascontiguousarray(x) for key, x in arrays.items()}, folder / "expected.safetensors")


if __name__ == "__main__":
    main()
