"""Every product is booked where it lies, whether layers are alike or not."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from xdsl.context import Context
from xdsl.dialects.builtin import ModuleOp
from xdsl.rewriter import InsertPoint, Rewriter

from intaglio.backend.target.target import load_target
from intaglio.dialects.errors import UserError
from intaglio.dialects.fabric import DomainOp, EngraveOp, MachineOp
from intaglio.dialects.machine import Machine
from intaglio.lowering.place.place import FabricPlace
from intaglio.lowering.roles import HEAD, matrices
from intaglio.lowering.schedule.schedule import ProgramSchedule
from intaglio.lowering.step.fuse_residual import RomFuseResidual
from intaglio.lowering.step.legalize import RomLegalize
from intaglio.lowering.step.outline_layers import RomOutlineLayers

ROLES = ("qkv", "o", "gate", "up", "down")
FromText = Callable[[str], ModuleOp]


@pytest.fixture
def gated() -> Machine:
    """roma-mini whose layers are power domains, with banks for head and table apart."""
    machine = load_target("roma-mini").machine()
    return replace(
        machine,
        power_wake=7,
        power_sleep=3,
        bank_words=64,
        head_store="extra-rom",
        embedding_store="extra-rom",
    )


def module_of(
    from_text: FromText, decoder: Any, machine: Machine, other: dict[str, str], outline: bool = True
) -> ModuleOp:
    """A decoder some of whose matrices have codes of their own, legalised."""
    text = decoder.text()
    for part, code in other.items():
        text = re.sub(rf"(@{part}\w* : !rom.tensor<\[\d+, \d+\], )int4", rf"\1{code}", text)
    module = from_text(text)
    context = Context()
    if outline:
        RomOutlineLayers().apply(context, module)
    Rewriter.insert_op(MachineOp(machine), InsertPoint.at_start(module.body.block))
    RomLegalize().apply(context, module)
    RomFuseResidual().apply(context, module)
    return module


CASES = pytest.mark.parametrize(
    ("layers", "other", "outline"),
    [
        (1, {}, True),
        (3, {}, True),
        (3, {}, False),
        (4, {"layers_0": "int8"}, True),
        (4, {"layers_3": "int8"}, True),
        (5, {"layers_0": "int8", "layers_4": "int2"}, True),
        (4, {"layers_1_down": "int8", "layers_2_qkv": "int2"}, True),
        (4, {"layers_1": "int8", "layers_3": "int8"}, True),
    ],
)


@CASES
def test_layers_and_head(
    from_text: FromText, decoder: Any, mini: Machine, layers: int, other: Any, outline: bool
) -> None:
    module = module_of(from_text, replace(decoder, layers=layers), mini, other, outline)
    want = {f"layers_{i}_{role}": {i} for i in range(layers) for role in ROLES}
    # Two unlike layers in turn are one body, repeated; its instances count.
    found = matrices(module)
    if other == {"layers_1": "int8", "layers_3": "int8"}:
        assert {name: of for name, of in found.items() if of == {HEAD}} == {"head": {HEAD}}
        assert len({tuple(of) for of in found.values()}) == 3
    else:
        assert found == {**want, "head": {HEAD}}


@CASES
def test_what_is_booked(
    from_text: FromText, decoder: Any, gated: Machine, layers: int, other: Any, outline: bool
) -> None:
    """Extra banks hold head and table only; domains are layers; the program is right."""
    module = module_of(from_text, replace(decoder, layers=layers), gated, other, outline)
    of = matrices(module)
    FabricPlace().apply(Context(), module)
    extra = {
        op.buffer.root_reference.data: op.extra is not None
        for op in module.ops
        if isinstance(op, EngraveOp)
    }
    assert {name for name, beyond in extra.items() if beyond} == {"head", "table"}
    domains = {
        frozenset(op.names): op.sym_name.data for op in module.ops if isinstance(op, DomainOp)
    }
    grouped: dict[int, set[str]] = {}
    for name, (number,) in ((name, tuple(numbers)) for name, numbers in of.items()):
        grouped.setdefault(number, set()).add(name)
    assert domains == {
        frozenset(names): "power_head" if number == HEAD else f"power{number}"
        for number, names in grouped.items()
    }
    ProgramSchedule().apply(Context(), module)
    # Waits and power are held against each other by the verifier.
    module.verify()


def test_cells_of_layers_are_asked_for_in_every_layer(
    from_text: FromText, decoder: Any, mini: Machine
) -> None:
    """A single layer needs what layers need; its head may be of another format."""
    machine = replace(mini, weights=("int4",), head_weights=("int4", "int8"))
    one = replace(decoder, layers=1)
    FabricPlace().apply(Context(), module_of(from_text, one, machine, {"head": "int8"}))
    with pytest.raises(UserError, match="which roma-mini has no cells for") as caught:
        FabricPlace().apply(Context(), module_of(from_text, one, machine, {"layers_0_up": "int8"}))
    assert caught.value.hint is not None and "in the layers" in caught.value.hint


def test_a_sum_behind_the_layers_does_not_move_the_head(
    from_text: FromText, decoder: Any, mini: Machine
) -> None:
    late = replace(decoder, layers=1, late_embedding=True)
    found = matrices(module_of(from_text, late, mini, {}))
    assert {name for name, of in found.items() if of == {HEAD}} == {"head"}
