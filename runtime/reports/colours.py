"""Which colour and which pattern a thing has, in every picture and in both colour schemes.

A queue has one colour, and its instructions have it too, each opcode with a pattern of its own. The
colours differ in lightness as much as in hue, so that they are told apart without colour vision;
each is at least 3:1 against the page in its scheme (WCAG 2.2, 1.4.11). Tensors have tones of
another family. Nothing is given out in turn, so that no colour begins again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from intaglio.dialects.isa import attention, cache, matrix, power, recurrence, vector

PAPER = ("#ffffff", "#16191d")
"""The page: light, dark."""
_PAGE = {"ink": ("#1b1f24", "#e4e7eb"), "paper": PAPER, "line": ("#c9ced6", "#454c56")}
"""Texts, the page, and lines that divide it."""

TONES: dict[str, tuple[str, str]] = {
    "kv": ("#600169", "#a938b3"),
    "matrix": ("#034a99", "#0a7ffe"),
    "attention": ("#bb2e00", "#ff774a"),
    "vector": ("#098a79", "#12d8bf"),
    "power": ("#b78d06", "#fee3b1"),
    "issue": ("#6b6b6b", "#a4a8ae"),
    "tensor1": ("#02344c", "#d3eaff"),
    "tensor2": ("#325d7b", "#89b2d4"),
    "tensor3": ("#6790b0", "#56809f"),
}
"""Light and dark form of each tone. Queues go by their names."""

TENSORS = ("tensor1", "tensor2", "tensor3")

PATTERNS: dict[str, tuple[int, int, str]] = {
    "solid": (0, 0, ""),
    "diagonal": (5, 45, '<path d="M0 0V5"/>'),
    "back": (5, -45, '<path d="M0 0V5"/>'),
    "dots": (5, 0, '<circle cx="2.5" cy="2.5" r=".6"/>'),
    "lines": (4, 0, '<path d="M0 0H4"/>'),
    "bars": (4, 0, '<path d="M0 0V4"/>'),
    "grid": (6, 0, '<path d="M0 0H6M0 0V6"/>'),
    "net": (6, 45, '<path d="M0 0H6M0 0V6"/>'),
    "broad-diagonal": (10, 45, '<path stroke-width="3" d="M0 0V10"/>'),
    "broad-lines": (9, 0, '<path stroke-width="3" d="M0 0H9"/>'),
    "broad-bars": (10, 0, '<path stroke-width="3" d="M0 0V10"/>'),
    "broad-back": (10, -45, '<path stroke-width="3" d="M0 0V10"/>'),
    "wide-bars": (7, 0, '<path d="M0 0V7"/>'),
    "large-dots": (7, 0, '<circle cx="3.5" cy="3.5" r="1.5"/>'),
    "rings": (8, 0, '<circle cx="4" cy="4" r="2"/>'),
    "small-net": (4, 45, '<path d="M0 0H4M0 0V4"/>'),
    "wide-back": (8, -45, '<path d="M0 0V8"/>'),
    "wide-diagonal": (8, 45, '<path d="M0 0V8"/>'),
    "wide-grid": (9, 0, '<path d="M0 0H9M0 0V9"/>'),
    "wide-lines": (7, 0, '<path d="M0 0H7"/>'),
    "wide-net": (9, 45, '<path d="M0 0H9M0 0V9"/>'),
}
"""Size of a tile, degrees it is turned by, and what is drawn on it in the page's colour."""

