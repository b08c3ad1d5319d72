"""The two families of failure: what a user can mend, and what is a bug of the compiler."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


class IntaglioError(Exception):
    """Base of everything Intaglio raises on purpose."""


class UserError(IntaglioError):
    """Something in the user's input is wrong, missing or unsupported.

    Printed as `file: node 'name' (OpType): what is wrong` and, on a line of its own, what would
    help; the command line exits with 1 and shows no traceback.

    Args:
        what: what is wrong, in one sentence without a full stop.
        file: the file it was found in.
        node: the ONNX node's name.
        op_type: the ONNX node's operator type.
        hint: what would help.
    """

    def __init__(
        self,
        what: str,
        *,
        file: str | None = None,
        node: str | None = None,
        op_type: str | None = None,
        hint: str | None = None,
    ) -> None:
        self.what = what
        self.file = file
        self.node = node
        self.op_type = op_type
        self.hint = hint
        super().__init__(str(self))

    def __str__(self) -> str:
        place: list[str] = []
        if self.file is not None:
            place.append(_in_line(self.file))
        if self.node is not None:
            op_type = f" ({_in_line(self.op_type)})" if self.op_type else ""
            place.append(f"node '{_in_line(self.node)}'{op_type}")
        text = ": ".join([*place, self.what])
        return f"{text}\n  help: {self.hint}" if self.hint else text


class UserErrors(UserError):
    """Several user errors found before any work was done.

    Printed a line each; of many that differ in nothing but names the first few, and their count.
    A remedy that many share is said once, with the last of them.

    Attributes:
        errors: all of them.
    """

    def __init__(self, errors: Sequence[UserError], *, hint: str | None = None) -> None:
        self.errors = tuple(errors)
        super().__init__("\n".join(_lines(errors)), hint=hint)


_NAMED = 3
"""Names of a group that are shown."""
_QUOTED = re.compile(r"(?:node )?'[^'\n]*'(?: \([\w.]+\))?")
"""A name in a message, with the operator's type where it is a node's."""


def _kind(text: str) -> str:
    """A message without the names in it."""
    return _QUOTED.sub("''", text)


def _lines(errors: Sequence[UserError]) -> list[str]:
    groups: dict[tuple[object, ...], list[UserError]] = {}
    for error in errors:
        is_node = error.node is not None
        key = (type(error), error.file, is_node, _kind(error.what), error.hint)
        groups.setdefault(key, []).append(error)
    lines: list[str] = []
    said: set[str | None] = set()
    for group in reversed(groups.values()):
        # A few are listed one by one.
        shown = group if len(group) <= _NAMED else group[:1]
        for error in reversed(shown):
            text = _without_hint(error, group if shown is not group else ())
            if error.hint is not None and error.hint not in said:
                text += f"\n  help: {error.hint}"
            said.add(error.hint)
            lines.append(text)
    return lines[::-1]


def _without_hint(error: UserError, group: Sequence[UserError]) -> str:
    """An error's line; as that of a group, if one is given."""
    line = str(error).removesuffix(f"\n  help: {error.hint}") if error.hint else str(error)
    if not group:
        return line
    if error.node is None:
        return f"{line}{_others([one.what for one in group])}"
    others = [f"'{_in_line(one.node or '')}'" for one in group[1:_NAMED]]
    more = f"{', '.join(others)} and {len(group) - _NAMED:,} more"
    place = f"node '{_in_line(error.node)}'" + (
        f" ({_in_line(error.op_type)})" if error.op_type else ""
    )
    return line.replace(f"{place}: ", f"{place}, {more}: ", 1)


def _others(texts: Sequence[str]) -> str:
    """` (and 29 more: 'b', 'c', ...)`, by the names in which texts differ from the first."""
    first = _QUOTED.findall(texts[0])
    named: list[str] = []
    for text in texts[1:_NAMED]:
        found = zip(first, _QUOTED.findall(text), strict=False)
        named += [other for one, other in found if one != other][:1]
    dots = ", ..." if len(texts) > _NAMED else ""
    return f" (and {len(texts) - 1:,} more: {', '.join(named)}{dots})"


