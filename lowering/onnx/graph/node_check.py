"""Checks every node of a graph against its operator's schema, before anything is converted.

What onnxruntime refuses to load is refused for the same reason: inputs and outputs too many or
missing, unknown or missing attributes, values and elements of the wrong type. Beyond that, an
integer that means yes or no must be 0 or 1, since kernels differ in what else they take for yes
(GroupQueryAttention rotates for `do_rotary` 1 alone, Gemm transposes for all but 0), and an integer
must fit the 32 bits that kernels keep of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from intaglio.lowering.onnx.graph import contrib, schema
from intaglio.lowering.onnx.graph.model import Graph, Node, Subgraph, Tensor, cast_type
from intaglio.lowering.onnx.graph.schema import Attribute, Formal, Schema

_WIDE = frozenset({"value_int", "start", "end", "to"})
"""Integers that are no sizes: numbers, ends of slices, element types."""
_EPSILONS = frozenset({"epsilon", "qk_norm_epsilon", "q_norm_epsilon", "k_norm_epsilon"})
_FINITE = _EPSILONS | {"alpha", "beta", "scale", "softcap"}
_NOT_NEGATIVE = _EPSILONS | {"softcap", "block_size"}


def schema_of(node: Node) -> Schema | None:
    """A node's schema, None where it is no operator of the table and none of ONNX."""
    found = contrib.schemas().get((node.domain, node.op_type))
    if found is not None or node.domain:
        return found
    return schema.standard(node.op_type, node.version)


class NodeCheck:
    """Checks nodes one after the other, in topological order, and follows element types.

    Args:
        graph: gives the types of inputs and tensors.
    """

    def __init__(self, graph: Graph) -> None:
        self.types = {
            port.name: port.dtype.lower()
            for port in graph.inputs.values()
            if port.dtype != "UNDEFINED"
        }
        self.types.update((name, t.dtype.lower()) for name, t in graph.initializers.items())

    def faults(self, node: Node) -> list[str]:
        """What is wrong with a node; nothing where its operator is unknown."""
        found = schema_of(node)
        if found is None:
            return []
        faults = [
            *_domain_faults(node),
            *_count_faults(node, found),
            *_attribute_faults(node, found),
        ]
        bound, wrong = self._bound(node, found)
        self._follow(node, found, bound)
        return faults + wrong

    def _bound(self, node: Node, found: Schema) -> tuple[dict[str, str], list[str]]:
        """Type parameters by the types of the inputs, and what does not fit."""
        bound: dict[str, str] = {}
        faults: list[str] = []
        for i, (name, formal) in enumerate(_paired(node.inputs, found.inputs)):
            dtype = self.types.get(name)
            if not name or dtype is None or not formal.homogeneous:
                continue
            allowed = found.types.get(formal.type, frozenset({formal.type}))
            if dtype not in allowed:
                faults.append(
                    f"its input {i} '{name}' has the element type {dtype.upper()}, "
                    f"which {node.op_type} does not take there"
                )
            elif bound.setdefault(formal.type, dtype) != dtype:
                faults.append(
                    f"its input {i} '{name}' has the element type {dtype.upper()}, another input "
                    f"{bound[formal.type].upper()}; {node.op_type} takes one type"
                )
        return bound, faults

    def _follow(self, node: Node, found: Schema, bound: Mapping[str, str]) -> None:
        given = _own_type(node, bound)
        for name, formal in _paired(node.outputs, found.outputs):
            allowed = found.types.get(formal.type, frozenset({formal.type}))
            dtype = given or bound.get(formal.type)
            if dtype is None and len(allowed) == 1:
                (dtype,) = allowed
            if name and dtype is not None:
                self.types[name] = dtype


def _paired(names: Sequence[str], formals: Sequence[Formal]) -> Iterator[tuple[str, Formal]]:
    """Names with what the schema says of them; a variadic one is that of all that follow."""
    for i, name in enumerate(names):
        if i < len(formals):
            yield name, formals[i]
        elif formals and formals[-1].variadic:
            yield name, formals[-1]


def _own_type(node: Node, bound: Mapping[str, str]) -> str | None:
    """The element type of the output where an attribute says it."""
    match node.op_type:
        case "Cast":
            return cast_type(node).lower()
        case "Constant" | "ConstantOfShape":
            for name, kind in (("value", ""), ("value_int", "int64"), ("value_ints", "int64")):
                value = node.attributes.get(name)
                if value is not None:
                    return kind or (value.dtype.lower() if isinstance(value, Tensor) else None)
            return "float"
        case "DequantizeLinear":
            return None if node.attributes.get("output_dtype") else bound.get("T2")
        case _:
            return None


def _domain_faults(node: Node) -> Iterator[str]:
    if node.domain == contrib.DOMAIN and node.version != 1:
        yield f"{contrib.DOMAIN} has no version {node.version}; onnxruntime knows 1"


def _count_faults(node: Node, found: Schema) -> Iterator[str]:
    for kind, names, formals in (
        ("input", node.inputs, found.inputs),
        ("output", node.outputs, found.outputs),
    ):
        if len(names) > len(formals) and not (formals and formals[-1].variadic):
            most = f"at most {len(formals)}" if any(f.optional for f in formals) else len(formals)
            yield f"it has {len(names)} {kind}s; {node.op_type} has {most}"
        for i, formal in enumerate(formals):
            if formal.optional or (kind == "output" and i < len(names)):
                continue
            if i >= len(names) or not names[i]:
                yield f"its {kind} {i} ({formal.name}) is missing"


def _attribute_faults(node: Node, found: Schema) -> Iterator[str]:
    for name, value in node.attributes.items():
        if name.startswith("__"):
            continue  # onnxruntime's own notes.
        known = found.attributes.get(name)
        if known is None:
            yield f"its attribute '{name}' is none of {node.op_type}'s"
        elif not _is_of_kind(value, known.kind):
            yield f"its attribute '{name}' has a value of the wrong type"
        else:
            yield from _range_faults(node, known, value)
    for name, known in found.attributes.items():
        if known.required and name not in node.attributes:
            yield f"its attribute '{name}' is missing"


def _is_of_kind(value: object, kind: str) -> bool:
    match kind:
        case "int" | "bool":
            return isinstance(value, int)
        case "float":
            return isinstance(value, float)
        case "string":
            return isinstance(value, str | bytes)
        case "tensor":
            return value is None or isinstance(value, Tensor)
        case "graph":
            return isinstance(value, Subgraph)
        case "ints":
            return isinstance(value, Sequence) and all(isinstance(v, int) for v in value)
        case "floats":
            return isinstance(value, Sequence) and all(isinstance(v, float) for v in value)
        case _:
            return True


def _range_faults(node: Node, known: Attribute, value: object) -> Iterator[str]:
    name = known.name
    if known.kind == "bool" and value not in (0, 1):
        yield f"{name} = {value} is neither 0 nor 1"
    if not isinstance(value, int | float):
        return
    if known.kind == "int" and name not in _WIDE and not -(2**31) <= value < 2**31:
        yield f"{name} = {value} does not fit 32 bits, which is what kernels keep of it"
    elif known.kind == "float" and name in _FINITE and not math.isfinite(value):
        yield f"{name} = {value} is not a finite number"
    elif name in _NOT_NEGATIVE and value < 0:
        yield f"{name} = {value} is negative"
