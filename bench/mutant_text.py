"""Faults in hardware text: a line of hw, comb and seq IR changed, and what was changed in words.

`mutants` draws lines of `chip.mlir` and one of the faults that each can have: another operator, a
constant of one use changed by one bit, a comparison turned round, operands swapped, a multiplexer
stuck or swapped (so also the enable of a register), a register without or with another reset, an
extract one bit further, an entry of a table changed by one bit. Memories are left as they are: what
is in them is compared, and their wrappers may be macros.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

_MODULE = re.compile(r"^  hw\.module (?:private )?@(\w+)\(")
_MEMORY = re.compile(r"(?:mem|rom|sram)_\d+x\d+")
_VALUE = re.compile(r"%[\w.]+")
_BINARY = re.compile(r"^(\s*(%[\w.]+) = comb\.)(\w+) (%[\w.]+), (%[\w.]+)( .*)$")
_COMPARE = re.compile(r"^(\s*(%[\w.]+) = comb\.icmp )(\w+) (%[\w.]+), (%[\w.]+)( .*)$")
_MUX = re.compile(r"^(\s*(%[\w.]+) = comb\.mux )(%[\w.]+), (%[\w.]+), (%[\w.]+)( .*)$")
_EXTRACT = re.compile(
    r"^(\s*(%[\w.]+) = comb\.extract %[\w.]+ from )(\d+)( .*\(i(\d+)\) -> i(\d+))$"
)
_CONCAT = re.compile(r"^(\s*(%[\w.]+) = comb\.concat )(.*?)( : (.*))$")
_REGISTER = re.compile(r"^(\s*(%[\w.]+) = seq\.compreg .*), %clk reset %[\w.]+, %[\w.]+( .*)$")
_TABLE = re.compile(r"^(\s*(%[\w.]+) = hw\.aggregate_constant \[)(.*)(\] : .*)$")
_CONSTANT = re.compile(r"^\s*(%[\w.]+) = hw\.constant (\S+)(?: : i(\d+))?")
_OPERATORS = {
    "and": ("or", "xor"),
    "or": ("and", "xor"),
    "xor": ("and", "or"),
    "add": ("sub", "or"),
    "sub": ("add", "xor"),
    "mul": ("add",),
    "shl": ("shru",),
    "shru": ("shl", "shrs"),
    "shrs": ("shru",),
}
_TURNED = {
    "eq": ("ne",), "ne": ("eq",),
    "ult": ("ule", "uge", "slt"), "ule": ("ult", "ugt", "sle"),
    "ugt": ("uge", "ule", "sgt"), "uge": ("ugt", "ult", "sge"),
    "slt": ("sle", "sge", "ult"), "sle": ("slt", "sgt", "ule"),
    "sgt": ("sge", "sle", "ugt"), "sge": ("sgt", "slt", "uge"),
}  # fmt: skip
_NEW = "%mutated"
"""The name of a value that a fault brings along."""
_COMMUTES = ("and", "or", "xor", "add", "mul")


@dataclass(frozen=True)
class Mutant:
    """A fault.

    Attributes:
        number: of the draw.
        module: that it is in.
        line: of the text, from 1 on.
        what: was changed.
        old: the line.
        new: the line or lines in its place.
    """

    number: int
    module: str
    line: int
    what: str
    old: str
    new: str

    @property
    def name(self) -> str:
        """Number, place and change."""
        return f"{self.number} {self.module}:{self.line} {self.what}"

    def of(self, text: str) -> str:
        """The text with the fault."""
        lines = text.split("\n")
        assert lines[self.line - 1] == self.old
        lines[self.line - 1] = self.new
        return "\n".join(lines)


def mutants(text: str, seed: int, count: int) -> Iterator[Mutant]:
    """Draws faults of different lines, the same ones for the same text and seed."""
    rng = np.random.default_rng(seed)
    lines = text.split("\n")
    module, places = "", list[tuple[int, str]]()
    constants: dict[str, dict[str, tuple[int, int]]] = {}
    for number, line in enumerate(lines):
        if match := _MODULE.match(line):
            module = match[1]
        if _MEMORY.match(module):
            continue
        if match := _CONSTANT.match(line):
            value = {"true": 1, "false": 0}.get(match[2])
            width = 1 if match[3] is None else int(match[3])
            constants.setdefault(module, {})[match[1]] = (
                int(match[2]) if value is None else value,
                width,
            )
        elif " = " in line:
            places.append((number, module))
    found = 0
    for place in rng.permutation(len(places)).tolist():
        number, module = places[place]
        faults = list(_faults(lines[number], constants.get(module, {}), rng))
        if not faults:
            continue
        what, new = faults[int(rng.integers(len(faults)))]
        yield Mutant(found, module, number + 1, what, lines[number], new)
        found += 1
        if found == count:
            return


def _faults(
    line: str, constants: dict[str, tuple[int, int]], rng: np.random.Generator
) -> Iterator[tuple[str, str]]:
    """What can be wrong with a line: in words, and the lines in its place."""
    if match := _COMPARE.match(line):
        head, name, kind, a, b, rest = match.groups()
        for other in _TURNED[kind]:
            yield f"{name} icmp {kind} becomes {other}", f"{head}{other} {a}, {b}{rest}"
        if kind not in ("eq", "ne"):
            yield f"{name} icmp {kind} operands swapped", f"{head}{kind} {b}, {a}{rest}"
    elif match := _MUX.match(line):
        head, name, condition, a, b, rest = match.groups()
        yield f"{name} mux arms swapped", f"{head}{condition}, {b}, {a}{rest}"
        for value, taken in (("true", a), ("false", b)):
            yield (
                f"{name} mux always takes {taken}",
                f"    {_NEW} = hw.constant {value}\n{head}{_NEW}, {a}, {b}{rest}",
            )
    elif (match := _BINARY.match(line)) and match[3] in _OPERATORS:
        head, name, kind, a, b, rest = match.groups()
        for other in _OPERATORS[kind]:
            yield f"{name} {kind} becomes {other}", f"{head}{other} {a}, {b}{rest}"
        if kind not in _COMMUTES:
            yield f"{name} {kind} operands swapped", f"{head}{kind} {b}, {a}{rest}"
    elif match := _EXTRACT.match(line):
        head, name, low, rest, wide, narrow = match.groups()
        for other in (int(low) - 1, int(low) + 1):
            if other >= 0 and other + int(narrow) <= int(wide):
                yield f"{name} extract from {low} becomes {other}", f"{head}{other}{rest}"
    elif match := _CONCAT.match(line):
        head, name, operands, rest, types = match.groups()
        names, kinds = operands.split(", "), types.split(", ")
        pairs = [
            i
            for i in range(len(names) - 1)
            if kinds[i] == kinds[i + 1] and names[i] != names[i + 1]
        ]
        if pairs:
            i = pairs[int(rng.integers(len(pairs)))]
            swapped = [*names[:i], names[i + 1], names[i], *names[i + 2 :]]
            yield (
                f"{name} concat {names[i]} and {names[i + 1]} swapped",
                (f"{head}{', '.join(swapped)}{rest}"),
            )
    elif match := _REGISTER.match(line):
        head, name, rest = match.groups()
        yield f"{name} register without reset", f"{head}, %clk{rest}"
    elif match := _TABLE.match(line):
        head, name, entries, rest = match.groups()
        parts = entries.split(", ")
        i = int(rng.integers(len(parts)))
        value, kind = parts[i].split(" : ")
        bit = int(rng.integers(int(kind[1:])))
        parts[i] = f"{_flipped(int(value), bit, int(kind[1:]))} : {kind}"
        yield f"{name} table entry {i} bit {bit}", f"{head}{', '.join(parts)}{rest}"
    yield from _changed_constants(line, constants, rng)


def _changed_constants(
    line: str, constants: dict[str, tuple[int, int]], rng: np.random.Generator
) -> Iterator[tuple[str, str]]:
    """A constant of this line alone, one bit of it changed; the value of a reset too."""
    head, equals, body = line.partition(" = ")
    uses = [m for m in _VALUE.finditer(body) if m[0] in constants]
    if not equals or not uses:
        return
    use = uses[int(rng.integers(len(uses)))]
    value, width = constants[use[0]]
    bit = int(rng.integers(width))
    kind = "" if width == 1 else f" : i{width}"
    other = _flipped(value, bit, width)
    shown = {0: "false", 1: "true", -1: "true"}[other] if width == 1 else str(other)
    yield (
        f"{head.strip()} constant {value} becomes {other}",
        (
            f"    {_NEW} = hw.constant {shown}{kind}\n"
            f"{head} = {body[: use.start()]}{_NEW}{body[use.end() :]}"
        ),
    )


def _flipped(value: int, bit: int, width: int) -> int:
    """A number of `width` bits, as signed, with one bit changed."""
    word = (value ^ 1 << bit) & (1 << width) - 1
    return word - (1 << width) if word >> (width - 1) else word


def changes(some: Sequence[Mutant]) -> dict[str, int]:
    """How many there are of each kind."""
    kinds: dict[str, int] = {}
    for one in some:
        kind = re.sub(r"%[\w.]+|-?\d+", "", one.what)
        kinds[" ".join(kind.split())] = kinds.get(" ".join(kind.split()), 0) + 1
    return kinds
