"""The two families of failure: what a user can mend, and what is a bug of the compiler."""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Iterable, Sequence


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
        place = []
        if self.file is not None:
            place.append(_in_line(self.file))
        if self.node is not None:
            op_type = f" ({_in_line(self.op_type)})" if self.op_type else ""
            place.append(f"node '{_in_line(self.node)}'{op_type}")
        text = ": ".join([*place, self.what])
        return f"{text}\n  help: {self.hint}" if self.hint else text


class UserErrors(UserError):
    """Several user errors found before any work was done; all of them are shown."""

    def __init__(self, errors: Sequence[UserError], *, hint: str | None = None) -> None:
        self.errors = tuple(errors)
        super().__init__("\n".join(str(error) for error in errors), hint=hint)


class DoesNotFit(UserError):
    """The model does not fit the chip: who uses the memory, by how much it is over, what helps."""


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


class CompilerBug(IntaglioError):
    """An invariant of the compiler was broken; please report it with the input."""
