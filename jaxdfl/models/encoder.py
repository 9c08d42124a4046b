"""BERT and RoBERTa sequence classifiers as one model; what differs between them is data in `EncoderConfig`.

BERT: Devlin et al., 2019, arXiv 1810.04805. RoBERTa: Liu et al., 2019, arXiv 1907.11692. Post-LayerNorm encoder, then
dense -> tanh -> out on the first token. Only LoRA has dropout here: the frozen backbone and the head are deterministic
in training too, whereas `transformers` in training mode also drops hidden states and attention weights (rate 0.1).
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Key

from jaxdfl.data.examples import Examples, Rows, one_a_row
from jaxdfl.models.layers import ACTIVATIONS, Attention, Embedding, FeedForward, LayerNorm, Linear, Sight
from jaxdfl.trees import at_least_float32, wide

# Which modules a task's own head consists of. BERT's pooler is pretrained, so it belongs to the backbone; RoBERTa has
# none that is, and its dense layer (`classifier.dense` in a checkpoint, `pooler` here) starts anew with every task.
HEADS = {"bert": ("classifier",), "roberta": ("pooler", "classifier")}


@dataclass(frozen=True)
class EncoderConfig:
    """Everything that fixes the shape and the arithmetic of an encoder."""

    model_type: str  # "bert" or "roberta"
    vocabulary: int
    positions: int  # rows of the position table; the longest sentence is positions - position_offset
    types: int
    width: int
    layers: int
    heads: int
    intermediate: int
    activation: str = "gelu"
    epsilon: float = 1e-12
    initializer_range: float = 0.02  # standard deviation of freshly drawn weights
    position_offset: int = 0  # position of the first token: pad_token_id + 1 in RoBERTa

    def __post_init__(self):
        if self.model_type not in HEADS:
            raise ValueError(f"`model_type` {self.model_type!r} is not supported; supported are {sorted(HEADS)}.")
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"`activation` {self.activation!r} is not supported; supported are {list(ACTIVATIONS)}.")
        if self.width % self.heads:
            raise ValueError(f"`width` must be a multiple of `heads`, got {self.width} and {self.heads}.")

    @classmethod
    def from_transformers(cls, config: Any) -> "EncoderConfig":
        """From a `transformers` config, such as `AutoConfig` gives.

        Raises:
            ValueError: another architecture, or a variant (decoder, relative positions) that is not implemented.
        """
        if config.model_type not in HEADS:
            raise ValueError(f"`model_type` {config.model_type!r} is not supported; supported are {sorted(HEADS)}.")
        positions = getattr(config, "position_embedding_type", None) or "absolute"
        if positions != "absolute":
            raise ValueError(f"`position_embedding_type` {positions!r} is not supported; it must be 'absolute'.")
        if config.is_decoder or config.add_cross_attention:
            raise ValueError("`is_decoder` and `add_cross_attention` must be false: only encoders are supported.")
        roberta = config.model_type == "roberta"
        if roberta and config.pad_token_id is None:
            raise ValueError("`pad_token_id` is missing from the config: RoBERTa counts positions from it; set it (1).")
        return cls(
            model_type=config.model_type,
            vocabulary=config.vocab_size,
            positions=config.max_position_embeddings,
            types=config.type_vocab_size,
            width=config.hidden_size,
            layers=config.num_hidden_layers,
            heads=config.num_attention_heads,
            intermediate=config.intermediate_size,
            activation=config.hidden_act,
            epsilon=config.layer_norm_eps,
            initializer_range=config.initializer_range,
            position_offset=config.pad_token_id + 1 if roberta else 0,
        )

    @property
    def head(self) -> tuple[str, ...]:
        """Paths of the modules that make up the classification head."""
        return HEADS[self.model_type]


class Embeddings(nnx.Module):
    """Word + position + segment, normalised."""

    def __init__(self, config: EncoderConfig, dtype: DTypeLike):
        self.word = Embedding(config.vocabulary, config.width, dtype)
        self.position = Embedding(config.positions, config.width, dtype)
        self.type = Embedding(config.types, config.width, dtype)
        self.norm = LayerNorm(config.width, config.epsilon, dtype)
        self.offset = config.position_offset

    def __call__(self, rows: Rows) -> Float[Array, "rows length width"]:
        return self.norm(self.word(rows.ids) + self.position(rows.positions + self.offset) + self.type(rows.types))


class Layer(nnx.Module):
    """Attention, then feed-forward, each with a residual and a LayerNorm after it."""

    def __init__(self, config: EncoderConfig, dtype: DTypeLike):
        self.attention = Attention(config.width, config.heads, dtype)
        self.attention_norm = LayerNorm(config.width, config.epsilon, dtype)
        self.feed_forward = FeedForward(config.width, config.intermediate, config.activation, dtype)
        self.feed_forward_norm = LayerNorm(config.width, config.epsilon, dtype)

    def __call__(
        self,
        queries: Float[Array, "batch queries width"],
        hidden: Float[Array, "batch length width"],
        sight: Sight,
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "batch queries width"]:
        """The layer's output at `queries`, which are all of `hidden` or the positions that someone reads."""
        x = self.attention_norm(queries + self.attention(queries, hidden, sight, key))
        return self.feed_forward_norm(x + self.feed_forward(x, key))


