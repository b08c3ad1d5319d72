"""Names of a trained model's linear layers, and the sites of a chip that they stand for.

A name is read whole: what stands before `layers.N` has to be the path of a decoder, what stands
between that and the last part its attention or its MLP. A tower for pictures or sound, an encoder,
a head that drafts tokens, cross attention and experts have layers and projections of the same
names, which are other matrices.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

_LAYER = re.compile(
    r"(?:^|(?P<before>.*?)\.)(?P<list>layers?|h|blocks?)\.(?P<number>[0-9]{1,9})(?:\.|$)"
)
_LONGEST = 1024
"""Characters of a name that are looked at."""

_DECODER = frozenset(
    {
        *("module", "_orig_mod", "base_model"),  # wrappers: DataParallel, torch.compile, PEFT
        *("model", "transformer", "decoder", "gpt_neox", "backbone"),
        # Of models that see or hear, the part that speaks.
        *("language_model", "text_model", "llm", "thinker"),
    }
)
"""What a decoder's path may consist of."""

_ATTENTION = frozenset({"attn", "attention", "self_attn", "self_attention", "mixer"})
_NETWORK = frozenset({"mlp", "feed_forward", "ffn"})

_FOREIGN: Sequence[tuple[re.Pattern[str], str]] = tuple(
    (re.compile(pattern), text)
    for pattern, text in (
        (r"vision|visual|image|vit|clip|siglip|pixel", "of a vision tower"),
        (r"audio|speech|sound|wav|whisper|talker|codec", "of an audio model"),
        (r"q_?former|resampler|perceiver|projector|connector", "of a connector between models"),
        (r"mtp|nextn|draft|eagle|medusa|speculat|hydra", "of a head that drafts tokens"),
        (r"cross_?att|crossattention|encoder_att|encdec", "cross attention"),
        (r"expert|moe|router", "an expert's"),
        (r"encoder", "of an encoder"),
    )
)
"""What is known by name not to be of a decoder's layer, the more telling words first."""

_ALIASES: Mapping[str, tuple[str, ...]] = {
    "q_proj": ("attn.q_proj", "attn.wq"),
    "k_proj": ("attn.k_proj", "attn.wk"),
    "v_proj": ("attn.v_proj", "attn.wv"),
    "o_proj": ("attn.o_proj", "attn.wo", "attn.out_proj", "attn.c_proj", "attn.dense"),
    # w1 and w2 are gate and down in Llama's own code, but Qwen's first has `mlp.w1` for up.
    "gate_proj": ("mlp.gate_proj", "feed_forward.w1"),
    "up_proj": (
        *("mlp.up_proj", "feed_forward.w3", "mlp.fc1", "mlp.fc_in", "mlp.c_fc"),
        "mlp.dense_h_to_4h",
    ),
    "down_proj": (
        *("mlp.down_proj", "feed_forward.w2", "mlp.fc2", "mlp.fc_out", "mlp.c_proj"),
        "mlp.dense_4h_to_h",
    ),
    "qkv_proj": ("attn.qkv_proj", "attn.c_attn", "attn.Wqkv"),
    "gate_up_proj": ("mlp.gate_up_proj",),
}
"""Names that trainers' models have for a role, with the part of the layer that they are in."""
_PLAIN = ("c_proj", "dense")
"""Names that mean nothing without that part."""


@dataclass(frozen=True)
class Named:
    """What a module's name says.

    Attributes:
        sites: `layers.<i>.<role>` of each role that it holds; none where it has none.
        why: what the module is instead, where that is known.
    """

    sites: tuple[str, ...] = ()
    why: str | None = None


def site_names(module: str) -> tuple[str, ...]:
    """The sites that a module stands for, none when its name is not that of a decoder's layer.

    `model.layers.3.self_attn.q_proj` is `layers.3.q_proj`; so is `layers.3.q_proj` itself.
    """
    return read_name(module).sites


def read_name(module: str) -> Named:
    """Reads a module's name."""
    if (match := _LAYER.match(module[:_LONGEST])) is None:
        return Named(why=_foreign(module))
    before = (match["before"] or "").split(".") if match["before"] else []
    *between, last = module[match.end() :].split(".")
    strange = [part for part in before if part not in _DECODER]
    if strange:
        where = f"what stands before {match['list']}.{match['number']} is no decoder's path"
        return Named(why=_foreign(*strange) or f"{where} ('{strange[0]}')")
    keys = _keys(between, last)
    roles = next((_roles()[key] for key in keys if key in _roles()), ())
    if not roles:
        return Named(why=_foreign(*between, last))
    return Named(tuple(f"layers.{match['number'].lstrip('0') or '0'}.{role}" for role in roles))


def _keys(between: Sequence[str], last: str) -> Sequence[str]:
    """How the table may name what stands behind a layer's number."""
    parts = list(between)
    # GPT-Neo has its attention in another.
    if len(parts) == 2 and parts[0] in _ATTENTION and parts[1] in _ATTENTION:
        parts.pop()
    match parts:
        case []:
            return () if last in _PLAIN else (f"attn.{last}", f"mlp.{last}", f"feed_forward.{last}")
        case [one] if one in _ATTENTION:
            return (f"attn.{last}",)
        case [one] if one in _NETWORK:
            return (f"mlp.{last}",) if one == "mlp" else (f"mlp.{last}", f"feed_forward.{last}")
        case _:
            return ()


def _foreign(*parts: str) -> str | None:
    for pattern, text in _FOREIGN:
        if any(pattern.search(part.lower()) for part in parts):
            return text
    return None


@cache
def _roles() -> Mapping[str, tuple[str, ...]]:
    """Roles of a layer's modules, by part and name."""
    from intaglio.lowering.step.sites import PACKED

    return {
        alias: PACKED.get(role, (role,)) for role, aliases in _ALIASES.items() for alias in aliases
    }
