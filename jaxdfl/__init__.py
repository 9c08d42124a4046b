"""jaxdfl: decentralized federated LoRA fine-tuning, all clients at once, on one device. Start at `jaxdfl.protocol`."""

__version__ = "0.1.0"
