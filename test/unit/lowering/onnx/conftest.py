"""Small graphs, and a plain float64 evaluator of the float stage of rom."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from intaglio.dialects import rom
from intaglio.dialects.codes import container_bits, unpack
from intaglio.lowering.onnx.importer import ImportedModel, import_model
from intaglio.lowering.parameters import ParameterSource


def dequantised(source: ParameterSource, bits: int, group: int, zero: int | None) -> np.ndarray:
    """A matrix source as plain numbers [N, K], read in uneven chunks; group 0 is one scale."""
    n, k = source.dims
    bits, one_scale, group = container_bits(bits), group == 0, group or k
    parts = []
    for r0 in range(0, n, 7):
        r1 = min(n, r0 + 7)
        packed = np.asarray(source.packed_rows(r0, r1))
        assert packed.dtype == np.uint8 and packed.shape == (r1 - r0, -(-k * bits // 8))
        if k * bits % 8:
            assert not (packed[:, -1] >> np.uint8(k * bits % 8)).any(), "padding bits must be zero"
        codes = unpack(packed, bits, k).astype(np.float64)
        scales = source.scales(r0, r1)
        assert scales.dtype == np.float32 and scales.shape == (r1 - r0, -(-k // group))
        assert not one_scale or (scales == source.scales(0, 1)).all()
        zeros, real = source.zeros(r0, r1), source.real_zeros(r0, r1)
        assert (zeros is None) == (zero is not None)
        if real is not None:
            assert real.dtype == np.float32 and real.shape == scales.shape
            assert zero == 1 << (bits - 1)
            points = real.astype(np.float64)
        elif zeros is None:
            points = np.full(scales.shape, float(zero or 0))
        else:
            assert zeros.dtype == np.uint8 and zeros.shape == scales.shape
            points = zeros.astype(np.float64)
        index = np.arange(k) // group
        parts.append((codes - points[:, index]) * scales[:, index].astype(np.float64))
    return np.concatenate(parts)


class Evaluator:
    """Runs a float-stage module token by token, as its operators' docstrings say."""

    def __init__(self, model: ImportedModel) -> None:
        self.model = model
        ops = list(model.module.body.block.ops)
        self.parameters = {
            op.sym_name.data: self._constant(op) for op in ops if isinstance(op, rom.ParameterOp)
        }
        self.states: dict[str, np.ndarray] = {}
        self.caches: dict[str, list[np.ndarray]] = {
            op.sym_name.data: [] for op in ops if isinstance(op, rom.CacheOp)
        }
        self.cache_ops = {op.sym_name.data: op for op in ops if isinstance(op, rom.CacheOp)}
        self.layers = {op.sym_name.data: op for op in ops if isinstance(op, rom.LayerOp)}
        (self.step,) = (op for op in ops if isinstance(op, rom.StepOp))

    def _constant(self, op: rom.ParameterOp) -> np.ndarray:
        type_ = op.type
        assert isinstance(type_, rom.ROMTensorType | rom.AdapterType)
        source = self.model.parameters[op.key.data]
        assert source.dims == type_.dims and source.code == type_.code.data
        if not type_.is_matrix:
            value = source.values(0, source.dims[0]).astype(np.float64)
        else:
            zero = None if type_.zeros.data else op.zero.value.data if op.zero else None
            value = dequantised(source, type_.bits, type_.group.data, zero)
        return value

    def run(self, tokens: list[int]) -> np.ndarray:
        """Logits [tokens, vocabulary]."""
        return np.array([self._step(t, p) for p, t in enumerate(tokens)])

    def _step(self, token: int, position: int) -> np.ndarray:
        block = self.step.body.block
        values: dict[Any, Any] = {block.args[0]: token, block.args[1]: position}
        return self._block(block, values, {}, 0)

    def _block(self, block: Any, v: dict[Any, Any], bound: dict[str, str], instance: int) -> Any:
        def named(symbol: Any) -> str:
            name = symbol.root_reference.data
            return bound.get(name, name)

        def constant(symbol: Any) -> np.ndarray:
            return self.parameters[named(symbol)]

        for op in block.ops:
            match op:
                case rom.SlotOp():
                    continue
                case rom.EmitOp():
                    assert v[op.token] == int(np.argmax(v[op.logits]))
                    return v[op.logits]
                case rom.YieldOp():
                    return [v[x] for x in op.values]
                case rom.RepeatOp():
                    layer = self.layers[op.layer.root_reference.data]
                    carried = [v[x] for x in op.inputs]
                    for number, one in enumerate(op.instances):
                        args = layer.body.block.args
                        inner = {
                            args[0]: v[op.position],
                            **dict(zip(args[1:], carried, strict=True)),
                        }
                        slots = {k: s.root_reference.data for k, s in one.data.items()}  # pyright: ignore
                        carried = self._block(layer.body.block, inner, slots, number)
                    v.update(zip(op.outputs, carried, strict=True))
                    continue
                case rom.AppendOp():
                    self._append(named(op.cache), v[op.input])
                    continue
                case rom.EmbedOp():
                    y = constant(op.table)[v[op.token]]
                case rom.EmbedPositionOp():
                    y = constant(op.table)[v[op.position]]
                case rom.LinearOp():
                    x = v[op.input]
                    if op.activation is not None:
                        assert op.activation.data == "int8"
                        step = np.abs(x).max() / 127
                        x = np.rint(x / step) * step if step else x
                    y = constant(op.weights) @ x
                    y = y + constant(op.bias) if op.bias else y
                case rom.RMSNormOp():
                    x = v[op.input].reshape(op.groups.value.data, -1)
                    y = x / np.sqrt((x * x).mean(1, keepdims=True) + op.eps.value.data)
                    y = (y * constant(op.gamma)).reshape(-1)
                case rom.LayerNormOp():
                    x = v[op.input]
                    y = (x - x.mean()) / np.sqrt(x.var() + op.eps.value.data) * constant(op.gamma)
                    y = y + constant(op.beta) if op.beta else y
                case rom.RotaryOp():
                    y = self._rotary(op, v[op.input], v[op.position], constant)
                case rom.AttentionOp():
                    of_heads = [None if o is None else constant(o) for o in (op.sink, op.slopes)]
                    caches = named(op.keys), named(op.values)
                    y = self._attention(op, v[op.query], *caches, *of_heads)
                case rom.ActivateOp():
                    y = _activate(op.kind.data, v[op.input])
                case rom.AddOp():
                    y = v[op.lhs] + v[op.rhs]
                case rom.MulOp():
                    y = v[op.lhs] * v[op.rhs]
                case rom.ScaleOp():
                    y = v[op.input] * op.factor.value.data
                case rom.TapOp():
                    y = v[op.input] * constant(op.weights)
                    y = y + constant(op.bias) if op.bias else y
                    y = y + v[op.addend] if op.addend is not None else y
                case rom.DelayOp():
                    y = self.states.get(named(op.state), np.zeros_like(v[op.input]))
                    self.states[named(op.state)] = v[op.input]
                case rom.LinearAttentionOp():
                    y = self._linear_attention(op, v, named(op.state))
                case rom.SoftcapOp():
                    y = op.cap.value.data * np.tanh(v[op.input] / op.cap.value.data)
                case rom.ClipOp():
                    low = -np.inf if op.low is None else op.low.value.data
                    high = np.inf if op.high is None else op.high.value.data
                    y = np.clip(v[op.input], low, high)
                case rom.RouteOp():
                    y = self._route(op, v[op.input])
                case rom.ExpertLinearOp():
                    expert = v[op.routing][0][op.expert.value.data]
                    experts = op.routing.type.experts.data
                    matrix = constant(op.weights)
                    matrix = matrix.reshape(experts, -1, matrix.shape[1])[expert]
                    y = matrix @ v[op.input]
                    y = y + constant(op.bias)[expert] if op.bias else y
                case rom.WeighOp():
                    y = v[op.input] * v[op.routing][1][op.expert.value.data]
                    y = y + v[op.residual] if op.residual is not None else y
                case rom.SliceOp():
                    first = op.offset.value.data
                    y = v[op.input][first : first + rom.vector_size(op.output.type)]
                case rom.SampleOp():
                    y = int(np.argmax(v[op.input]))
                case _:
                    raise AssertionError(op.name)
            v[op.results[0]] = y
        raise AssertionError("no terminator")

    def _linear_attention(
        self, op: rom.LinearAttentionOp, v: dict[Any, Any], name: str
    ) -> np.ndarray:
        state = rom.resolved_type(op, op.state, rom.MatricesType)
        heads, width, columns = state.dims
        s = self.states.get(name, np.zeros(state.dims))
        q, k = (v[one].reshape(-1, width) for one in (op.query, op.key))
        q, k = (np.repeat(one, heads // len(one), 0) for one in (q, k))
        u = v[op.value].reshape(heads, columns)
        if op.decay is not None:
            s = s * np.exp(v[op.decay])[:, None, None]
        if op.beta is not None:
            u = (u - np.einsum("hkv,hk->hv", s, k)) * v[op.beta][:, None]
        self.states[name] = s = s + k[:, :, None] * u[:, None, :]
        return np.einsum("hkv,hk->hv", s, q).reshape(-1)

    def _route(self, op: rom.RouteOp, x: np.ndarray) -> tuple[list[int], np.ndarray]:
        """Numbers and shares; of equal logits the last comes first, or the first."""
        last = -1 if op.lowest is None else 1
        order = sorted(range(len(x)), key=lambda i: (-x[i], last * i))
        chosen = order[: op.output.type.chosen.data]
        p = np.exp(x - x.max())
        return chosen, p[chosen] / (p if op.over_all else p[chosen]).sum()

    def _append(self, name: str, x: np.ndarray) -> None:
        op = self.cache_ops[name]
        if op.static_scale is not None:
            bits = {"int8": 8, "int4": 4}[op.type.format.data]  # pyright: ignore
            scale = op.static_scale.value.data  # pyright: ignore
            x = np.clip(np.rint(x / scale), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1) * scale
        self.caches[name].append(x)

    def _rotary(self, op: rom.RotaryOp, x: np.ndarray, position: int, constant: Any) -> np.ndarray:
        cos, sin = constant(op.cos)[position], constant(op.sin)[position]
        y = x.reshape(op.heads.value.data, -1).copy()
        width = op.rotary_dim.value.data
        if op.interleaved:
            a, b = y[:, 0:width:2].copy(), y[:, 1:width:2].copy()
            y[:, 0:width:2], y[:, 1:width:2] = a * cos - b * sin, b * cos + a * sin
        else:
            a, b = y[:, : width // 2].copy(), y[:, width // 2 : width].copy()
            y[:, : width // 2], y[:, width // 2 : width] = a * cos - b * sin, b * cos + a * sin
        return y.reshape(-1)

    def _attention(
        self,
        op: rom.AttentionOp,
        q: np.ndarray,
        keys: str,
        values: str,
        sink: np.ndarray | None,
        slopes: np.ndarray | None,
    ) -> np.ndarray:
        type_ = self.cache_ops[keys].type
        assert isinstance(type_, rom.KVType)
        kv = type_.heads.data
        heads = op.heads.value.data
        k = np.array(self.caches[keys]).reshape(-1, kv, type_.width.data)
        v = np.array(self.caches[values]).reshape(-1, kv, type_.width.data)
        if op.window is not None:
            k, v = k[-op.window.value.data :], v[-op.window.value.data :]
        k, v = (np.repeat(x, heads // kv, axis=1) for x in (k, v))
        scores = np.einsum("hd,thd->ht", q.reshape(heads, -1), k) * op.scale.value.data
        if op.softcap is not None:
            cap = op.softcap.value.data
            scores = cap * np.tanh(scores / cap)
        if slopes is not None:
            scores = scores + slopes[:, None] * np.arange(1 - len(k), 1)
        top = scores.max(1, keepdims=True)
        top = top if sink is None else np.maximum(top, sink[:, None])
        p = np.exp(scores - top)
        total = p.sum(1, keepdims=True)
        total = total if sink is None else total + np.exp(sink[:, None] - top)
        return np.einsum("ht,thd->hd", p / total, v).reshape(-1)


_erf = np.vectorize(math.erf)


def _activate(kind: str, x: np.ndarray) -> np.ndarray:
    sigmoid = 1 / (1 + np.exp(-x))
    match kind:
        case "silu":
            return x * sigmoid
        case "sigmoid":
            return sigmoid
        case "quick_gelu":
            return x / (1 + np.exp(-1.702 * x))
        case "gelu_tanh":
            return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
        case "gelu_erf":
            return 0.5 * x * (1 + _erf(x / math.sqrt(2)))
        case "relu":
            return np.maximum(x, 0)
        case "relu2":
            return np.maximum(x, 0) ** 2
        case "tanh":
            return np.tanh(x)
        case "mish":
            return x * np.tanh(np.log1p(np.exp(x)))
        case "elu":
            return np.where(x > 0, x, np.expm1(np.minimum(x, 0)))
        case "softplus":
            return np.log1p(np.exp(x))
    raise AssertionError(kind)


WIDTH = 16
VOCABULARY = 11


class Decoder:
    """A graph under construction: input_ids -> Gather -> "x" -> the nodes under test -> "y"."""

    def __init__(self, folder: Path, width: int = WIDTH) -> None:
        self.folder = folder
        self.width = width
        self.rng = np.random.default_rng(5)
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.inputs = [("input_ids", TensorProto.INT64, ["batch", "sequence"])]
        self.outputs: list[tuple[str, int, list[Any]]] = []
        self.pasts: list[tuple[str, int, list[int]]] = []
        self.functions: list[Any] = []
        self.opset = 22
        self.config: dict[str, str] = {}
        """Entries of onnxruntime's session."""
        self.constant("table", self.rng.normal(size=(VOCABULARY, width)).astype(np.float32))
        self.node("Gather", ["table", "input_ids"], ["x"], name="embed")

    def constant(self, name: str, value: np.ndarray) -> str:
        """Adds an initializer."""
        self.constants.append(numpy_helper.from_array(np.asarray(value, order="C"), name))
        return name

    def packed(self, name: str, dtype: int, dims: list[int], data: bytes) -> str:
        """Adds an initializer from its stored bytes."""
        self.constants.append(helper.make_tensor(name, dtype, dims, data, raw=True))
        return name

    def floats(self, name: str, *dims: int) -> str:
        """Adds a random float32 initializer."""
        return self.constant(name, self.rng.normal(size=dims).astype(np.float32))

    def node(
        self,
        op_type: str,
        inputs: list[str],
        outputs: list[str],
        *,
        name: str | None = None,
        domain: str = "",
        **attributes: Any,
    ) -> None:
        """Adds a node."""
        made = helper.make_node(op_type, inputs, outputs, name=name, domain=domain, **attributes)
        self.nodes.append(made)

    def ms(self, op_type: str, inputs: list[str], outputs: list[str], **attributes: Any) -> None:
        """Adds a node of com.microsoft."""
        self.node(op_type, inputs, outputs, domain="com.microsoft", **attributes)

    def function(
        self,
        name: str,
        inputs: list[str],
        outputs: list[str],
        nodes: list[Any],
        *,
        domain: str = "own",
        opset: int | None = None,
        attributes: Any = (),
    ) -> None:
        """Adds a function of the model; its nodes may be of all domains in use."""
        sets = [("", opset or self.opset), ("com.microsoft", 1), ("own", 1)]
        opsets = [helper.make_opsetid(*one) for one in sets]
        made = helper.make_function(domain, name, inputs, outputs, nodes, opsets, list(attributes))
        self.functions.append(made)

    def lengths(self) -> None:
        """Adds the attention mask, and from it "seqlens_k" and "total"."""
        self.inputs.append(("attention_mask", TensorProto.INT64, ["batch", "total_length"]))
        self.constant("one", np.array([1], np.int64))
        self.constant("scalar_one", np.array(1, np.int64))
        self.node("ReduceSum", ["attention_mask", "one"], ["sum"], keepdims=0)
        self.node("Sub", ["sum", "one"], ["less"])
        self.node("Cast", ["less"], ["seqlens_k"], to=TensorProto.INT32)
        self.node("Shape", ["attention_mask"], ["mask_shape"])
        self.node("Gather", ["mask_shape", "scalar_one"], ["length"], axis=0)
        self.node("Cast", ["length"], ["total"], to=TensorProto.INT32)

    def past(self, layer: int, heads: int, width: int, dtype: int = TensorProto.FLOAT) -> None:
        """Adds past keys and values and their present outputs."""
        for kind in ("key", "value"):
            past, present = f"past_key_values.{layer}.{kind}", f"present.{layer}.{kind}"
            self.inputs.append((past, dtype, ["batch", heads, "past_length", width]))
            self.outputs.append((present, dtype, ["batch", heads, "total_length", width]))
            self.pasts.append((past, dtype, [1, heads, 0, width]))

    def save(self, output: str = "y", dtype: int = TensorProto.FLOAT, **options: Any) -> Path:
        """Writes the model."""
        graph = helper.make_graph(
            self.nodes,
            "decoder",
            [helper.make_tensor_value_info(*port) for port in self.inputs],
            [helper.make_tensor_value_info(output, dtype, None)]
            + [helper.make_tensor_value_info(*port) for port in self.outputs],
            self.constants,
        )
        opsets = [helper.make_opsetid("", self.opset), helper.make_opsetid("com.microsoft", 1)]
        if self.functions:
            opsets.append(helper.make_opsetid("own", 1))
        model = helper.make_model(
            graph, opset_imports=opsets, ir_version=10, functions=self.functions
        )
        path = self.folder / "model.onnx"
        onnx.save(model, path, **options)
        return path

    def reference(self, path: Path, tokens: list[int], output: str = "y") -> np.ndarray:
        """What onnxruntime computes, [tokens, outputs]."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        for key, value in self.config.items():
            options.add_session_config_entry(key, value)
        session = onnxruntime.InferenceSession(path, options)
        feed: dict[str, np.ndarray] = {"input_ids": np.array([tokens], np.int64)}
        names = [port[0] for port in self.inputs]
        if "attention_mask" in names:
            feed["attention_mask"] = np.ones((1, len(tokens)), np.int64)
        if "position_ids" in names:
            (dims,) = (port[2] for port in self.inputs if port[0] == "position_ids")
            lead = [dim if isinstance(dim, int) else 1 for dim in dims[:-1]]
            positions = np.arange(len(tokens), dtype=np.int64)
            feed["position_ids"] = np.broadcast_to(positions, (*lead, len(tokens)))
        if "write_indices" in names:
            feed["write_indices"] = np.zeros(1, np.int64)
            feed["nonpad_kv_seqlen"] = np.array([len(tokens)])
        for name, dtype, dims in self.pasts:
            feed[name] = np.zeros(dims, helper.tensor_dtype_to_np_dtype(dtype))
        result = session.run([output], feed)[0]
        return np.asarray(result, np.float64).reshape(len(tokens), -1)


@pytest.fixture
def decoder(tmp_path: Path) -> Decoder:
    """A graph to add nodes to."""
    return Decoder(tmp_path)


@pytest.fixture
def wide(tmp_path: Path) -> Decoder:
    """The same, 64 elements wide: heads of 16, as onnxruntime's rotary embedding wants."""
    return Decoder(tmp_path, 64)


@pytest.fixture
def evaluate() -> type[Evaluator]:
    """The evaluator of the float stage."""
    return Evaluator


@pytest.fixture
def plain() -> Any:
    """A matrix source as plain numbers."""
    return dequantised


@pytest.fixture
def agrees() -> Any:
    """Imports a decoder, checks it against onnxruntime, gives the imported model."""

    def check(decoder: Decoder, output: str = "y", tolerance: float = 2e-5) -> ImportedModel:
        path = decoder.save(output)
        model = import_model(path)
        model.module.verify()
        tokens = [3, 1, 4, 1, 5, 9, 2]
        expected = decoder.reference(path, tokens, output)
        np.testing.assert_allclose(
            Evaluator(model).run(tokens), expected, rtol=tolerance, atol=tolerance
        )
        return model

    return check
