"""A client's search bodies and the engine's answers."""
