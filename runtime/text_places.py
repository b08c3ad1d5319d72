"""Where operations stand in the text that they were parsed from, for messages of verifiers."""

from __future__ import annotations

from xdsl.context import Context
from xdsl.dialects.builtin import FileLineColLoc, ModuleOp
from xdsl.ir import Operation
from xdsl.parser import Parser
from xdsl.utils.exceptions import VerifyException
from xdsl.utils.lexer import Span


class PlacedError(VerifyException):
    """What does not verify, with its place in the text."""


class TextPlaces:
    """Places of the operations of one text.

    Args:
        line_offset: lines before the text in its file.
    """

    def __init__(self, line_offset: int = 0) -> None:
        self._line_offset = line_offset
        self._spans: dict[Operation, Span] = {}

    def add(self, op: Operation, span: Span) -> None:
        """Remembers where an operation begins."""
        self._spans[op] = span

    def of_span(self, span: Span) -> str:
        """`file:line:column` of where a span begins."""
        place = span.get_location()
        return f"{place.file}:{place.line + self._line_offset}:{place.col}"

    def of(self, op: Operation) -> str | None:
        """`file:line:column` of an operation, or of the nearest that contains it; None if unknown.

        What the text itself says in `loc("file":line:column)` comes first, as in `mlir-opt`.
        """
        if isinstance(at := op.location, FileLineColLoc):
            return f"{at.filename.data}:{at.line.data}:{at.column.data}"
        if (span := self._spans.get(op)) is not None:
            return self.of_span(span)
        return None if (parent := op.parent_op()) is None else self.of(parent)

    def of_error(self, module: ModuleOp, error: VerifyException) -> str | None:
        """The place of the operation that a verifier's error is about; None if there is none.

        Operations are asked in the order in which they were verified: verifiers of an operation
        rely on those of what it contains.
        """
        for op in module.walk(region_first=True):
            try:
                op.verify(verify_nested_ops=False)
            except VerifyException as found:
                if str(found) == str(error):
                    return self.of(op)
        return None


class PlacingParser(Parser):
    """The parser of a text; tells `places` where each operation begins."""

    def __init__(self, ctx: Context, text: bytes, name: str, places: TextPlaces) -> None:
        super().__init__(ctx, text, name)
        self._places = places

    def parse_operation(self) -> Operation:
        """As the base class; types and attributes that do not verify have their operation's place.

        Raises:
            PlacedError: a type or attribute does not verify.
        """
        span = self._current_token.span
        try:
            op = super().parse_operation()
        except PlacedError:
            raise
        except VerifyException as error:
            raise PlacedError(f"{self._places.of_span(span)}: {error}") from error
        self._places.add(op, span)
        return op
