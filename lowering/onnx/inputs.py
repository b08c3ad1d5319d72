"""The graph's inputs: token ids, positions, masks, past keys and values, defaults."""

from __future__ import annotations

from intaglio.lowering.onnx.graph.model import FLOATS, Graph, Node, Port
from intaglio.lowering.onnx.graph.pairs import is_mask, is_position
from intaglio.lowering.onnx.known.expressions import PAST, SEQUENCE, Expression, expression
from intaglio.lowering.onnx.known.fields import axis_index
from intaglio.lowering.onnx.known.simplification import substitute
from intaglio.lowering.onnx.known.terms import TRUE, Count, count
from intaglio.lowering.onnx.operators.rotary_operators import token_index
from intaglio.lowering.onnx.report import Report
from intaglio.lowering.onnx.step import Step
from intaglio.lowering.onnx.values import Field, Ids, Past, Stored, Unknown, Value

_ATTENTION = frozenset({"Attention", "GroupQueryAttention", "MultiHeadAttention", "Softmax"})
"""Operators that say that a graph attends to several tokens."""


_STATES = ("recurrent", "state", "conv", "ssm")
"""What names of inputs that are no keys or values have in them."""


def bind_inputs(step: Step, report: Report) -> None:
    """Binds every input of the graph; reports those that are not understood."""
    graph = step.graph
    tokens = _token_input(graph)
    if tokens is not None:
        if len(tokens.dims) not in (0, 2):
            report.error(
                f"input '{tokens.name}' has {len(tokens.dims)} axes, not [batch, sequence]"
            )
        # A chip runs one sequence. Exporters may count tokens of all of them, or pad by lengths.
        step.batch = _length(report, tokens, 0, expression(1))
        step.sequence = _length(report, tokens, 1, SEQUENCE)
        step.total = PAST + step.sequence
    else:
        report.error(
            "the graph has no input of token ids (int64 [batch, sequence] that selects rows of "
            "an embedding table)",
            hint="export the model with its embedding (without exclude_embeds)",
        )
    for port in graph.inputs.values():
        step.values[port.name] = _input(step, report, port, tokens)
    _warn_of_defaults(step, report)
    attends = any(node.op_type in _ATTENTION and not _routes(graph, node) for node in graph.nodes)
    if attends and not step.pasts and tokens is not None:
        report.error(
            "the graph has attention but takes no past keys and values: an encoder, or a "
            "decoder without its cache",
            hint="encoders are not supported; export a decoder with past keys and values "
            "(text-generation-with-past)",
        )


def _routes(graph: Graph, node: Node) -> bool:
    """Whether a softmax is that of a router: before or behind the choice of the largest."""
    before = graph.producers.get(node.input(0))
    around = [*graph.readers(node.output(0)), *([] if before is None else [before])]
    return any(one.op_type == "TopK" for one in around)


def _token_input(graph: Graph) -> Port | None:
    candidates = [
        port
        for port in graph.inputs.values()
        if port.dtype in ("INT64", "INT32") and port.name not in graph.initializers
    ]
    for port in candidates:
        if port.name.split(".")[-1] == "input_ids":
            return port
    for port in candidates:
        users = graph.consumers.get(port.name, ())
        if any(
            user.op_type in ("Gather", "GatherBlockQuantized") and user.input(1) == port.name
            for user in users
        ) and not is_position(port.name):
            return port
    return None


def _length(report: Report, port: Port, axis: int, length: Expression) -> Expression:
    dim = port.dims[axis] if axis < len(port.dims) else None
    if not isinstance(dim, int):
        return length
    if dim != 1:
        report.error(
            f"input '{port.name}' has the fixed size {dim} in axis {axis}",
            hint="export with a dynamic (symbolic) batch and sequence",
        )
    return expression(1)


