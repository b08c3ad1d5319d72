"""Instructions of the adapter unit: products with matrices that can be rewritten.

They stand in the queue of attention, whose H-Units multiply, and have the opcode of products with
ROM: which of the two an instruction is, its queue says.
"""

from __future__ import annotations

from intaglio.dialects import semantics
from intaglio.dialects.isa.instruction import Instruction, V
from intaglio.dialects.isa.parts import Store, integer, read, use, write
from intaglio.dialects.isa.queues import ATTENTION
from intaglio.dialects.isa.values import Fixed, Quantized


class AdapterMatvec(
    Instruction[V],
    opcode="matvec",
    queue=ATTENTION,
    meaning=(semantics.dot, semantics.requantize),
):
    """A matrix of an adapter by a vector, scaled to fixed point; bias and residual are added.

    The matrix is one of the model, or a slot of a site (`rom.site`), which holds what the adapter
    in use has there.
    """

    input: V = read(Quantized)
    residual: V | None = read(Fixed, elementwise=True, default=None)
    output: V = write(Fixed)
    weights: str = use(Store.ADAPTER)
    bias: str | None = use(Store.VECTOR, default=None)
    pre_shift: int = integer(6)
