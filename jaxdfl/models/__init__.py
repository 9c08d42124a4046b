"""Pretrained classifiers in plain Flax, for one client; the engine sees them as plain pytrees through `adapt`."""

from jaxdfl.models.classifier import Classifier, adapt, cross_entropy
from jaxdfl.models.encoder import EncoderClassifier, EncoderConfig
from jaxdfl.models.pretrained import Weights, load, random_model
from jaxdfl.models.sources import demo_weights

__all__ = [
    "Classifier",
    "EncoderClassifier",
    "EncoderConfig",
    "Weights",
    "adapt",
    "cross_entropy",
    "demo_weights",
    "load",
    "random_model",
]
