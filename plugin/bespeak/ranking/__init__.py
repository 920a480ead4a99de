"""The order of hits for one user, and the evidence for it."""
