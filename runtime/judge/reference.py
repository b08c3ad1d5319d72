"""onnxruntime as the judge: the model of an output folder, run the way a user would run it.

There are two references. *As it comes*: MatMulNBits with `accuracy_level` 4, and QDQ weights that
onnxruntime fuses into it, round activations to int8 themselves. *With float activations*: an
in-memory copy of the graph without `accuracy_level`, and the session option that does the same for
fused QDQ; this is what the ONNX operators mean. Weights stay in their file, memory-mapped.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from intaglio.dialects.errors import UserError
from intaglio.lowering.onnx.graph.pairs import is_mask, is_position, presents_of

if TYPE_CHECKING:
    import onnx
    import onnxruntime

AS_IT_COMES = "as_it_comes"
FLOAT_ACTIVATIONS = "float_activations"
NAMES = {AS_IT_COMES: "as it comes", FLOAT_ACTIVATIONS: "with float activations"}
"""The references, as reports call them."""

Logits = npt.NDArray[np.float32]
Tokens = Sequence[int] | npt.NDArray[np.integer]
KeptByReference = tuple[int, Mapping[str, np.ndarray]]
"""How many tokens, and the caches after them."""

_ELEMENTS: dict[str, type[np.generic]] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int8)": np.int8,
    "tensor(uint8)": np.uint8,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
}
_BYTE = 8
_ORDER = 4
"""The input g_idx of MatMulNBits."""
_WRITTEN, _COUNTED = 2, 6
"""The inputs write_indices of TensorScatter and nonpad_kv_seqlen of Attention."""
_PASTS = slice(3, 5)
"""The inputs of GroupQueryAttention that are caches."""
_PREAMBLE = re.compile(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ")


class CannotJudge(UserError):
    """onnxruntime cannot run a model that was compiled, such as one exported for a GPU."""


@dataclass(frozen=True)
class _Port:
    """An input or output of the graph as onnxruntime states it."""

    name: str
    dtype: type[np.generic]
    dims: tuple[int | str | None, ...]


@dataclass
class _Ports:
    """The graph's inputs and outputs by what they are for."""

    tokens: _Port
    logits: _Port
    mask: _Port | None = None
    positions: _Port | None = None
    lengths: list[tuple[_Port, bool]] = field(default_factory=list)
    """Beside buffers of all tokens: where new ones are written, or (True) how many then count."""
    idle: list[_Port] = field(default_factory=list)
    """Inputs that no node reads; onnxruntime wants them all the same."""
    caches: list[tuple[_Port, _Port]] = field(default_factory=list)
    """Past inputs, each with the present output that feeds it in the next step."""