class Encoder(nnx.Module):
    """A stack of layers, of which the last runs only where its output is read."""

    def __init__(self, config: EncoderConfig, dtype: DTypeLike):
        self.layers = nnx.List([Layer(config, dtype) for _ in range(config.layers)])
        self.first = 0  # the layer to begin with; those below may have run already (`jaxdfl.models.prefix`)
        self.remat = False  # compute a layer's inner values again for its gradient rather than keep them

    def __call__(
        self,
        hidden: Float[Array, "rows length width"],
        sentence: Int[Array, "rows length"],
        firsts: Int[Array, "rows sentences"],
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "rows sentences width"]:
        """The final hidden state of each sentence's first token; tokens see their own sentence alone."""
        sight = _within(sentence, firsts.shape[1])
        for layer in self.layers[self.first : -1]:
            hidden = self._run(layer, hidden, hidden, sight, key)
        read = jnp.take_along_axis(hidden, firsts[:, :, None], axis=1)
        of_readers = Sight(jnp.arange(firsts.shape[1])[:, None] == sentence[:, None, :])
        return self._run(self.layers[-1], read, hidden, of_readers, key)

    def below(
        self, layer: int, hidden: Float[Array, "rows length width"], rows: Rows
    ) -> Float[Array, "rows length width"]:
        """What layer number `layer` gets to see, from the embeddings."""
        sight = _within(rows.sentence, rows.firsts.shape[1])
        for earlier in self.layers[:layer]:
            hidden = earlier(hidden, hidden, sight)
        return hidden

    def _run(self, layer: Layer, *inputs: Any) -> Float[Array, "rows queries width"]:
        return (jax.checkpoint(layer) if self.remat else layer)(*inputs)


def _within(sentence: Int[Array, "rows length"], sentences: int) -> Sight:
    """Tokens of the same sentence see each other.

    A product of indicators rather than `==`, which XLA would fuse into every softmax and, on CPUs, not vectorize.
    """
    indicators = jax.nn.one_hot(sentence, sentences)  # [rows, length, sentences]; none for padding
    return Sight(jnp.einsum("ris,rjs->rij", indicators, indicators) > 0.5, sentence)


class EncoderClassifier(nnx.Module):
    """Sequence classification on the first token, as in BertFor- and RobertaForSequenceClassification.

    `dtype` is the dtype of the backbone and of its arithmetic; the head is kept and run in float32 at least.
    """

    def __init__(self, config: EncoderConfig, classes: int, dtype: DTypeLike = jnp.float32):
        self.config, self.longest = config, config.positions - config.position_offset
        self.embeddings = Embeddings(config, dtype)
        self.encoder = Encoder(config, dtype)
        self.pooler = Linear(config.width, config.width, at_least_float32(dtype) if "pooler" in config.head else dtype)
        self.classifier = Linear(config.width, classes, at_least_float32(dtype))

    def __call__(self, examples: Examples | Rows, key: Key[Array, ""] | None = None) -> Float[Array, "batch classes"]:
        """Logits, float32 at least, of each example, or of each slot of packed rows (without a sentence: finite,
        meaningless).

        A key switches LoRA dropout on.
        """
        if isinstance(examples, Examples):
            if (length := examples.ids.shape[-1]) > self.longest:
                raise ValueError(
                    f"`examples` have {length} tokens; the model takes {self.longest}: cut them to that length."
                )
            examples = one_a_row(examples)
        first = self.encoder(self.embeddings(examples), examples.sentence, examples.firsts, key)
        first = wide(first.reshape(-1, first.shape[-1]))
        return self.classifier(jnp.tanh(self.pooler(first, key)), key)