def _input(step: Step, report: Report, port: Port, tokens: Port | None) -> Value:
    name = port.name
    if name in step.graph.initializers:
        return _default_input(step, report, port)
    if tokens is not None and name == tokens.name:
        return Ids((step.batch, step.sequence))
    rank = len(port.dims)
    if 0 in port.dims:
        report.error(
            f"input '{name}' has the fixed size 0 in axis {port.dims.index(0)}: it has no elements",
            hint="export with dynamic (symbolic) numbers of sequences and tokens",
        )
        return Unknown()
    integral = port.dtype in ("INT64", "INT32")
    if integral and is_position(name) and rank in (1, 2):
        positions = token_index(step)
        if rank == 2:
            return positions
        own = {"@1": axis_index(0)}
        return Field((step.sequence,), substitute(positions.term, own, {}), positions.dtype)
    if integral and is_position(name) and rank == 3 and isinstance(port.dims[0], int):
        # Of images and videos each axis has positions of its own; those of text are equal.
        report.warnings.append(
            f"input '{name}' has {port.dims[0]} positions for each token, as of images: the chip "
            "takes text, for which they are equal"
        )
        positions = token_index(step)
        own = {"@1": axis_index(2)}
        dims = (expression(port.dims[0]), *positions.dims)
        return Field(dims, substitute(positions.term, own, {}), positions.dtype)
    if (integral or port.dtype == "BOOL") and is_mask(name) and rank == 2:
        if isinstance(port.dims[1], int):
            report.error(
                f"input '{name}' has the fixed size {port.dims[1]} in axis 1, the number of all "
                "tokens, which grows",
                hint="export with a dynamic (symbolic) number of tokens",
            )
        ones = TRUE if port.dtype == "BOOL" else count(1)
        return Field((step.batch, step.total), ones, "INT64" if integral else "BOOL")
    if integral and rank in (0, 1) and (length := _length_said(step, name)) is not None:
        return Field((step.batch,) if rank else (), Count(length), "INT64")
    reader = _reader(step, name)
    if rank in (3, 4) and reader == "TensorScatter" and port.dtype in FLOATS:
        if not all(isinstance(dim, int) for dim in port.dims[1:]):
            report.error(
                f"the buffer '{name}' has no stated length: {list(port.dims)}",
                hint="export with the length of the caches in it",
            )
        step.pasts[name] = port
        return Past(name, tuple(expression(d) if isinstance(d, int) else PAST for d in port.dims))
    if rank == 4 and (port.dtype in FLOATS or port.dtype in ("INT8", "UINT8")):
        fixed = all(isinstance(dim, int) for dim in port.dims[1:])
        if fixed and reader == "LinearAttention":
            step.pasts[name] = port
            sizes = (expression(d) for d in port.dims[1:] if isinstance(d, int))
            return Past(name, (step.batch, *sizes))
        if all(isinstance(dim, int) for dim in port.dims[1:3]):
            is_state = any(word in name for word in _STATES)
            report.error(
                f"the graph's input '{name}' has the fixed shape {list(port.dims)}",
                hint="a state of fixed size (linear attention, convolution) is not supported; "
                "choose a model that attends to keys and values in all layers"
                if is_state
                else "export with keys and values of any number of tokens (a dynamic axis)",
            )
        step.pasts[name] = port
        dims = [step.batch, PAST, PAST, PAST]
        for axis in (1, 2, 3):
            dim = port.dims[axis]
            dims[axis] = expression(dim) if isinstance(dim, int) else PAST
        if isinstance(port.dims[3], int):
            return Past(name, tuple(dims))
        return Past(name, (*dims[:3], Expression({("head width",): 1})))
    if rank == 3 and port.dtype in FLOATS and all(isinstance(d, int) for d in port.dims[1:]):
        step.pasts[name] = port
        sizes = (expression(d) for d in port.dims[1:] if isinstance(d, int))
        return Past(name, (step.batch, *sizes))
    if not step.graph.consumers.get(name) and name not in step.graph.outputs:
        report.warnings.append(f"input '{name}' is read by nothing and is left out")
        return Unknown()
    hint = None
    if "embeds" in name:
        hint = "export the model with its embedding (without exclude_embeds)"
    elif "cumulative_length" in name or "sliding_window" in name:
        hint = (
            "export with caches that keep all tokens and grow (no static cache, and no cache "
            "that forgets: a sliding window belongs into the mask)"
        )
    elif "mask" in name or "position" in name:
        hint = "export with input_ids, a 2-D attention_mask and past keys and values only"
    report.error(
        f"the graph's input '{name}' ({port.dtype.lower()}, {rank} axes) is not understood",
        hint=hint,
    )
    return Unknown()


def _length_said(step: Step, name: str) -> Expression | None:
    """What an input says that stands beside buffers of all tokens: where the new ones are written,
    or how many then count; None where it says neither."""
    readers = step.graph.consumers.get(name, ())
    if readers and all(n.op_type == "TensorScatter" and n.input(2) == name for n in readers):
        return PAST
    if readers and all(n.op_type == "Attention" and n.input(6) == name for n in readers):
        return step.total
    return None


def _reader(step: Step, name: str) -> str | None:
    """The operator of the node that reads an input first, if any."""
    return next((node.op_type for node in step.graph.consumers.get(name, ())), None)


def _default_input(step: Step, report: Report, port: Port) -> Value:
    tensor = step.graph.initializers[port.name]
    if tensor.size == 0:
        report.error(
            f"the graph's input '{port.name}' is an adapter matrix to be given at run time",
            hint="export the base model without adapter inputs, or with constant adapters; "
            "adapters are added later with `intaglio adapter add`",
        )
        return Unknown()
    return Stored(tensor, tensor.dims)


def _warn_of_defaults(step: Step, report: Report) -> None:
    """Says once which inputs are constants."""
    names = [name for name in step.graph.inputs if isinstance(step.values[name], Stored)]
    if len(names) == 1:
        report.warnings.append(f"input '{names[0]}' has a default value; it is taken as a constant")
    elif names:
        report.warnings.append(
            f"{len(names)} inputs ('{names[0]}' and others) have default values; they are taken as "
            "constants"
        )