class Reference:
    """One onnxruntime session with its KV cache.

    Args:
        model: the .onnx file.
        float_activations: run the copy that does not round activations.
        head_width: width of a cached key or value, where the graph has only a symbol for it;
            without it `genai_config.json` beside the model is asked. Where codes are packed in
            bytes, the cache has the bytes that so many take.
        capacity: tokens the caches must hold, for graphs whose caches are windows that slide.
        observed: names of values inside the graph to return as well.
        threads: of onnxruntime, inside an operator; all processors by default.
        adapter: an `.onnx_adapter` file whose matrices are inputs of the graph.

    Raises:
        CannotJudge: onnxruntime cannot load the model or the adapter, or the graph is no decoder.
        UserError: the file cannot be read.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        float_activations: bool = False,
        unrounded: bool = False,
        head_width: int | None = None,
        capacity: int | None = None,
        observed: Sequence[str] = (),
        threads: int | None = None,
        adapter: str | Path | None = None,
    ) -> None:
        import onnx

        self.model = Path(model)
        with _as_user_error(self.model, "the model cannot be read"):
            proto = onnx.load(self.model, load_external_data=False)
        # Sliding-window caches must be handed over with room; others grow by themselves.
        self._reserved = (capacity or 0) if _has_sliding_caches(proto.graph) else 0
        self._packed = _packed_caches(proto.graph)
        self._states = {
            name
            for node in proto.graph.node
            if node.op_type == "LinearAttention"
            for name in node.input
        } | {n.input[0] for n in proto.graph.node if n.op_type == "TensorScatter"}
        idle = _idle_orders(proto.graph, self.model.parent)
        self.changes: tuple[str, ...] = (_said(idle),) if idle else ()
        """What the copy that onnxruntime runs does not have, each with the reason."""
        self.float_activations = float_activations
        self.observed = tuple(observed)
        self._session = _session(
            self.model,
            proto,
            float_activations,
            unrounded,
            self.observed,
            idle,
            threads or os.cpu_count() or 1,
        )
        lengths = _lengths(proto.graph)
        read = {name for node in _all_nodes(proto.graph) for name in node.input}
        read |= {one.name for one in proto.graph.output}
        del proto
        # The options only point to the adapter; whoever uses them has to keep it.
        self._adapter = None if adapter is None else _loaded(Path(adapter))
        self._options = None if self._adapter is None else _options_with(self._adapter)
        self._ports = _classify(self.model, self._session, lengths, read)
        self._head_width = head_width
        self._past: dict[str, np.ndarray] = {}
        self.position = 0
        """Tokens in the cache."""
        self.reset()

    @property
    def vocabulary(self) -> int | None:
        """Number of logits, where the graph states it."""
        size = self._ports.logits.dims[-1]
        return size if isinstance(size, int) else None

    @property
    def only_last(self) -> bool:
        """Whether the graph gives logits of the last token only."""
        dims = self._ports.logits.dims
        return len(dims) == 2 or dims[1:2] == (1,)

    def reset(self) -> None:
        """Forgets all tokens."""
        self.position = 0
        for past, _ in self._ports.caches:
            dims = [self._dim(past, axis) for axis in range(len(past.dims))]
            self._past[past.name] = np.zeros(dims, past.dtype)

    def _dim(self, port: _Port, axis: int) -> int:
        dim = port.dims[axis]
        if axis == 0:
            return 1
        if (len(port.dims) == 3 or port.name in self._states) and isinstance(dim, int):
            # A state of fixed size.
            return dim
        # Caches are [batch, heads, tokens, width], or [batch, tokens, heads, width].
        tokens = 1 if isinstance(port.dims[2], int) and not isinstance(port.dims[1], int) else 2
        if axis == tokens:
            return self._reserved
        if isinstance(dim, int):
            return dim
        if axis == len(port.dims) - 1:
            if self._head_width is None:
                self._head_width = _head_width_beside(self.model)
            if self._head_width is not None:
                return -(-self._head_width * self._packed.get(port.name, _BYTE) // _BYTE)
        raise CannotJudge(
            f"the size of '{port.name}' in axis {axis} is not known",
            file=str(self.model),
            hint="put the genai_config.json of the export beside the model",
        )

    def kept(self) -> KeptByReference:
        """What it keeps of the tokens so far; onnxruntime makes new caches, it writes into none."""
        return self.position, dict(self._past)

    def restore(self, kept: KeptByReference) -> None:
        """Forgets the tokens that came after."""
        self.position, past = kept
        self._past = dict(past)

    def feed(self, tokens: Tokens) -> Logits:
        """Appends tokens to the cache and gives their logits, float32 [S, V].

        Raises:
            CannotJudge: onnxruntime fails.
            UserError: a token id is out of range.
        """
        if self.only_last and len(tokens) > 1:
            return np.concatenate([self.feed([int(token)]) for token in tokens])
        return self._run(tokens)[0]

    def observe(self, tokens: Tokens) -> tuple[Logits, dict[str, np.ndarray]]:
        """As `feed`, with the values inside the graph that the session was made for."""
        logits, values = self._run(tokens)
        return logits, dict(zip(self.observed, values, strict=True))

    def _run(self, tokens: Tokens) -> tuple[Logits, list[np.ndarray]]:
        ports, count = self._ports, len(tokens)
        # Not all of onnxruntime's embedding kernels look at the range themselves.
        for token in tokens:
            if not 0 <= token < (self.vocabulary or token + 1):
                raise UserError(f"token id {token} is out of range", file=str(self.model))
        total = self.position + count
        feeds: dict[str, np.ndarray] = dict(self._past)
        feeds[ports.tokens.name] = np.asarray(tokens, ports.tokens.dtype).reshape(1, count)
        if ports.mask is not None:
            feeds[ports.mask.name] = np.ones((1, total), ports.mask.dtype)
        if ports.positions is not None:
            positions = np.arange(self.position, total, dtype=ports.positions.dtype)
            # Of text, positions along all axes of images are equal.
            lead = [one if isinstance(one, int) else 1 for one in ports.positions.dims[:-1]]
            feeds[ports.positions.name] = np.broadcast_to(positions, (*lead, count))
        for port in ports.idle:
            sizes = [one if isinstance(one, int) else 1 for one in port.dims]
            feeds[port.name] = np.zeros(sizes, port.dtype)
        for port, counts in ports.lengths:
            shape = [1] * len(port.dims)
            feeds[port.name] = np.full(shape, total if counts else self.position, port.dtype)
        wanted = [
            ports.logits.name,
            *(present.name for _, present in ports.caches),
            *self.observed,
        ]
        with _as_user_error(self.model, "onnxruntime cannot run the model", CannotJudge):
            results = self._session.run(wanted, feeds, self._options)
        logits, *rest = map(np.asarray, results)
        for (past, _), present in zip(ports.caches, rest, strict=False):
            self._past[past.name] = present
        self.position = total
        rows = np.asarray(logits, np.float32)
        return rows.reshape(-1, rows.shape[-1]), rest[len(ports.caches) :]

    def generate(
        self, prompt: Tokens, tokens: int, choose: Callable[[Logits], int] | None = None
    ) -> Iterator[tuple[int, Logits]]:
        """Decoding: each new token with the logits that it was chosen by.

        Args:
            prompt: at least one token id.
            tokens: how many to generate.
            choose: gives a token for logits [V]; without it their first maximum is taken.
        """
        self.reset()
        following = [int(token) for token in prompt]
        for _ in range(tokens):
            logits = self.feed(following)[-1]
            token = int(np.argmax(logits)) if choose is None else choose(logits)
            yield token, logits
            following = [token]


def model_of(folder: Path) -> Path:
    """The ONNX file of an output folder, by its manifest.

    Raises:
        UserError: the folder is no output.
        CannotJudge: it holds no model.
    """
    from intaglio.backend.output.output import read_manifest

    manifest = read_manifest(folder)
    model = folder / manifest["model"].text()
    if not model.is_file():
        stated = manifest.get("reference")
        left_out = stated is not None and not stated.boolean()
        raise CannotJudge(
            "the output folder holds no model to compare with",
            file=str(model),
            hint="compile without --no-reference" if left_out else None,
        )
    return model


def _loaded(path: Path) -> onnxruntime.LoraAdapter:
    import onnxruntime

    adapter = onnxruntime.LoraAdapter()
    with _as_user_error(path, "onnxruntime cannot load the adapter", CannotJudge):
        adapter.Load(str(path))
    return adapter


def _options_with(adapter: onnxruntime.LoraAdapter) -> onnxruntime.RunOptions:
    import onnxruntime

    options = onnxruntime.RunOptions()
    options.add_active_adapter(adapter)
    return options


def _session(
    model: Path,
    proto: onnx.ModelProto,
    float_activations: bool,
    unrounded: bool,
    observed: Sequence[str],
    idle: Sequence[onnx.NodeProto],
    threads: int,
) -> onnxruntime.InferenceSession:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    # Threads that spin after their work would take the processors from the simulator, whose turn
    # is the next one.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if float_activations:
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "0")
        if _rounds_for_experts(proto.graph):
            options.add_session_config_entry("session.disable_prepacking", "1")
    source: str | bytes = str(model)
    if float_activations or unrounded or observed or idle:
        options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", str(model.resolve().parent)
        )
        for node in idle:
            node.input[_ORDER] = ""
        source = _edited(proto, float_activations, unrounded, observed)
    with _as_user_error(model, "onnxruntime cannot load the model", CannotJudge):
        return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def _rounds_for_experts(graph: onnx.GraphProto) -> bool:
    """Whether experts of 8 bits in blocks round their activations, whatever their accuracy level,
    once onnxruntime has packed their weights anew."""
    for node in _all_nodes(graph):
        if node.op_type == "QMoE":
            given = {a.name: a.i for a in node.attribute}
            if given.get("block_size") and given.get("expert_weight_bits", 4) == _BYTE:
                return True
    return False


def _edited(
    proto: onnx.ModelProto, float_activations: bool, unrounded: bool, observed: Sequence[str]
) -> bytes:
    """The graph without its external data: accuracy levels and rounding removed, outputs added."""
    import onnx

    if float_activations:
        for node in _all_nodes(proto.graph):
            if node.op_type in ("MatMulNBits", "QMoE"):
                kept = [a for a in node.attribute if a.name != "accuracy_level"]
                del node.attribute[:]
                node.attribute.extend(kept)
    if unrounded:
        for node in _rounding(proto.graph):
            node.op_type = "Identity"
    known = {output.name for output in proto.graph.output}
    proto.graph.output.extend(
        onnx.ValueInfoProto(name=name) for name in observed if name not in known
    )
    return proto.SerializeToString()


def _rounding(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """The nodes that round activations: what depends on the graph's inputs."""
    constants = {tensor.name for tensor in graph.initializer}
    live = {one.name for one in graph.input} - constants
    found: list[onnx.NodeProto] = []
    for node in graph.node:
        if live.intersection(node.input):
            live.update(node.output)
            if node.op_type == "Round":
                found.append(node)
    return found


