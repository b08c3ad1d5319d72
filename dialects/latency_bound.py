"""The latency bound: the least cycles of a token with these products, lanes and latencies.

The dense products of a token follow one another: each output of a product needs all of its inputs.
For product i, w(i) are the cycles in which lanes multiply it, and l(i) those from its last word to
the last input of the next one. No order of the words is faster than

    l(0) + sum of (w(i) + l(i) - p(i))

with p(i) the work of product i that is done before its last input is there. It is at most w(i).
It is at most w(i-1) - p(i-1): the first output of the product before needs its last input, so
inputs of i arrive no longer than that product still works. Where all products share the lanes it is
at most l(i-1): before, the lanes work on product i-1. The first product begins when the embedding
is whole, so p(1) is 0. Taking each p(i) as large as these allow, from the first on, makes their sum
largest.

Nothing here is taken from a schedule. What counts as a latency is said where the chain of products
is made (`lowering/latency_bound.py`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from intaglio.dialects.formula import Constant, Formula, parse
from intaglio.dialects.json_file import JSON, JSONFile

NOTHING = Constant(0)
"""No cycles."""
_ROUNDING = 1e-6
"""Of a cycle: what sums of fractions may be off."""


@dataclass(frozen=True)
class Product:
    """Dense products that take the same inputs, as one.

    Attributes:
        work: cycles in which the lanes multiply.
        latency: from the last word to the last input of the next product; of the last product, to
            the token.
        busy: cycles in which the lanes must do something else before the next product's last input
            is there: attention, where it uses the same adders.
    """

    work: float
    latency: Formula
    busy: Formula = NOTHING


Way = tuple[Product, ...]
"""Products one after another."""


@dataclass(frozen=True)
class Chain:
    """The products of a token.

    Attributes:
        start: l(0), from the token to the last input of the first product.
        segments: each in several ways of which every one bounds it from below: where products run
            beside one another, all of them as one, or the longest that depend on each other.
        readable: from the last word of a product to its last result.
        own_lanes: whether each product has lanes of its own.
    """

    start: Formula
    segments: tuple[tuple[Way, ...], ...]
    readable: Formula
    own_lanes: bool = False

    def at(self, tokens: int, *, head: bool = True) -> Bound:
        """The bound with so many cached tokens, the current one included.

        Args:
            tokens: position + 1.
            head: whether the head counts; else the token ends with the layers' last result.
        """
        most = max((len(ways) for ways in self.segments), default=1)
        found = (self._along(choice, tokens, head) for choice in range(most))
        return max(found, key=lambda one: one.exact)

    def _along(self, choice: int, tokens: int, head: bool) -> Bound:
        """The bound with the same way through all segments that have several."""
        segments = self.segments if head else self.segments[:-1]
        ways = [ways[min(choice, len(ways) - 1)] for ways in segments]
        products = [one for way in ways for one in way]
        after = [one.latency for one in products]
        if not head and after:
            after[-1] = self.readable
        latencies = [int(one(tokens=tokens)) for one in (self.start, *after)]
        works = [one.work for one in products]
        overlaps = largest_overlaps(works, latencies, own_lanes=self.own_lanes)
        busy = sum(int(one.busy(tokens=tokens)) for one in products)
        return Bound(sum(works) + busy, sum(latencies), sum(overlaps))

    def content(self) -> dict[str, JSON]:
        """As JSON: equal segments stand once."""
        different = list(dict.fromkeys(self.segments))
        return {
            "start": str(self.start),
            "readable": str(self.readable),
            "own_lanes": self.own_lanes,
            "segments": [
                [[_product_content(one) for one in way] for way in ways] for ways in different
            ],
            "order": [different.index(ways) for ways in self.segments],
        }


def _product_content(product: Product) -> dict[str, JSON]:
    return {
        "work": product.work,
        "latency": str(product.latency),
        "busy": str(product.busy),
    }


def read_chain(content: JSONFile) -> Chain:
    """The inverse of `Chain.content`.

    Raises:
        UserError: the content is damaged.
    """
    different = [
        tuple(tuple(map(_product, way.list())) for way in ways.list())
        for ways in content["segments"].list()
    ]
    order = [one.count() for one in content["order"].list()]
    if wrong := [one for one in order if one >= len(different)]:
        raise content["order"].error(f"names segment {wrong[0]} of {len(different)}")
    return Chain(
        _formula(content["start"]),
        tuple(different[one] for one in order),
        _formula(content["readable"]),
        content["own_lanes"].boolean(),
    )


def _product(content: JSONFile) -> Product:
    work = content["work"].number()
    return Product(float(work), _formula(content["latency"]), _formula(content["busy"]))


def _formula(content: JSONFile) -> Formula:
    try:
        return parse(content.text())
    except ValueError as error:
        raise content.error(f"is {error}") from error


@dataclass(frozen=True)
class Bound:
    """The least cycles of a token, and what they consist of.

    Attributes:
        work: cycles in which lanes multiply, if all of them do.
        latencies: from words to the inputs that follow from them.
        overlap: work that is done during these.
    """

    work: float
    latencies: int
    overlap: float

    @property
    def exact(self) -> float:
        """Cycles, with the fraction that comes from lanes which a product does not fill."""
        return self.work + self.latencies - self.overlap

    @property
    def cycles(self) -> int:
        """Whole cycles."""
        return math.ceil(self.exact - _ROUNDING)


def largest_overlaps(
    work: Sequence[float], latencies: Sequence[float], *, own_lanes: bool = False
) -> Iterator[float]:
    """p(1), p(2), ...: for each product the work that is done before its last input is there.

    Args:
        work: w(1), w(2), ...
        latencies: l(0), l(1), ...
        own_lanes: whether products do not share lanes.
    """
    early = 0.0
    for number, own in enumerate(work):
        if number:
            limits = [own, work[number - 1] - early]
            early = min(limits if own_lanes else [*limits, latencies[number]])
        yield early
