"""Which floating-point weights are quantised on request (`--weights`), and how."""

from __future__ import annotations

from dataclasses import dataclass, field

from intaglio.dialects.errors import UserError
from intaglio.dialects.rom import WEIGHT_CODES


@dataclass(frozen=True)
class Rounding:
    """How floating-point weights are quantised on request.

    `group` 0 means one scale for a whole row; for `ternary`, one for the whole matrix (BitNet's).
    """

    code: str
    group: int

    def group_for(self, columns: int) -> int:
        """The group for a matrix of that many columns; 0 is the whole matrix."""
        return self.group if self.group or self.code == "ternary" else columns

    def in_words(self) -> str:
        """The code and how far a scale reaches."""
        return f"{self.code} {f'in groups of {self.group}' if self.group else 'with one scale'}"


@dataclass(frozen=True)
class Request:
    """Which floating-point weights are quantised on request, and how.

    Attributes:
        default: for matrices that no part names; None leaves them as they are.
        parts: parts of names of tensors, nodes or modules, and what they are quantised to; the
            first that occurs decides.
        used: the parts that did so far; the empty one where the default did.
    """

    default: Rounding | None
    parts: tuple[tuple[str, Rounding], ...] = ()
    used: set[str] = field(default_factory=set, compare=False)

    def named(self, *names: str) -> Rounding | None:
        """What was asked for by name, if anything."""
        for part, rounding in self.parts:
            if any(part in name for name in names):
                self.used.add(part)
                return rounding
        return None

    def of(self, *names: str) -> Rounding | None:
        """What was asked for, by name or for all."""
        found = self.named(*names)
        if found is None and self.default is not None:
            self.used.add("")
        return found or self.default

    def unused(self) -> list[str]:
        """A warning for each part that decided nothing; another one where nothing was quantised."""
        found: list[str] = []
        if self.default is not None and not self.used:
            found.append(
                "--weights changed nothing: all matrices of products are integer or ternary "
                "already, and stay as they are"
            )
        return found + [
            f"--weights: '{part}' is in no name of a floating-point matrix; names are those of "
            "tensors, nodes and torch's modules"
            for part, _ in self.parts
            if part not in self.used
        ]


HEAD_ROUNDING = "int8:128"
"""For a head that was left in floating point in a graph whose other matrices are quantised, where
no target says (`policy.head_weights`)."""


_REQUEST_HINT = (
    "write CODE:GROUP with int2, int3, int4, int6 or int8, or ternary, or ternary:GROUP, for "
    "example int4:32; for single matrices add NAME=CODE:GROUP, for example "
    "int3:32,down_proj=int6:32,lm_head=int6:64"
)


def parse_rounding(text: str) -> Rounding:
    """Reads `int4:32`, `int3:128`, `int8:64`, `ternary` or `ternary:128`.

    Raises:
        UserError: something else.
    """
    code, _, group = text.partition(":")
    # No matrix has more columns than an index of 31 bits counts.
    is_size = group.isascii() and group.isdigit() and len(group) < 10
    size = int(group) if is_size else 0
    needs_group = code != "ternary"
    if code not in WEIGHT_CODES or (needs_group and size < 1) or (group and size < 1):
        raise UserError(f"--weights {text} is not understood", hint=_REQUEST_HINT)
    return Rounding(code, size)


def parse_request(text: str) -> Request:
    """Reads one rounding for all matrices, or a list with names: `int3:32,down_proj=int6:32`.

    Raises:
        UserError: something else, or two roundings without a name.
    """
    default: Rounding | None = None
    parts: list[tuple[str, Rounding]] = []
    for item in text.split(","):
        name, separator, code = item.rpartition("=")
        rounding = parse_rounding(code.strip())
        if separator and name.strip():
            parts.append((name.strip(), rounding))
        elif separator or default is not None:
            raise UserError(f"--weights {text} is not understood", hint=_REQUEST_HINT)
        else:
            default = rounding
    return Request(default, tuple(parts))
