"""Signals, memories, and the CIRCT operations below them."""