def own_rounding(model: Path) -> str | None:
    """How a graph rounds activations itself.

    Returns:
        `Round` (a scale for each token), `DynamicQuantizeLinear` (one for all tokens of a call),
        or None.

    Raises:
        UserError: the model cannot be read.
    """
    import onnx

    with _as_user_error(model, "the model cannot be read"):
        graph = onnx.load(model, load_external_data=False).graph
    if any(node.op_type == "DynamicQuantizeLinear" for node in graph.node):
        return "DynamicQuantizeLinear"
    return "Round" if _rounding(graph) else None


def _all_nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _all_nodes(attribute.g)


def _idle_orders(graph: onnx.GraphProto, folder: Path) -> list[onnx.NodeProto]:
    """The MatMulNBits whose g_idx puts each column into its own block, as if it were not there.

    With such an input onnxruntime 1.32 ignores packed zero points of 4 bits, decodes 2 bits wrongly
    and refuses 8 bits. Compiled graphs have no other.
    """
    from onnx import numpy_helper

    tensors = {tensor.name: tensor for tensor in graph.initializer}
    found: list[onnx.NodeProto] = []
    for node in _all_nodes(graph):
        if node.op_type != "MatMulNBits" or len(node.input) <= _ORDER:
            continue
        if (tensor := tensors.get(node.input[_ORDER])) is None:
            continue
        sizes = {a.name: a.i for a in node.attribute}
        columns, block = sizes.get("K", 0), max(1, sizes.get("block_size", 1))
        order = numpy_helper.to_array(tensor, str(folder)).reshape(-1)[:columns]
        if np.array_equal(order, np.arange(columns) // block):
            found.append(node)
    return found


def _said(idle: Sequence[onnx.NodeProto]) -> str:
    nodes = f"'{idle[0].name}'" + (f" and {len(idle) - 1} more" if len(idle) > 1 else "")
    return (
        f"onnxruntime runs a copy without the g_idx of {nodes}, which reorders nothing: beside it, "
        "it ignores packed zero points"
    )


def _packed_caches(graph: onnx.GraphProto) -> dict[str, int]:
    """Bits of a number in each cache whose numbers share bytes, by the graph's input."""
    found: dict[str, int] = {}
    for node in _all_nodes(graph):
        if bits := next((a.i for a in node.attribute if a.name == "kv_cache_bit_width"), 0):
            found |= {name: bits for name in node.input[_PASTS] if name}
    return found


def _has_sliding_caches(graph: onnx.GraphProto) -> bool:
    return any(
        attribute.name == "sliding_window_cache" and attribute.i
        for node in graph.node
        for attribute in node.attribute
    )


def inputs_of(model: Path) -> dict[str, tuple[str, list[str]]]:
    """Type and input names of each node of a graph, by its name.

    Raises:
        UserError: the model cannot be read.
    """
    import onnx

    with _as_user_error(model, "the model cannot be read"):
        graph = onnx.load(model, load_external_data=False).graph
    return {node.name: (node.op_type, list(node.input)) for node in graph.node}


def nodes_of(model: Path) -> dict[str, tuple[str, list[str]]]:
    """Type and output names of each node of a graph, by its name; unused outputs are empty names.

    Raises:
        UserError: the model cannot be read.
    """
    import onnx

    with _as_user_error(model, "the model cannot be read"):
        graph = onnx.load(model, load_external_data=False).graph
    return {node.name: (node.op_type, list(node.output)) for node in graph.node}


class _as_user_error:  # noqa: N801
    """Turns what onnxruntime and protobuf raise into a `UserError` with its first line."""

    def __init__(self, model: Path, what: str, family: type[UserError] = UserError) -> None:
        self.model = model
        self.what = what
        self.family = family

    def __enter__(self) -> None:
        return None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not isinstance(error, Exception):
            return
        lines = [line for line in str(error).splitlines() if line.strip()]
        first = _PREAMBLE.sub("", lines[0]) if lines else type(error).__name__
        raise self.family(f"{self.what}: {first}", file=str(self.model)) from error


def _lengths(graph: onnx.GraphProto) -> dict[str, bool]:
    """Inputs that say where tokens are written into buffers, or (True) how many then count."""
    found: dict[str, bool] = {}
    for node in graph.node:
        for op_type, place in (("TensorScatter", _WRITTEN), ("Attention", _COUNTED)):
            if node.op_type == op_type and len(node.input) > place and node.input[place]:
                found[node.input[place]] = op_type == "Attention"
    return found


def _classify(
    model: Path,
    session: onnxruntime.InferenceSession,
    lengths: Mapping[str, bool],
    read: Container[str],
) -> _Ports:
    given = [_port(model, one) for one in session.get_inputs()]
    inputs = [one for one in given if one.name in read]
    outputs = {one.name: one for one in session.get_outputs()}

    def found(is_meant: Callable[[str], bool], *ranks: int) -> _Port | None:
        return next((p for p in inputs if is_meant(p.name) and len(p.dims) in ranks), None)

    mask, positions = found(is_mask, 2), found(is_position, 1, 2, 3)
    tokens = found(lambda name: "input_ids" in name, 2) or next(
        (
            p
            for p in inputs
            if p.dtype in (np.int64, np.int32) and len(p.dims) == 2 and p not in (mask, positions)
        ),
        None,
    )
    logits = outputs.get("logits") or next(
        (one for one in outputs.values() if len(one.shape) == 3), None
    )
    if tokens is None or logits is None:
        raise CannotJudge(
            "the graph has no input of token ids or no output of logits", file=str(model)
        )
    ports = _Ports(tokens, _port(model, logits), mask, positions)
    ports.idle += [one for one in given if one.name not in read]
    ports.lengths += [(one, lengths[one.name]) for one in inputs if one.name in lengths]
    pasts = [
        one for one in inputs if one not in (tokens, mask, positions) and one.name not in lengths
    ]
    presents = [
        name
        for name, one in outputs.items()
        if len(one.shape or ()) == 4 or (len(one.shape or ()) == 3 and name != logits.name)
    ]
    pairs = presents_of([past.name for past in pasts], presents)
    for past in pasts:
        if len(past.dims) not in (3, 4) or past.name not in pairs:
            raise CannotJudge(
                f"what the graph's input '{past.name}' is for is not known", file=str(model)
            )
        ports.caches.append((past, _port(model, outputs[pairs[past.name]])))
    return ports


def _port(model: Path, one: Any) -> _Port:
    dtype = _ELEMENTS.get(one.type)
    if dtype is None:
        raise CannotJudge(f"'{one.name}' is a {one.type}, which numpy cannot hold", file=str(model))
    # The transformers exporter names fixed sizes by their digits.
    dims = (int(d) if isinstance(d, str) and d.isdigit() else d for d in one.shape)
    return _Port(one.name, dtype, tuple(dims))


def _head_width_beside(model: Path) -> int | None:
    try:
        config: Mapping[str, Any] = json.loads((model.parent / "genai_config.json").read_text())
        return int(config["model"]["decoder"]["head_size"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError, OverflowError):
        return None
