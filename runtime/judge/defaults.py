"""How much `check` compares unless told."""

from __future__ import annotations

WINDOW = 256
"""Tokens of a window, where the KV caches and the model hold as many."""
DEFAULT_TOKENS = 256
GREEDY_TOKENS = 64
"""Tokens of the greedy comparison, where they fit."""
PROMPT_TOKENS = 8
"""Tokens of the first window that are the prompt of the greedy comparison."""
HARDWARE_TOKENS = 8
"""Tokens compared on hardware: each takes a fraction of a second there."""
OPERATOR_TOKENS = 16
"""Tokens of the comparison operator by operator."""
OPERATOR_THRESHOLD = 0.05
"""Largest error of an operator's output over its largest magnitude that goes unremarked."""
SEED = 20240
"""Of the random tokens that are compared when neither prompt nor text is given."""
SENSITIVITY_WINDOWS = 8
"""Windows of a text on which formats are ranked, unless told."""