def gathered(warnings: Iterable[str]) -> list[str]:
    """Warnings of one kind, which differ in nothing but names, as one with a count."""
    groups: dict[str, list[str]] = {}
    for warning in warnings:
        same = groups.setdefault(_kind(warning), [])
        if warning not in same:
            same.append(warning)
    return [group[0] + (_others(group) if len(group) > 1 else "") for group in groups.values()]


@dataclass(frozen=True)
class Way:
    """What a compile may be asked for instead, so that a model fits; None: as it was.

    Attributes:
        context: tokens.
        rank: of the adapter slots; 0: without slots.
        residents: adapters that the slots hold at once.
        settings: of the target, as `key=value`.
        listed: a combination for the list of what fits, rather than one change.
    """

    context: int | None = None
    rank: int | None = None
    residents: int | None = None
    settings: tuple[str, ...] = ()
    listed: bool = False

    def __str__(self) -> str:
        parts = [f"--set {setting}" for setting in self.settings]
        if self.rank is not None:
            parts.append(f"--adapter-slots {self.rank}" if self.rank else "no --adapter-slots")
        if self.residents is not None:
            parts.append(f"--resident-adapters {self.residents}")
        if self.context is not None:
            parts.append(f"--context {self.context}")
        return " ".join(parts)


class DoesNotFit(UserError):
    """The model does not fit the chip: who uses what, by how much it is over, what helps.

    Args:
        what: says who uses it and by how much it is over.
        of: what is too small, such as "the SRAM".
        ways: what to ask for instead, of which nothing is known but that this is enough of it;
            whoever knows the whole compile tries them (`backend/ways_out.py`).
        lead: the beginning of what would help.
        others: what would help besides, without a number.
    """

    def __init__(
        self,
        what: str,
        *,
        of: str = "this",
        ways: Sequence[Way] = (),
        lead: str = "",
        others: Sequence[str] = (),
    ) -> None:
        self.of, self.ways, self.lead, self.others = of, tuple(ways), lead, tuple(others)
        plain = [str(way) for way in ways if not way.listed]
        if plain:
            plain[0] = f"enough of {of}: {plain[0]}"
        super().__init__(what, hint=lead + "; or ".join([*plain, *others]) or None)


_UNSEEN = ("Cc", "Cf", "Cs", "Zl", "Zp")
"""Categories of Unicode: controls, marks of direction, halves of pairs, ends of lines."""


def printable(text: str) -> str:
    """A text with what would move a terminal's cursor, or could not be seen, escaped.

    Ends of lines and tabulators stay.
    """
    if text.isascii() and text.replace("\n", "").replace("\t", "").isprintable():
        return text
    return "".join(
        one if one in "\n\t" or unicodedata.category(one) not in _UNSEEN else _escaped(one)
        for one in text
    )


def _in_line(name: str) -> str:
    """A name without ends of lines."""
    return printable(name).replace("\n", "\\n").replace("\t", "\\t")


def _escaped(one: str) -> str:
    return one.encode("unicode_escape").decode("ascii")


def meant(word: str, known: Iterable[str]) -> str:
    """The beginning of a hint when a known word is close, else nothing."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"did you mean '{close[0]}'? " if close else ""


def meant_key(word: str, known: Iterable[str]) -> str:
    """As `meant`, for keys of several parts with dots: the last part alone is enough.

    `lanes` is meant for `l_unit.lanes` or `vector.lanes`, `policy.lane` too.
    """
    by_last: dict[str, list[str]] = {}
    for key in known:
        by_last.setdefault(key.rpartition(".")[2], []).append(key)
    keys = [key for same in by_last.values() for key in same]
    last = word.rpartition(".")[2]
    close = difflib.get_close_matches(word, keys, n=1)
    if last not in by_last and close:
        return f"did you mean '{close[0]}'? "
    words = [last] if last in by_last else difflib.get_close_matches(last, list(by_last), n=1)
    found = [key for one in words for key in by_last[one]]
    return f"did you mean {' or '.join(repr(key) for key in found)}? " if found else ""


class CompilerBug(IntaglioError):
    """An invariant of the compiler was broken; please report it with the input."""
