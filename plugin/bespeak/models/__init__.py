"""Model files, encoders and vectors."""
