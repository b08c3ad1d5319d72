"""Which instruction an operator of the integer stage becomes, and how long it takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from xdsl.dialects.builtin import IntegerAttr, ModuleOp, SymbolRefAttr, UnitAttr, i64
from xdsl.ir import Attribute, Operation
from xdsl.utils.exceptions import PassFailedException

from intaglio.dialects import rom
from intaglio.dialects.fabric import kv_vector_bytes, matrix_shape
from intaglio.dialects.formula import Formula
from intaglio.dialects.machine import Machine
from intaglio.dialects.semantics import pre_shift, query_key_bits, weighted_sum_bits
from intaglio.dialects.tiling import Piece
from intaglio.lowering.buffers import name_of
from intaglio.lowering.schedule import durations
from intaglio.lowering.schedule.draft import Draft


def _int(value: int) -> IntegerAttr:
    return IntegerAttr(value, i64)


@dataclass
class Selector:
    """Chooses the instruction of each operator of a block."""

    module: ModuleOp
    machine: Machine
    pieces: dict[str, list[Piece]]
    instances: list[dict[str, str]] = field(default_factory=list)
    """What each instance binds the layer's slots to; other names are buffers of the module."""

    def pieces_of(self, slot: str) -> list[Piece]:
        """Pieces of all buffers that a slot may be bound to."""
        names = [one.get(slot, slot) for one in self.instances] or [slot]
        if missing := [name for name in names if name not in self.pieces]:
            raise PassFailedException(f"@{missing[0]} has no place; run fabric-place first")
        return [piece for name in dict.fromkeys(names) for piece in self.pieces[name]]

    def select(self, op: Operation) -> Draft | None:
        """The instruction of an operator; None for those that need none."""
        selector = _SELECTORS.get(type(op))
        if selector is None:
            raise PassFailedException(f"{op.name} has no instruction; run rom-legalize first")
        return selector(self, op)

    def embed(self, op: rom.EmbedOp) -> Draft:
        type_ = rom.resolve(op, op.table).type
        assert isinstance(type_, rom.ROMTensorType)
        duration = durations.embed(self.machine, matrix_shape(type_))
        return Draft(
            "embed",
            "matrix",
            [op.token],
            [op.output],
            {"table": name_of(op.table)},
            duration,
            op.onnx,
        )

    def requantize(self, op: rom.RequantizeOp) -> Draft:
        dot = op.input.owner
        assert isinstance(dot, rom.DotOp)
        type_ = rom.resolve(op, op.weights).type
        assert isinstance(type_, rom.ROMTensorType | rom.AdapterType)
        shape = matrix_shape(type_)
        if isinstance(type_, rom.AdapterType):
            queue, duration = "attention", self.adapter_product(op, type_)
        else:
            pieces = self.pieces_of(name_of(op.weights))
            queue, duration = "matrix", durations.product(self.machine, shape, pieces)
        uses = {"weights": name_of(op.weights)}
        if op.bias is not None:
            uses["bias"] = name_of(op.bias)
        residual = [] if op.residual is None else [op.residual]
        arguments: dict[str, Attribute] = {"pre_shift": op.pre_shift}
        return Draft(
            "matvec",
            queue,
            [dot.input, *residual],
            [op.output],
            uses,
            duration,
            op.onnx,
            arguments,
            tuple(residual),
        )

    def adapter_product(self, op: rom.RequantizeOp, type_: rom.AdapterType) -> Formula:
        """Duration of a product with a constant adapter, or with one of the slots of a site."""
        shape = matrix_shape(type_)
        if not type_.is_slot:
            return durations.adapter_product(self.machine, shape)
        slot = name_of(op.weights)
        names = {one.get(slot, slot) for one in self.instances} or {slot}
        first = {name_of(s.a) for s in self.module.ops if isinstance(s, rom.SiteOp)}
        return durations.slot_product(self.machine, shape, first=names <= first)

    def norm(self, op: rom.RMSNormOp | rom.LayerNormOp) -> Draft:
        size = rom.vector_size(op.input.type)
        uses = {"gamma": name_of(op.gamma)}
        arguments: dict[str, Attribute] = {"eps": op.eps}
        if isinstance(op, rom.RMSNormOp):
            groups, opcode = op.groups.value.data, "rms_norm"
            arguments["groups"] = op.groups
        else:
            groups, opcode = 1, "layer_norm"
            if op.beta is not None:
                uses["beta"] = name_of(op.beta)
        duration = durations.norm(self.machine, size, groups, centred=opcode == "layer_norm")
        return Draft(opcode, "vector", [op.input], [op.output], uses, duration, op.onnx, arguments)

    def quantize(self, op: rom.QuantizeOp) -> Draft:
        type_ = op.output.type
        assert isinstance(type_, rom.QuantizedType)
        uses = {} if op.cache is None else {"scale_of": name_of(op.cache)}
        duration = durations.quantize(
            self.machine, type_.size, type_.groups.data, static=op.cache is not None
        )
        return Draft("quantize", "vector", [op.input], [op.output], uses, duration, op.onnx)

    def rotary(self, op: rom.RotaryOp) -> Draft:
        arguments: dict[str, Attribute] = {"heads": op.heads, "rotary_dim": op.rotary_dim}
        if op.interleaved is not None:
            arguments["interleaved"] = UnitAttr()
        return Draft(
            "rotary",
            "vector",
            [op.input],
            [op.output],
            {"cos": name_of(op.cos), "sin": name_of(op.sin)},
            durations.vector(self.machine, rom.vector_size(op.input.type)),
            op.onnx,
            arguments,
        )

    def elementwise(
        self, op: rom.AddOp | rom.MulOp | rom.ScaleOp | rom.ActivateOp | rom.SoftcapOp
    ) -> Draft:
        arguments: dict[str, Attribute] = {}
        match op:
            case rom.ActivateOp():
                arguments["kind"] = op.kind
            case rom.ScaleOp():
                arguments["factor"] = op.factor
            case rom.SoftcapOp():
                assert op.inverse is not None
                arguments |= {"cap": op.cap, "inverse": op.inverse}
            case _:
                pass
        operands = list(op.operands)
        return Draft(
            op.name.removeprefix("rom."),
            "vector",
            operands,
            [op.output],
            {},
            durations.vector(self.machine, rom.vector_size(op.output.type)),
            op.onnx,
            arguments,
            tuple(operands),
        )

    def append(self, op: rom.AppendOp) -> Draft:
        cache = rom.resolve(op, op.cache)
        assert isinstance(cache.type, rom.KVType)
        size = self.vector_bytes(name_of(op.cache))
        return Draft(
            "append",
            "kv",
            [op.input],
            [],
            {"cache": name_of(op.cache)},
            durations.append(self.machine, cache.type.heads.data, size),
            op.onnx,
        )

    def vector_bytes(self, slot: str) -> int:
        """Bytes of a token's vector of one head in the caches that a slot may be bound to."""
        names = [one.get(slot, slot) for one in self.instances] or [slot]
        caches = [c for c in self.module.ops if isinstance(c, rom.CacheOp)]
        return max(kv_vector_bytes(c) for c in caches if c.sym_name.data in names)

    def query_key(self, op: rom.QueryKeyOp) -> Draft:
        query = op.query.type
        assert isinstance(query, rom.QuantizedType)
        cache = self.cache(op, op.keys)
        window = _window(op.window)
        kv = cache.format.data
        bits = query_key_bits(query.width.data, query.format.data, kv)
        arguments: dict[str, Attribute] = {
            "score_scale": op.score_scale,
            "pre_shift": _int(pre_shift(bits)),
            "window": _int(window),
        }
        if op.cap is not None and op.cap_inverse is not None and op.log2e is not None:
            arguments |= {"cap": op.cap, "cap_inverse": op.cap_inverse, "log2e": op.log2e}
        duration = durations.query_key(
            self.machine,
            query.groups.data,
            cache.heads.data,
            cache.width.data,
            window,
            kv,
        )
        return Draft(
            "query_key",
            "attention",
            [op.query],
            [op.output],
            {"keys": name_of(op.keys)},
            duration,
            op.onnx,
            arguments,
        )

    def softmax(self, op: rom.SoftmaxOp) -> Draft:
        scores = op.scores.type
        assert isinstance(scores, rom.ScoresType)
        window = _window(op.window)
        return Draft(
            "softmax",
            "vector",
            [op.scores],
            [op.output],
            {"values": name_of(op.values)},
            durations.softmax(self.machine, scores.heads.data, window),
            op.onnx,
            {"window": _int(window)},
        )

    def weighted_sum(self, op: rom.WeightedSumOp) -> Draft:
        source = op.probabilities.type
        assert isinstance(source, rom.ProbabilitiesType)
        cache = self.cache(op, op.values)
        window = _window(op.window)
        kv = cache.format.data
        bits = weighted_sum_bits(cache.capacity.data, source.format.data, kv)
        duration = durations.weighted_sum(
            self.machine,
            source.heads.data,
            cache.heads.data,
            cache.width.data,
            window,
            kv,
        )
        return Draft(
            "weighted_sum",
            "attention",
            [op.probabilities],
            [op.output],
            {"values": name_of(op.values)},
            duration,
            op.onnx,
            {"pre_shift": _int(pre_shift(bits)), "window": _int(window)},
        )

    def sample(self, op: rom.SampleOp) -> Draft:
        return Draft(
            "sample",
            "vector",
            [op.input],
            [op.token],
            {},
            durations.sample(self.machine, rom.vector_size(op.input.type)),
            op.onnx,
        )

    def nothing(self, op: Operation) -> None:
        """Slots and views, and dots, which the requantisation includes."""

    def cache(self, op: Operation, symbol: SymbolRefAttr) -> rom.KVType:
        type_ = rom.resolve(op, symbol).type
        assert isinstance(type_, rom.KVType)
        return type_


def _window(attr: IntegerAttr | None) -> int:
    return 0 if attr is None else attr.value.data


_SELECTORS: dict[type[Operation], Callable[..., Draft | None]] = {
    rom.EmbedOp: Selector.embed,
    rom.RequantizeOp: Selector.requantize,
    rom.RMSNormOp: Selector.norm,
    rom.LayerNormOp: Selector.norm,
    rom.QuantizeOp: Selector.quantize,
    rom.RotaryOp: Selector.rotary,
    rom.AddOp: Selector.elementwise,
    rom.MulOp: Selector.elementwise,
    rom.ScaleOp: Selector.elementwise,
    rom.ActivateOp: Selector.elementwise,
    rom.SoftcapOp: Selector.elementwise,
    rom.AppendOp: Selector.append,
    rom.QueryKeyOp: Selector.query_key,
    rom.SoftmaxOp: Selector.softmax,
    rom.WeightedSumOp: Selector.weighted_sum,
    rom.SampleOp: Selector.sample,
    rom.DotOp: Selector.nothing,
    rom.SliceOp: Selector.nothing,
    rom.SlotOp: Selector.nothing,
}
