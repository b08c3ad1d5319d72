"""What the import has to say: errors, each node once, and warnings."""

from __future__ import annotations

from dataclasses import dataclass, field

from intaglio.dialects.errors import UserError, UserErrors
from intaglio.lowering.onnx.graph.model import Node


@dataclass(eq=False)
class Report:
    """Errors and warnings so far.

    Attributes:
        file: the model's file, for messages.
        errors: all that is not supported, in the order it was found.
        warnings: what was noticed but is no error.
    """

    file: str
    errors: list[UserError] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def error(self, what: str, node: Node | None = None, hint: str | None = None) -> None:
        """Reports an error, unless the same was reported before."""
        error = UserError(
            what,
            file=self.file,
            node=None if node is None else node.name,
            op_type=None if node is None else node.op_type,
            hint=hint,
        )
        if str(error) not in {str(known) for known in self.errors}:
            self.errors.append(error)

    def settle_hint(self, before: str, after: str) -> None:
        """Says instead of one hint another one, which the whole graph decides."""
        for one in self.errors:
            if one.hint == before:
                one.hint = after

    def raise_errors(self) -> None:
        """Ends the import where there are errors.

        Raises:
            UserErrors: all of them.
        """
        if self.errors:
            raise UserErrors(self.errors)
