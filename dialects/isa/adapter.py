"""Instructions of the adapter unit: products with matrices that can be rewritten.

They stand in the queue of attention, whose H-Units multiply, and have the opcode of products with
ROM: which of the two an instruction is, its queue says.
"""

from __future__ import annotations

from intaglio.dialects import semantics
from intaglio.dialects.isa.instruction import V
from intaglio.dialects.isa.matrix import Product
from intaglio.dialects.isa.parts import Store, use
from intaglio.dialects.isa.queues import ATTENTION


class AdapterMatvec(
    Product[V], opcode="matvec", queue=ATTENTION, meaning=(semantics.dot, semantics.requantize)
):
    """A matrix of an adapter by a vector, scaled to fixed point; bias and residual are added.

    The matrix is one of the model, or a slot of a site (`rom.site`), which holds what the adapter
    in use has there.
    """

    weights: str = use(Store.ADAPTER)
