"""Instructions of the matrix tiles: what multiplies with ROM, or reads rows of it."""

from __future__ import annotations

from intaglio.dialects import semantics
from intaglio.dialects.isa.instruction import Instruction, V
from intaglio.dialects.isa.parts import Store, flag, integer, read, use, write
from intaglio.dialects.isa.queues import MATRIX
from intaglio.dialects.isa.values import Coded, Fixed, Routing, Scale, Token

SHIFT_BITS = 6
"""Width of the number of places that an accumulator loses before it is scaled."""
ROUND_BITS = 8
"""Width of the number of parts in which a product takes a row."""
COLUMN_BITS = 24
"""Width of the number of columns of such a part."""
CHOSEN_BITS = 6
"""Width of the number of an expert among those that are chosen."""


class Row(Instruction[V]):
    """Base of what reads a row of a table."""

    output: V = write(Fixed)
    table: str = use(Store.MATRIX, Store.TABLE)


class Embed(Row[V], opcode="embed", queue=MATRIX, meaning=(semantics.embed,)):
    """A token's row of a table."""

    token: V = read(Token)


class EmbedPosition(Row[V], opcode="embed_position", queue=MATRIX, meaning=(semantics.embed,)):
    """The row of a table that the token's position chooses."""


class Product(Instruction[V]):
    """Base of products of a matrix and a vector: scaled to fixed point; bias and residual added."""

    input: V = read(Coded)
    norm: V | None = read(Scale, when="normed")
    residual: V | None = read(Fixed, elementwise=True, default=None)
    output: V = write(Fixed)
    weights: str = use(Store.MATRIX)
    bias: str | None = use(Store.VECTOR, default=None)
    pre_shift: int = integer(SHIFT_BITS)
    normed: bool = flag()


class Matvec(
    Product[V],
    opcode="matvec",
    queue=MATRIX,
    meaning=(semantics.dot, semantics.requantize),
    together=("row_rounds", "round_columns"),
):
    """A matrix by a vector, scaled to fixed point; bias and residual are added.

    With `row_rounds` a row is taken in so many parts of `round_columns` columns each, one after the
    other: a pass each. The results are there after the last one.
    """

    row_rounds: int | None = integer(ROUND_BITS, default=None)
    round_columns: int | None = integer(COLUMN_BITS, default=None)

    def columns_of(self, round_: int, size: int) -> tuple[int, int]:
        """The first column of a round, and the one after its last.

        Args:
            round_: its number.
            size: columns of the matrix.

        Raises:
            ValueError: a round has no columns, or columns have no round.
        """
        rounds, columns = self.row_rounds, self.round_columns
        if rounds is None or columns is None:
            return 0, size
        if not (rounds - 1) * columns < size <= rounds * columns:
            raise ValueError(f"{rounds} rounds of {columns} columns, of {size}")
        return round_ * columns, min(size, (round_ + 1) * columns)


class ExpertMatvec(
    Instruction[V],
    opcode="expert_matvec",
    queue=MATRIX,
    meaning=(semantics.dot, semantics.requantize),
):
    """A chosen expert's matrix of a family by a vector, scaled to fixed point; its bias is added.

    The expert is an address: it takes as long for any.
    """

    input: V = read(Coded)
    routing: V = read(Routing)
    norm: V | None = read(Scale, default=None)
    output: V = write(Fixed)
    weights: str = use(Store.MATRIX)
    bias: str | None = use(Store.TABLE, default=None)
    pre_shift: int = integer(SHIFT_BITS)
    expert: int = integer(CHOSEN_BITS)
