"""Instructions of the vector unit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from intaglio.dialects import semantics
from intaglio.dialects.fixed_point import Real
from intaglio.dialects.formulas import elementwise
from intaglio.dialects.formulas.elementwise import Elementwise
from intaglio.dialects.isa.attention import OverTokens
from intaglio.dialects.isa.instruction import Instruction, V
from intaglio.dialects.isa.matrix import CHOSEN_BITS
from intaglio.dialects.isa.parts import (
    Access,
    Store,
    choice,
    flag,
    integer,
    number,
    read,
    use,
    write,
)
from intaglio.dialects.isa.queues import VECTOR
from intaglio.dialects.isa.values import (
    Blocks,
    Fixed,
    Probabilities,
    Quantized,
    Routing,
    Scale,
    Scores,
    Token,
)

COUNT_BITS = 16
"""Width of numbers of groups, heads and elements of a head."""


@dataclass(frozen=True)
class Passes:
    """What the vector unit does of a vector: see `lowering.schedule.durations`.

    Attributes:
        passes: how often the vector is read.
        reductions: passes that end in a reduction over the lanes.
        lookups: whether each group takes a value of a scalar table.
    """

    passes: int = 1
    reductions: int = 0
    lookups: bool = False


class VectorInstruction(Instruction[V]):
    """Base of all that pass over a vector."""

    passes: ClassVar[Passes] = Passes()
    """What the unit does of the vector."""


class RMSNorm(VectorInstruction[V], opcode="rms_norm", queue=VECTOR, meaning=(semantics.norm,)):
    """``x / sqrt(mean(x**2) + eps) * gamma`` in each of equal groups."""

    input: V = read(Fixed)
    output: V = write(Fixed)
    gamma: str = use(Store.VECTOR)
    eps: Real = number()
    groups: int = integer(COUNT_BITS)

    passes = Passes(3, reductions=2, lookups=True)


class LayerNorm(VectorInstruction[V], opcode="layer_norm", queue=VECTOR, meaning=(semantics.norm,)):
    """``(x - mean(x)) / sqrt(var(x) + eps) * gamma + beta``."""

    input: V = read(Fixed)
    output: V = write(Fixed)
    gamma: str = use(Store.VECTOR)
    beta: str | None = use(Store.VECTOR, default=None)
    eps: Real = number()

    passes = Passes(4, reductions=3, lookups=True)


class Quantize(
    VectorInstruction[V],
    opcode="quantize",
    queue=VECTOR,
    meaning=(semantics.quantize, semantics.quantize_static),
):
    """Codes with one scale a group: by its largest magnitude, or the static scale of a cache."""

    input: V = read(Fixed)
    output: V = write(Quantized)
    scale_of: str | None = use(Store.STATIC_CACHE, access=Access.NONE, default=None)

    passes = Passes(2, reductions=1, lookups=True)
    """Of the dynamic scale; with a static one it is one pass."""


class QuantizeBlocks(
    VectorInstruction[V],
    opcode="quantize_blocks",
    queue=VECTOR,
    meaning=(semantics.quantize_blocks,),
):
    """Codes with an exponent and a step a block, by the block's own largest magnitude."""

    input: V = read(Fixed)
    output: V = write(Blocks)


class QuantizeHeads(
    VectorInstruction[V],
    opcode="quantize_heads",
    queue=VECTOR,
    meaning=(semantics.quantize_heads,),
):
    """Codes with an exponent and a step a head, by the head's own largest magnitude.

    One pass: rows wait for the exponents behind their own tree, so that codes and scales are there
    as late as what a pass reduces.
    """

    input: V = read(Fixed)
    output: V = write(Quantized)


class RMSScale(
    VectorInstruction[V], opcode="rms_scale", queue=VECTOR, meaning=(semantics.rms_scale,)
):
    """``1 / sqrt(sum(x**2) + n * eps)``: the factor of a norm, for products that follow it."""

    input: V = read(Fixed)
    output: V = write(Scale)
    eps: Real = number()

    passes = Passes(1, reductions=1, lookups=True)


class Rotary(VectorInstruction[V], opcode="rotary", queue=VECTOR, meaning=(semantics.rotary,)):
    """Rotates pairs of each head's first `rotary_dim` elements by the position's angles."""

    input: V = read(Fixed)
    output: V = write(Fixed)
    cos: str = use(Store.TABLE)
    sin: str = use(Store.TABLE)
    heads: int = integer(COUNT_BITS)
    rotary_dim: int = integer(COUNT_BITS)
    interleaved: bool = flag()


class ElementwiseInstruction(VectorInstruction[V]):
    """Base of what computes each element by itself."""

    computes: ClassVar[Elementwise]
    """Its formula; `activate` has one of each kind."""

    @property
    def formula(self) -> Elementwise:
        """What is computed of each element."""
        return self.computes

    @property
    def constants(self) -> tuple[Real, ...]:
        """The real numbers that the formula is given, in order."""
        given = [getattr(self, one.name) for one in self.form.arguments]
        return tuple(value for value in given if isinstance(value, Real))


