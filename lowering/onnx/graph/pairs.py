"""What the names of a decoder's inputs and outputs say.

Which output gives back which past key or value: by their names, else in order.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

STATE = r"conv|recurrent|ssm|state"
"""What the last part of the name of an input has that is a state of fixed size."""

Key = tuple[tuple[str, ...], str]


def presents_of(pasts: Sequence[str], presents: Sequence[str]) -> dict[str, str]:
    """The present output for each past input, as far as there is one.

    Names that exporters choose hold the layer's number and say whether it is a key or a value
    (`past_key_values.3.key` and `present.3.key`). Where the names do not tell all of them
    (torch.onnx without `output_names` writes `cat_7`), the first past belongs to the first present.

    Args:
        pasts: names of past inputs, in the order of the graph.
        presents: names of present outputs, in the order of the graph.
    """
    named = {_key(name): name for name in presents}
    found = {past: named[_key(past)] for past in pasts if _key(past) in named}
    clear = len(set(found.values())) == len(pasts) and len(named) == len(presents)
    if clear or len(pasts) != len(presents):
        return found
    return dict(zip(pasts, presents, strict=True))


def is_mask(name: str) -> bool:
    """Whether an integer input [batch, tokens] of this name says which tokens count."""
    return "attention_mask" in name or name.split(".")[-1] in ("mask", "attn_mask", "padding_mask")


def is_position(name: str) -> bool:
    """Whether an integer input of this name holds the positions of the new tokens."""
    return "position" in name


def _key(name: str) -> Key:
    last = name.split(".")[-1]
    kind = "value" if re.search(r"value|\bv\b", last) else "key"
    kind = last if re.search(STATE, last) else kind
    return tuple(re.findall(r"\d+", name)), kind
