"""The matrix array."""
