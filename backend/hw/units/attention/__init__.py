"""The attention unit, and where the KV cache lies in it."""
