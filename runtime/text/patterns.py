"""Regular expressions that come with files, matched in time that grows with the text alone.

Python's `re` goes back and tries again, so that a short pattern such as `(a+)+$` can take years.
Here a pattern becomes a machine of states, all of which are followed at once, and sets of states
are remembered by the character that led to them (K. Thompson's construction, with a table that
grows as it is used). What has no such machine is refused: references to groups, and looking ahead
or back. `$` is the end of the text, whose last character is no line end here.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

LONGEST = 1000
"""Characters of a pattern."""
_MOST_STATES = 10_000
_STATE = 20
"""What it costs to make a state, in visits of one."""

_CATEGORIES = {"DIGIT": r"\d", "SPACE": r"\s", "WORD": r"\w"}


class UnsupportedPattern(ValueError):
    """A pattern that is none, is too long, or has no machine; says why."""


@dataclass
class Work:
    """What matching may cost, for all patterns that share it; the default takes some seconds.

    Attributes:
        left: states that may still be visited.
    """

    left: int = 20_000_000

    def spend(self, states: int) -> None:
        """Counts visits of states.

        Raises:
            UnsupportedPattern: there were too many.
        """
        self.left -= states
        if self.left < 0:
            raise UnsupportedPattern("all of them together take too long to match")


@dataclass(eq=False)
class _State:
    """A state: it takes a character, or stands for those that follow it, if its condition holds.

    Attributes:
        takes: whether a character is taken; None: none is.
        after: what follows.
        only: "begin" or "end": followed only there.
    """

    takes: Callable[[str], bool] | None = None
    after: list[_State] = field(default_factory=list)
    only: str = ""


class Pattern:
    """A regular expression in Python's syntax.

    Args:
        text: the expression.
        work: what it may cost; shared with other patterns.

    Raises:
        UnsupportedPattern: it cannot be used. So do the methods, when all work is done.
    """

    def __init__(self, text: str, work: Work | None = None) -> None:
        if len(text) > LONGEST:
            raise UnsupportedPattern(f"it has {len(text)} characters, at most {LONGEST} are read")
        # The parser is Python's own; what it gives is a tree of (operator, operand).
        parser: Any = importlib.import_module("re._parser")
        try:
            tree = parser.parse(text)
        except (re.error, OverflowError) as error:
            raise UnsupportedPattern(f"it is no regular expression: {error}") from error
        except RecursionError:
            raise UnsupportedPattern("it is nested too deeply") from None
        if tree.state.flags & ~re.UNICODE.value:
            raise UnsupportedPattern("flags are not supported")
        self._work = work or Work()
        self._count = 0
        self._unlimited: object = parser.MAXREPEAT
        self._end = _State()
        try:
            start = self._sequence(tree, self._end)
        except RecursionError:
            raise UnsupportedPattern("it is nested too deeply") from None
        self._start = self._closure([start], begin=True)
        self._table: dict[tuple[frozenset[_State], str], frozenset[_State]] = {}

    def matches_start(self, text: str) -> bool:
        """Whether a beginning of a text matches, as `re.match` says."""
        return self._run(text, whole=False)

    def matches(self, text: str) -> bool:
        """Whether the whole text matches, as `re.fullmatch` says."""
        return self._run(text, whole=True)

    def _run(self, text: str, *, whole: bool) -> bool:
        self._work.spend(len(text))
        states = self._start
        for letter in text:
            if not whole and self._end in states:
                return True
            key = states, letter
            if (found := self._table.get(key)) is None:
                taken = (s for s in states if s.takes is not None and s.takes(letter))
                found = self._closure(next_one for s in taken for next_one in s.after)
                self._table[key] = found
            states = found
            if not states:
                return False
        return self._end in self._closure(states, begin=not text, end=True)

    def _closure(
        self, states: Iterable[_State], *, begin: bool = False, end: bool = False
    ) -> frozenset[_State]:
        """All states that are reached without a character; those that wait for the end stay."""
        found: set[_State] = set()
        left = list(states)
        while left:
            state = left.pop()
            if state in found:
                continue
            found.add(state)
            holds = {"": True, "begin": begin, "end": end}[state.only]
            if state.takes is None and holds:
                left += state.after
        self._work.spend(len(found))
        return frozenset(s for s in found if s.takes or s.only == "end" or s is self._end)

    # --- from the tree to states, the last first ------------------------------------------------

    def _new(self, after: list[_State], takes: Any = None, only: str = "") -> _State:
        self._count += 1
        self._work.spend(_STATE)
        if self._count > _MOST_STATES:
            raise UnsupportedPattern(f"its repetitions make more than {_MOST_STATES} states")
        return _State(takes, after, only)

    def _sequence(self, items: Sequence[Any], after: _State) -> _State:
        for operator, operand in reversed(list(items)):
            after = self._item(str(operator), operand, after)
        return after

    def _item(self, operator: str, operand: Any, after: _State) -> _State:
        match operator:
            case "LITERAL" | "NOT_LITERAL" | "ANY" | "IN":
                return self._new([after], _taking(operator, operand))
            case "BRANCH":
                return self._new([self._sequence(one, after) for one in operand[1]])
            case "SUBPATTERN" if not operand[1] and not operand[2]:
                return self._sequence(operand[3], after)
            case "MAX_REPEAT" | "MIN_REPEAT":
                least, most, items = operand
                return self._repeated(least, most, items, after)
            case "AT" if str(operand) in ("AT_BEGINNING", "AT_BEGINNING_STRING"):
                return self._new([after], only="begin")
            case "AT" if str(operand) in ("AT_END", "AT_END_STRING"):
                return self._new([after], only="end")
            case _:
                raise UnsupportedPattern(
                    "references to groups, looking ahead or back, word boundaries and flags are "
                    "not supported"
                )

    def _repeated(self, least: int, most: Any, items: Sequence[Any], after: _State) -> _State:
        if most is self._unlimited:
            start = self._new([])
            start.after = [self._sequence(items, start), after]
        else:
            start = after
            for _ in range(most - least):
                start = self._new([self._sequence(items, start), after])
        for _ in range(least):
            start = self._sequence(items, start)
        return start


def _taking(operator: str, operand: Any) -> Callable[[str], bool]:
    """Which characters an element of a pattern takes."""
    match operator:
        case "LITERAL":
            return lambda letter: ord(letter) == operand
        case "NOT_LITERAL":
            return lambda letter: ord(letter) != operand
        case "ANY":
            return lambda letter: letter != "\n"
        case "RANGE":
            return lambda letter: operand[0] <= ord(letter) <= operand[1]
        case "CATEGORY":
            _, *negated, name = str(operand).split("_")
            single = re.compile(_CATEGORIES[name])
            return lambda letter: (single.match(letter) is None) == bool(negated)
        case "IN":
            negated = str(operand[0][0]) == "NEGATE"
            parts = [_taking(str(one), what) for one, what in operand[negated:]]
            return lambda letter: any(part(letter) for part in parts) != negated
        case _:
            raise UnsupportedPattern("a part of a set of characters is not supported")
