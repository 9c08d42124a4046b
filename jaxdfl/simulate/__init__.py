"""The engine: the only place with a round loop."""
