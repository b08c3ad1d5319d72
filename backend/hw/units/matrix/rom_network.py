"""A ROM bank as the compiler's own gates: `backend.images.logic_rom` as comb operations."""

from __future__ import annotations

from collections.abc import Sequence

from xdsl.dialects import comb

from intaglio.backend.hw.wires.signal import ModuleBuilder, Signal, cat
from intaglio.backend.images.logic_rom import Network, shared_network

_OPERATIONS = {"and": comb.AndOp, "or": comb.OrOp}


def shared_body(m: ModuleBuilder, address: Signal, words: Sequence[int], bits: int) -> Signal:
    """A bank as gates that its bits share; a `rom_bank.BankBody`.

    An address bit beyond those that the words need only says whether the address is among them.
    """
    return network_body(m, address, shared_network(words, bits, address.width))


def network_body(m: ModuleBuilder, address: Signal, network: Network) -> Signal:
    """The outputs of a network as a word; each gate is one operation.

    Args:
        m: the module.
        address: the inputs of the network, bit 0 first.
        network: with at least one output.
    """
    nodes = [m.constant(0), *(address[bit] for bit in range(network.inputs))]

    def literal(one: int) -> Signal:
        node = nodes[one >> 1]
        return ~node if one & 1 else node

    for kind, inputs in network.gates:
        op = _OPERATIONS[kind]([literal(one).bits(1) for one in inputs])
        m.insert(op)
        nodes.append(Signal(m, op.result, 1, False))
    return cat(*(literal(one) for one in reversed(network.outputs)))
