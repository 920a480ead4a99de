"""What users did, and the profile derived from it."""