class Activate(
    ElementwiseInstruction[V],
    opcode="activate",
    queue=VECTOR,
    meaning=(elementwise.gate, elementwise.sigmoid, elementwise.tanh),
):
    """An activation function of each element."""

    input: V = read(Fixed, elementwise=True)
    output: V = write(Fixed)
    kind: str = choice(*elementwise.ACTIVATIONS)

    @property
    def formula(self) -> Elementwise:
        return elementwise.ACTIVATIONS[self.kind]


class Add(ElementwiseInstruction[V], opcode="add", queue=VECTOR, meaning=(elementwise.add,)):
    """The sum of two vectors."""

    lhs: V = read(Fixed, elementwise=True)
    rhs: V = read(Fixed, elementwise=True)
    output: V = write(Fixed)

    computes = elementwise.ADD


class Mul(ElementwiseInstruction[V], opcode="mul", queue=VECTOR, meaning=(elementwise.mul,)):
    """The product of two vectors, element by element."""

    lhs: V = read(Fixed, elementwise=True)
    rhs: V = read(Fixed, elementwise=True)
    output: V = write(Fixed)

    computes = elementwise.MUL


class ScaleBy(
    ElementwiseInstruction[V], opcode="scale", queue=VECTOR, meaning=(elementwise.scale,)
):
    """A vector times a constant."""

    input: V = read(Fixed, elementwise=True)
    output: V = write(Fixed)
    factor: Real = number()

    computes = elementwise.SCALE


class Softcap(
    ElementwiseInstruction[V], opcode="softcap", queue=VECTOR, meaning=(elementwise.softcap,)
):
    """``cap * tanh(x / cap)``."""

    input: V = read(Fixed, elementwise=True)
    output: V = write(Fixed)
    inverse: Real = number()
    cap: Real = number()

    computes = elementwise.SOFTCAP


class Clip(ElementwiseInstruction[V], opcode="clip", queue=VECTOR, meaning=(elementwise.clip,)):
    """Each element, at least `low` and at most `high`."""

    input: V = read(Fixed, elementwise=True)
    output: V = write(Fixed)
    low: Real = number()
    high: Real = number()

    computes = elementwise.CLIP


class Route(VectorInstruction[V], opcode="route", queue=VECTOR, meaning=(semantics.route,)):
    """The experts with the largest logits, and their shares: a softmax over them, or over all.

    Among equal logits the last one is chosen first, or the first one (`lowest`).
    """

    input: V = read(Fixed)
    output: V = write(Routing)
    lowest: bool = flag()
    over_all: bool = flag()

    passes = Passes(1, reductions=1, lookups=True)


class Weigh(VectorInstruction[V], opcode="weigh", queue=VECTOR, meaning=(semantics.weigh,)):
    """A vector times the share of a chosen expert, plus what other experts gave."""

    input: V = read(Fixed, elementwise=True)
    routing: V = read(Routing)
    residual: V | None = read(Fixed, elementwise=True, default=None)
    output: V = write(Fixed)
    expert: int = integer(CHOSEN_BITS)


class Copy(VectorInstruction[V], opcode="copy", queue=VECTOR):
    """A vector to another place."""

    input: V = read(Fixed)
    output: V = write(Fixed)


class Tap(VectorInstruction[V], opcode="tap", queue=VECTOR, meaning=(semantics.tap,)):
    """The product of a vector and a constant one, plus an addend or a bias."""

    input: V = read(Fixed)
    addend: V | None = read(Fixed, default=None)
    output: V = write(Fixed)
    weights: str = use(Store.VECTOR)
    bias: str | None = use(Store.VECTOR, default=None)


class Delay(VectorInstruction[V], opcode="delay", queue=VECTOR, meaning=(semantics.delay,)):
    """What the last token left in a state, or zeros at position 0; then this token's is kept."""

    input: V = read(Fixed)
    output: V = write(Fixed)
    state: str = use(Store.STATE, access=Access.EXCHANGE)

    passes = Passes(2)
    """The state to the result; the input to the state."""


class OverScores(OverTokens[V], VectorInstruction[V]):
    """Base of what makes probabilities of scores."""

    scores: V = read(Scores)
    output: V = write(Probabilities)
    values: str = use(Store.CACHE, access=Access.SCALES)
    sink: str | None = use(Store.VECTOR, default=None)


class Softmax(
    OverScores[V],
    opcode="softmax",
    queue=VECTOR,
    meaning=(semantics.softmax,),
):
    """Powers of two of the scores times the values' scales: codes, their scale and their sum.

    The first pass goes over the scales alone: for each head of the cache it finds the least
    exponent. The largest score of each query head comes with the scores. A sink is one more score
    for each head, which counts for the largest and the sum alone.
    """

    passes = Passes(3, reductions=2, lookups=True)


class SoftmaxPlaces(
    OverScores[V],
    opcode="softmax_places",
    queue=VECTOR,
    meaning=(semantics.softmax_places,),
):
    """Powers of two of the scores times the values' scales, as bytes at one of five places.

    The first pass is that of `softmax`; the second one gives codes. The sum, and the scale of the
    codes, are there with its reductions.
    """

    passes = Passes(2, reductions=2, lookups=True)


class Sample(VectorInstruction[V], opcode="sample", queue=VECTOR, meaning=(semantics.argmax,)):
    """The number of the largest element, to the token port."""

    input: V = read(Fixed)
    token: V = write(Token)

    passes = Passes(1, reductions=1)
