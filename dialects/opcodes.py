"""The instructions of a chip: every opcode, and the queues it may stand in."""

from __future__ import annotations

OPCODES: dict[str, tuple[str, ...]] = {
    "embed": ("matrix",),
    "matvec": ("matrix", "attention"),
    "rms_norm": ("vector",),
    "layer_norm": ("vector",),
    "quantize": ("vector",),
    "rotary": ("vector",),
    "activate": ("vector",),
    "add": ("vector",),
    "mul": ("vector",),
    "scale": ("vector",),
    "softcap": ("vector",),
    "copy": ("vector",),
    "softmax": ("vector",),
    "sample": ("vector",),
    "append": ("kv",),
    "query_key": ("attention",),
    "weighted_sum": ("attention",),
    "wake": ("power",),
    "sleep": ("power",),
}
