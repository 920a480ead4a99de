"""Trains the rewriter's adapter: pairs → conversations → sequences → adapter (`docs/training.md`)."""
