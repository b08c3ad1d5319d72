"""How large the compiled model is, as its program shows it."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

from intaglio.backend.program.program import Parameter, Program
from intaglio.dialects.isa.attention import QueryKey
from intaglio.dialects.isa.matrix import Row
from intaglio.dialects.isa.recurrence import LinearAttention
from intaglio.dialects.isa.values import Fixed
from intaglio.dialects.isa.vector import Rotary
from intaglio.runtime.reports.wording import counted


def model_shape(program: Program) -> dict[str, int]:
    """Layers, sizes and parameters.

    Keys: `layers` (attentions of a token), `hidden` (elements of an embedding), `vocabulary`,
    `parameters` (elements of engraved tensors and of adapters that the graph has: one that is
    engraved twice, as embedding and head, counts once; tables of cosines and sines do not count).
    """
    layers = hidden = 0
    tables: dict[str, Parameter] = {}
    others: dict[str, Parameter] = {}
    for block in program.blocks:
        for one in block.whole:
            layers += len(block.instances) * isinstance(one.does, QueryKey | LinearAttention)
            if isinstance(one.does, Row):
                hidden = max(hidden, program.value(one.does.output, Fixed).size)
            if isinstance(one.does, Rotary):
                continue
            for bound in block.instances:
                for name in one.does.bound(bound).uses.values():
                    parameter = program.parameters.get(name)
                    if parameter is None or parameter.is_slot:
                        continue
                    (tables if isinstance(one.does, Row) else others)[name] = parameter
    # A key names the tensors of the model, and numbers those that are stored in several forms.
    known = {one.key.partition("#")[0] for one in others.values()}
    counted_once = [one for one in tables.values() if one.key.partition("#")[0] not in known]
    elements = sum(prod(one.dims) for one in (*others.values(), *counted_once))
    return {
        "layers": layers,
        "hidden": hidden,
        "vocabulary": program.vocabulary,
        "parameters": elements,
    }


def shape_text(shape: Mapping[str, int]) -> str:
    """What `model_shape` gives, in one line."""
    return (
        f"{counted(shape['layers'], 'layer')}, hidden size {shape['hidden']:,}, vocabulary "
        f"{shape['vocabulary']:,}, {_rounded(shape['parameters'])} parameters"
    )


def _rounded(number: int) -> str:
    for power, unit in ((9, "billion"), (6, "million")):
        if number >= 10**power:
            return f"{number / 10**power:.4g} {unit}"
    return f"{number:,}"
