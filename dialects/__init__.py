"""The vocabulary: the rom, fabric and program dialects, and the plain-Python algebra they use."""