_OPCODE_PATTERNS = {
    matrix.Matvec.opcode: "solid",
    matrix.ExpertMatvec.opcode: "back",
    matrix.Embed.opcode: "dots",
    matrix.EmbedPosition.opcode: "grid",
    attention.QueryKey.opcode: "diagonal",
    attention.WeightedSum.opcode: "lines",
    recurrence.LinearAttention.opcode: "grid",
    vector.Softmax.opcode: "solid",
    vector.SoftmaxPlaces.opcode: "wide-grid",
    vector.RMSNorm.opcode: "diagonal",
    vector.LayerNorm.opcode: "back",
    vector.Quantize.opcode: "dots",
    vector.QuantizeBlocks.opcode: "wide-diagonal",
    vector.QuantizeHeads.opcode: "wide-net",
    vector.RMSScale.opcode: "wide-lines",
    vector.Rotary.opcode: "bars",
    vector.Activate.opcode: "broad-lines",
    vector.Add.opcode: "grid",
    vector.Mul.opcode: "net",
    vector.ScaleBy.opcode: "broad-diagonal",
    vector.Softcap.opcode: "rings",
    vector.Clip.opcode: "broad-back",
    vector.Route.opcode: "wide-bars",
    vector.Weigh.opcode: "large-dots",
    vector.Copy.opcode: "lines",
    vector.Tap.opcode: "small-net",
    vector.Delay.opcode: "wide-back",
    vector.Sample.opcode: "broad-bars",
    cache.Append.opcode: "solid",
    power.Wake.opcode: "solid",
    power.WakeChosen.opcode: "dots",
    power.Sleep.opcode: "diagonal",
}


@dataclass(frozen=True)
class Fill:
    """A tone, and a pattern on it."""

    tone: str
    pattern: str = "solid"

    @property
    def name(self) -> str:
        """A name for a class of elements."""
        return f"f-{self.tone}-{self.pattern}"


ISSUE = Fill("issue", "broad-diagonal")
"""Cycles between one instruction and the next."""


def queue_fill(queue: str) -> Fill:
    """What a class of unit looks like."""
    return Fill(queue)


def opcode_fill(queue: str, opcode: str) -> Fill:
    """What an instruction looks like: its queue's colour, its opcode's pattern."""
    return Fill(queue, _OPCODE_PATTERNS[opcode])


MOST_TENSORS = len(TENSORS) * len(PATTERNS)
"""Classes of tensors that can be told apart."""


def tensor_fills(names: Iterable[str]) -> dict[str, Fill]:
    """Neighbours differ in tone; the pattern changes after each three.

    Args:
        names: at most `MOST_TENSORS`, each once.
    """
    kinds = [Fill(tone, pattern) for pattern in PATTERNS for tone in TENSORS]
    given = list(names)
    return dict(zip(given, kinds[: len(given)], strict=True))


def fewer(sizes: Mapping[str, int], most: int = MOST_TENSORS) -> dict[str, int]:
    """The same sizes, the smallest of them as one where there are more than `most`."""
    if len(sizes) <= most:
        return dict(sizes)
    kept = set(sorted(sizes, key=lambda name: -sizes[name])[: most - 1])
    rest = [name for name in sizes if name not in kept]
    found = {name: size for name, size in sizes.items() if name in kept}
    return {**found, f"{len(rest)} smaller": sum(sizes[name] for name in rest)}


def variables(scheme: int) -> str:
    """The page and tones as CSS variables, of the light (0) or the dark (1) scheme."""
    return " ".join(f"--{name}: {forms[scheme]};" for name, forms in (_PAGE | TONES).items())


def rules(used: Sequence[str]) -> str:
    """CSS rules for the fills whose names are in use."""
    lines: list[str] = []
    for fill in _known(used):
        value = f"var(--{fill.tone})" if fill.pattern == "solid" else f"url(#{fill.name})"
        lines.append(f".{fill.name} {{ fill: {value}; }}")
    return "\n".join(lines)


def definitions(used: Sequence[str]) -> str:
    """The patterns in use, as an SVG that shows nothing."""
    lines: list[str] = []
    for fill in _known(used):
        if fill.pattern == "solid":
            continue
        size, degrees, mark = PATTERNS[fill.pattern]
        turned = f' patternTransform="rotate({degrees})"' if degrees else ""
        lines.append(
            f'<pattern id="{fill.name}" width="{size}" height="{size}" '
            f'patternUnits="userSpaceOnUse"{turned}><rect width="{size}" height="{size}" '
            f'style="fill:var(--{fill.tone})"/><g class="mark">{mark}</g></pattern>'
        )
    body = "\n".join(lines)
    return (
        f'<svg class="defs" width="0" height="0" aria-hidden="true"><defs>\n{body}\n</defs></svg>'
    )


def _known(used: Sequence[str]) -> list[Fill]:
    kinds = [Fill(tone, pattern) for tone in TONES for pattern in PATTERNS]
    return [kind for kind in kinds if kind.name in used]
