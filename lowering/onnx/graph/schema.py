"""What an operator's schema says: inputs, outputs and attributes with their types.

For ai.onnx the schemas are those of the onnx package at the version that a model imports; `contrib`
has onnxruntime's. Element types are ONNX's names in small letters (`float`, `int64`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

_KINDS = {
    "FLOAT": "float",
    "INT": "int",
    "STRING": "string",
    "TENSOR": "tensor",
    "FLOATS": "floats",
    "INTS": "ints",
    "STRINGS": "strings",
    "GRAPH": "graph",
}

BOOLEANS = frozenset(
    {
        *("allowzero", "exclusive", "fmod", "interleaved", "is_causal", "keepdims"),
        *("noop_with_empty_axes", "reverse", "saturate", "transA", "transB", "upper"),
    }
)
"""Attributes of ai.onnx that are integers and mean yes or no."""


@dataclass(frozen=True)
class Formal:
    """An input or output; `type` is an element type, or a key of the schema's `types`."""

    name: str
    type: str
    optional: bool = False
    variadic: bool = False
    homogeneous: bool = True


@dataclass(frozen=True)
class Attribute:
    """An attribute; `kind` is int, bool (0 or 1), float, string, tensor, graph, or a list."""

    name: str
    kind: str
    required: bool = False


@dataclass(frozen=True)
class Schema:
    """One version of an operator.

    Attributes:
        name: the operator.
        inputs: in order; the last one may be variadic.
        outputs: likewise.
        attributes: by name.
        types: element types that a type parameter allows.
    """

    name: str
    inputs: tuple[Formal, ...]
    outputs: tuple[Formal, ...]
    attributes: Mapping[str, Attribute]
    types: Mapping[str, frozenset[str]]


@cache
def standard(op_type: str, version: int) -> Schema | None:
    """The schema of an operator of ai.onnx at a version of the set, None where it has none."""
    import onnx

    try:
        found = onnx.defs.get_schema(op_type, version, "")
    except onnx.defs.SchemaError:
        return None
    return Schema(
        op_type,
        tuple(_formal(one) for one in found.inputs),
        tuple(_formal(one) for one in found.outputs),
        {
            name: Attribute(name, _kind(name, str(one.type).rpartition(".")[2]), one.required)
            for name, one in found.attributes.items()
        },
        {
            one.type_param_str: frozenset(_element(text) for text in one.allowed_type_strs)
            for one in found.type_constraints
        },
    )


def _kind(name: str, kind: str) -> str:
    return "bool" if name in BOOLEANS and kind == "INT" else _KINDS.get(kind, kind.lower())


def _formal(one: onnx.defs.OpSchema.FormalParameter) -> Formal:
    import onnx

    option = onnx.defs.OpSchema.FormalParameterOption
    return Formal(
        one.name,
        _element(one.type_str),
        optional=one.option == option.Optional,
        variadic=one.option == option.Variadic,
        homogeneous=one.is_homogeneous,
    )


def _element(text: str) -> str:
    return text.removeprefix("tensor(").removesuffix(")") if text.startswith("tensor(") else text
