"""Weights: their encodings, their bytes, other codes for them, and graphs that judge these."""
