"""Chains of products: full shapes against hand figures, small models against programs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from xdsl.context import Context
from xdsl.dialects.builtin import ModuleOp
from xdsl.rewriter import InsertPoint, Rewriter

from intaglio.backend.output.output import read_manifest
from intaglio.backend.program.file import program_content
from intaglio.backend.program.program import load_program, program_of
from intaglio.backend.stages import Options
from intaglio.backend.target.target import Target, load_target
from intaglio.dialects.fabric import MachineOp
from intaglio.dialects.latency_bound import Chain, read_chain
from intaglio.dialects.machine import Machine
from intaglio.lowering.folded_latencies import Pipelines
from intaglio.lowering.latency_bound import chain_of
from intaglio.lowering.place.place import FabricPlace
from intaglio.lowering.schedule.schedule import ProgramSchedule
from intaglio.lowering.step.fuse_residual import RomFuseResidual
from intaglio.lowering.step.legalize import RomLegalize
from intaglio.runtime.reports.timing import token_cycles

REGISTERS = "network.wire_ps_per_mm=10000"
"""The network with a register in each unit."""
ONE_SCALE = ("activations=int8", "kv=int8")
"""As in the prototype whose figures these are."""
RELAXED = settings(
    max_examples=12,
    phases=[Phase.explicit, Phase.generate],
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
LATENCIES = (
    *("broadcast", "mac_pipeline", "reduce", "requantise", "rom_read", "attention_pipeline"),
    *("vector_pipeline", "vector_reduce", "sample"),
)


@dataclass(frozen=True)
class Llama:
    """A decoder by its shape alone; weights are never looked at."""

    hidden: int = 3072
    heads: int = 24
    kv_heads: int = 8
    width: int = 128
    ffn: int = 8192
    vocabulary: int = 128256
    layers: int = 28
    code: str = "int4"
    down: str = "int4"
    head: str = "int4"
    sub_norms: bool = False
    """BitNet's, before O and down."""
    context: int = 2048

    def text(self) -> str:
        """The module before legalisation."""
        lines: list[str] = []
        body: list[str] = []
        h, size, kv = self.hidden, self.heads * self.width, self.kv_heads * self.width

        def dense(name: str, *dims: int) -> str:
            type_ = f"!rom.tensor<{list(dims)}, float32>"
            lines.append(f'rom.parameter @{name} : {type_} {{key = "{name}", peak = 1.0 : f64}}')
            return name

        def op(y: str, what: str, given: str, rows: int, *columns: int) -> str:
            types = ", ".join(f"tensor<{n}xf32>" for n in columns)
            onnx = f'{given}onnx = [["{y}"]]'
            body.append(f"%{y} = rom.{what} {{{onnx}}} : {types} -> tensor<{rows}xf32>")
            return y

        def linear(y: str, x: str, rows: int, columns: int, code: str) -> str:
            group = "" if code == "ternary" else ", group 128"
            zero = "" if code == "ternary" else "zero = 1 : i64, "
            type_ = f"!rom.tensor<[{rows}, {columns}], {code}{group}>"
            lines.append(
                f'rom.parameter @w_{y} : {type_} {{key = "w_{y}", {zero}peak = 0.1 : f64}}'
            )
            return op(y, f"linear %{x} by @w_{y}", "", rows, columns)

        def norm(y: str, x: str, n: int) -> str:
            gamma = dense(f"g_{y}", n)
            return op(y, f"rms_norm %{x} by @{gamma}", "eps = 1.0e-05 : f64, ", n, n)

        dense("table", self.vocabulary, h)
        dense("cos", self.context, self.width // 2)
        dense("sin", self.context, self.width // 2)
        body.append(f'%x = rom.embed %token of @table {{onnx = [["e"]]}} : tensor<{h}xf32>')
        x = "x"
        for i in range(self.layers):
            n = norm(f"n{i}", x, h)
            for cache in "kv":
                type_ = f"!rom.kv<{self.context}, {self.kv_heads}, {self.width}, float32>"
                lines.append(f"rom.cache @past_{i}_{cache} : {type_}")
            for y, rows, heads in (("q", size, self.heads), ("k", kv, self.kv_heads)):
                linear(f"{y}{i}", n, rows, h, self.code)
                angles = f"rotary %{y}{i} at %position by @cos, @sin"
                shape = f"heads = {heads} : i64, rotary_dim = {self.width} : i64, "
                op(f"{y}r{i}", angles, shape, rows, rows)
            linear(f"v{i}", n, kv, h, self.code)
            for y, cache in (("kr", "k"), ("v", "v")):
                body.append(
                    f"rom.append %{y}{i} to @past_{i}_{cache} at %position"
                    f' {{onnx = [["{y}{i}"]]}} : tensor<{kv}xf32>'
                )
            attention = f"attention %qr{i} over @past_{i}_k, @past_{i}_v at %position"
            o = op(
                f"a{i}", attention, f"heads = {self.heads} : i64, scale = 0.1 : f64, ", size, size
            )
            if self.sub_norms:
                o = norm(f"s{i}", o, size)
            linear(f"o{i}", o, h, size, self.code)
            body.append(_binary(f"m{i}", "add", x, f"o{i}", h))
            n = norm(f"f{i}", f"m{i}", h)
            linear(f"gate{i}", n, self.ffn, h, self.code)
            linear(f"up{i}", n, self.ffn, h, self.code)
            op(f"act{i}", f"activate %gate{i}", 'kind = "silu", ', self.ffn, self.ffn)
            body.append(_binary(f"b{i}", "mul", f"act{i}", f"up{i}", self.ffn))
            b = norm(f"t{i}", f"b{i}", self.ffn) if self.sub_norms else f"b{i}"
            linear(f"down{i}", b, h, self.ffn, self.down)
            x = f"x{i}"
            body.append(_binary(x, "add", f"m{i}", f"down{i}", h))
        linear("logits", norm("last", x, h), self.vocabulary, h, self.head)
        n = f"tensor<{self.vocabulary}xf32>"
        body.append(f'%next = rom.sample %logits {{onnx = [["sample"]]}} : {n}')
        body.append(f"rom.emit %logits, %next : {n}")
        step = f"rom.step @decode context {self.context} {{\n^bb0(%token: i32, %position: index):"
        return "\n".join([*lines, step, *body, "}"])


def _binary(z: str, what: str, x: str, y: str, n: int) -> str:
    t = f"tensor<{n}xf32>"
    return f'%{z} = rom.{what} %{x}, %{y} {{onnx = [["{z}"]]}} : {t}, {t} -> {t}'


def pipelines(target: Target) -> Pipelines:
    """What a target's machine does not say."""
    lanes = target.integer("vector.lanes")
    return Pipelines(target.integer("stage.adder_levels_per_cycle"), lanes)


@pytest.fixture(scope="module")
def chain(from_text: Callable[[str], ModuleOp]) -> Callable[..., Chain]:
    """The chain of a shape on a target."""

    def make(shape: Llama, name: str, *options: str) -> Chain:
        target = load_target(name).with_options(options)
        module = from_text(shape.text())
        Rewriter.insert_op(MachineOp(target.machine()), InsertPoint.at_start(module.body.block))
        RomLegalize().apply(Context(), module)
        RomFuseResidual().apply(Context(), module)
        return chain_of(module, pipelines(target))

    return make


def test_llama_3b_on_roma(chain: Callable[..., Chain]):
    """Weights 384 cycles a layer; 471 of latencies, of which 132 can be worked in."""
    found = chain(Llama(), "roma", REGISTERS, *ONE_SCALE)
    assert [found.at(tokens).cycles for tokens in (1, 1024)] == [21_918, 22_338]
    assert found.at(1).work == 28 * 384 + 1503
    stated = [f"latency.{one}" for one in ("broadcast=4", "reduce=10", "vector_reduce=5")]
    found = chain(Llama(), "roma", *stated, "latency.sample=9", *ONE_SCALE)
    assert [found.at(tokens).cycles for tokens in (1, 1024)] == [15_897, 16_317]


def test_llama_8b_on_hc1(chain: Callable[..., Chain]):
    shape = Llama(4096, 32, 8, 128, 14336, 128256, 32, "int3", "int6", "int6")
    found = chain(shape, "hc1", REGISTERS, *ONE_SCALE)
    assert [found.at(tokens).cycles for tokens in (1, 1536, 2048)] == [42_612, 43_380, 43_636]
    assert found.at(1).work == 32 * 1056 + 4008


def test_bitnet_on_tom(chain: Callable[..., Chain]):
    """Attention takes the arrays from the products: 12 cycles a layer with one token."""
    shape = Llama(2560, 20, 5, 128, 6912, 128256, 30, "ternary", "ternary", "int8", True, 1024)
    found = chain(shape, "tom", REGISTERS)
    layers = [found.at(tokens, head=False) for tokens in (1, 384, 1024)]
    assert [one.work for one in layers] == [30 * 3404, 30 * 3680, 30 * 4160]
    # The rest is the embedding's, and at the last position 49 of 439 cycles a layer.
    assert [one.cycles - round(one.work) for one in layers] == [128, 128, 128 + 30 * 49]


@pytest.mark.parametrize("latency", LATENCIES)
def test_longer_latencies_are_never_faster(chain: Callable[..., Chain], latency: str):
    shape = Llama(layers=2, hidden=512, heads=4, kv_heads=2, ffn=1024, vocabulary=2048)
    last = 0.0
    for cycles in (1, 2, 5, 9, 30, 200):
        found = chain(shape, "roma", f"latency.{latency}={cycles}").at(300)
        assert found.exact >= last
        last = found.exact
    assert last > chain(shape, "roma").at(300).exact


# --- beside programs ------------------------------------------------------------------------------


def compared(module: ModuleOp, given: Pipelines, tokens: list[int]) -> Chain:
    """The chain of a legalised module; its bound is none above the cycles of its program."""
    FabricPlace().apply(Context(), module)
    found = chain_of(module, given)
    ProgramSchedule().apply(Context(), module)
    program = program_of(program_content(module))
    positions = [one - 1 for one in tokens]
    cycles = token_cycles(program, positions).period
    bounds = [found.at(one).cycles for one in tokens]
    assert all(bound <= own for bound, own in zip(bounds, cycles, strict=True))
    assert bounds == sorted(bounds)
    return found


def test_never_above_a_program(
    decoders: st.SearchStrategy[Any],
    machines: st.SearchStrategy[Machine],
    integers: Callable[..., ModuleOp],
):
    @given(decoders, machines, st.sampled_from(["spread", "packed"]), st.booleans())
    @RELAXED
    def check(decoder: Any, machine: Machine, placement: str, shared: bool):
        machine = replace(machine, placement=placement, shared_arrays=int(shared))
        lanes = max(1, machine.vector_lanes // 2)
        tokens = sorted({1, decoder.capacity // 2 + 1, decoder.capacity})
        compared(integers(decoder, machine), Pipelines(4, lanes), tokens)

    check()


@pytest.mark.parametrize(
    ("name", "target", "settings"),
    [
        ("phi", "roma-mini", ()),
        ("qwen", "roma-mini", ("activations=int16", "kv=int16")),
        ("tied", "hc1-mini", ()),
        ("ternary", "tom-mini", ()),
        ("ternary_tied", "bitrom-mini", ()),
        ("ternary", "bitrom-mini", ("policy.placement=spread",)),
        ("phi", "roma-mini", ("policy.placement=packed",)),
    ],
)
def test_compiled_models(
    name: str, target: str, settings: tuple[str, ...], model: Callable[[str], Path], tmp_path: Path
):
    """Parallel residuals, norms of heads, own lanes, external caches, shared arrays, slots."""
    from intaglio.backend.compile import compile_model

    options = Options(target, settings, context=32, adapter_rank=4)
    out = compile_model(model(name), tmp_path / "out", options).folder
    found = read_chain(read_manifest(out)["latency_bound"])
    program = load_program(out)
    cycles = token_cycles(program, range(32)).period
    bounds = [found.at(position + 1).cycles for position in range(32)]
    assert all(0 < bound <= own for bound, own in zip(bounds, cycles, strict=True))
    assert bounds == sorted(bounds)
    assert found.own_lanes == (program.machine.placement == "packed")
    # Attention and the network beside it are bounded together, and each alone.
    assert {len(ways) for ways in found.segments} == ({1, 3} if name == "phi" else {1})
