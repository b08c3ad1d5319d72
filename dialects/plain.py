"""Properties of operations from plain values: a text, a number, a truth, or nothing; and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from xdsl.dialects.builtin import (
    DictionaryAttr,
    FloatAttr,
    IntegerAttr,
    StringAttr,
    SymbolRefAttr,
    UnitAttr,
    i64,
)
from xdsl.ir import Attribute, Region, SSAValue
from xdsl.irdl import BaseAttr, IRDLOperation, ParsePropInAttrDict, PropertyDef

Plain = Attribute | str | int | float | None
"""What a property is given as: None and False leave it out."""


class PlainOp(IRDLOperation):
    """Base of operations whose constructors take plain values.

    Properties that the syntax does not place stand in the dictionary of attributes.
    """

    irdl_options = (ParsePropInAttrDict(),)

    def _build(
        self,
        operands: Sequence[SSAValue | Sequence[SSAValue] | None] = (),
        results: Sequence[Attribute | Sequence[Attribute]] = (),
        regions: Sequence[Region] = (),
        **properties: Plain,
    ) -> None:
        """Operands and results in the order of their definitions, properties by name.

        A text becomes a symbol where the definition asks for one, else a string; integers have 64
        bits, floats too; True is a unit.
        """
        super().__init__(
            operands=operands,
            result_types=results,
            regions=regions,
            properties=self._attributes(properties),
        )

    @classmethod
    def _attributes(cls, plain: Mapping[str, Plain]) -> dict[str, Attribute | None]:
        defined = cls.get_irdl_definition().properties
        return {name: _attribute(value, defined[name]) for name, value in plain.items()}


def counts(numbers: DictionaryAttr) -> dict[str, int]:
    """The integers of a dictionary by name; what is none is left to the verifier."""
    return {
        name: one.value.data for name, one in numbers.data.items() if isinstance(one, IntegerAttr)
    }


def _attribute(value: Plain, defined: PropertyDef) -> Attribute | None:
    wanted = defined.constr.attr if isinstance(defined.constr, BaseAttr) else None
    match value:
        case str():
            return SymbolRefAttr(value) if wanted is SymbolRefAttr else StringAttr(value)
        case bool():
            return UnitAttr() if value else None
        case float():
            return FloatAttr(value, 64)
        case int():
            return FloatAttr(value, 64) if wanted is FloatAttr else IntegerAttr(value, i64)
        case Attribute() | None:
            return value
