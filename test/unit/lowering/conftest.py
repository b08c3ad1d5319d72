"""Generated decoder models as rom text, and the passes to take them further."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import strategies as st
from xdsl.context import Context
from xdsl.dialects.builtin import Builtin, ModuleOp
from xdsl.parser import Parser
from xdsl.rewriter import InsertPoint, Rewriter

from intaglio.backend.target.target import load_target
from intaglio.dialects.fabric import MachineOp
from intaglio.dialects.machine import Machine
from intaglio.dialects.program import InstructionOp
from intaglio.dialects.rom import ROM
from intaglio.lowering.step.adapter_slots import RomAdapterSlots
from intaglio.lowering.step.fuse_residual import RomFuseResidual
from intaglio.lowering.step.legalize import RomLegalize
from intaglio.lowering.step.outline_layers import RomOutlineLayers


@dataclass(frozen=True)
class Decoder:
    """The shape of a generated decoder."""

    layers: int = 2
    heads: int = 4
    kv_heads: int = 2
    width: int = 8
    hidden: int = 24
    capacity: int = 40
    window: int = 0
    vocabulary: int = 50
    code: str = "int4"
    group: int = 16
    bias: bool = False
    norm: str = "rms_norm"
    late_embedding: bool = False
    """Whether the head reads the embedding too, behind all layers."""
    outline: bool = True

    def text(self) -> str:
        """The module before legalisation."""
        size, kv, inner = self.heads * self.width, self.kv_heads * self.width, self.hidden + 5
        h, bias = self.hidden, " bias @{}" if self.bias else "{:.0}"
        lines: list[str] = []
        body: list[str] = []

        def dense(name: str, *dims: int) -> None:
            lines.append(
                f"rom.parameter @{name} : !rom.tensor<{list(dims)}, float32>"
                f' {{key = "{name}", peak = 1.0 : f64}}'
            )

        def linear(y: str, x: str, name: str, rows: int, columns: int) -> None:
            lines.append(
                f"rom.parameter @{name} : !rom.tensor<[{rows}, {columns}], {self.code},"
                f' group {self.group}> {{key = "{name}", zero = 1 : i64, peak = 0.1 : f64}}'
            )
            if self.bias:
                dense(f"{name}_bias", rows)
            added = bias.format(f"{name}_bias")
            body.append(
                f'{y} = rom.linear {x} by @{name}{added} {{onnx = [["{name}"]]}}'
                f" : tensor<{columns}xf32> -> tensor<{rows}xf32>"
            )

        def unary(y: str, op: str, attributes: str, n: int, m: int | None = None) -> None:
            types = f"tensor<{n}xf32> -> tensor<{n if m is None else m}xf32>"
            body.append(f'{y} = rom.{op} {{{attributes}onnx = [["{y[1:]}"]]}} : {types}')

        def binary(z: str, op: str, x: str, y: str, n: int) -> None:
            t = f"tensor<{n}xf32>"
            body.append(f'{z} = rom.{op} {x}, {y} {{onnx = [["{z[1:]}"]]}} : {t}, {t} -> {t}')

        dense("table", self.vocabulary, h)
        dense("cos", self.capacity, self.width // 2)
        dense("sin", self.capacity, self.width // 2)
        body.append(f'%x0 = rom.embed %token of @table {{onnx = [["e"]]}} : tensor<{h}xf32>')
        angles = "at %position by @cos, @sin"
        for i in range(self.layers):
            lines += [
                f"rom.cache @past_{i}_{cache} :"
                f" !rom.kv<{self.capacity}, {self.kv_heads}, {self.width}, float32>"
                for cache in ("k", "v")
            ]
            dense(f"layers_{i}_norm", h)
            unary(f"%n{i}", f"{self.norm} %x{i} by @layers_{i}_norm", "eps = 1.0e-05 : f64, ", h)
            linear(f"%qkv{i}", f"%n{i}", f"layers_{i}_qkv", size + 2 * kv, h)
            whole = size + 2 * kv
            unary(f"%q{i}", f"slice %qkv{i} from 0", "", whole, size)
            unary(f"%k{i}", f"slice %qkv{i} from {size}", "", whole, kv)
            unary(f"%v{i}", f"slice %qkv{i} from {size + kv}", "", whole, kv)
            for y, n, heads in (("q", size, self.heads), ("k", kv, self.kv_heads)):
                given = f"heads = {heads} : i64, rotary_dim = {self.width} : i64, "
                unary(f"%{y}r{i}", f"rotary %{y}{i} {angles}", given, n)
            for x, cache in (("kr", "k"), ("v", "v")):
                body.append(
                    f"rom.append %{x}{i} to @past_{i}_{cache} at %position"
                    f' {{onnx = [["{x}{i}"]]}} : tensor<{kv}xf32>'
                )
            window = f"window = {self.window} : i64, " if self.window else ""
            unary(
                f"%o{i}",
                f"attention %qr{i} over @past_{i}_k, @past_{i}_v at %position",
                f"heads = {self.heads} : i64, scale = 0.3 : f64, {window}",
                size,
            )
            linear(f"%p{i}", f"%o{i}", f"layers_{i}_o", h, size)
            binary(f"%m{i}", "add", f"%x{i}", f"%p{i}", h)
            linear(f"%g{i}", f"%m{i}", f"layers_{i}_gate", inner, h)
            linear(f"%u{i}", f"%m{i}", f"layers_{i}_up", inner, h)
            unary(f"%a{i}", f"activate %g{i}", 'kind = "silu", ', inner)
            binary(f"%b{i}", "mul", f"%a{i}", f"%u{i}", inner)
            linear(f"%d{i}", f"%b{i}", f"layers_{i}_down", h, inner)
            binary(f"%x{i + 1}", "add", f"%m{i}", f"%d{i}", h)
        last = f"%x{self.layers}"
        if self.late_embedding:
            binary("%both", "add", last, "%x0", h)
            last = "%both"
        linear("%logits", last, "head", self.vocabulary, h)
        n = f"tensor<{self.vocabulary}xf32>"
        body.append(f'%next = rom.sample %logits {{onnx = [["sample"]]}} : {n}')
        body.append(f"rom.emit %logits, %next : {n}")
        step = f"rom.step @decode context {self.capacity} {{\n^bb0(%token: i32, %position: index):"
        return "\n".join([*lines, step, *body, "}"])


Compile = Callable[..., ModuleOp]


def parse_rom(text: str) -> ModuleOp:
    """A module from text, verified."""
    context = Context()
    context.load_dialect(Builtin)
    context.load_dialect(ROM)
    module = Parser(context, text).parse_module()
    module.verify()
    return module


def integer_module(
    decoder: Decoder, machine: Machine, rank: int = 0, modules: tuple[str, ...] = ()
) -> ModuleOp:
    """A generated decoder, legalised for a machine, with adapter slots where a rank is given."""
    module = parse_rom(decoder.text())
    context = Context()
    if decoder.outline:
        RomOutlineLayers().apply(context, module)
    Rewriter.insert_op(MachineOp(machine), InsertPoint.at_start(module.body.block))
    if rank:
        RomAdapterSlots(rank, modules).apply(context, module)
    RomLegalize().apply(context, module)
    RomFuseResidual().apply(context, module)
    module.verify()
    return module


Work = tuple[tuple[int, list[int], list[int], list[int]], ...]
"""Of each pass: its number, for each number of tokens how long it has its queue, and how long after
that its elements and its reduction are there."""


def work_of(beats: Sequence[InstructionOp], capacity: int) -> Work:
    """What an instruction takes, however it is cut into beats."""
    tokens = np.arange(1, capacity + 1)
    found: dict[int, tuple[int, list[int], list[int], list[int]]] = {}
    for op in beats:
        issue = op.issue
        pace = issue.duration if issue.pace is None else issue.pace
        taken, finish, left = (
            np.broadcast_to(one(tokens=tokens, rank=0), tokens.shape)
            for one in (pace, issue.duration, issue.reduces or pace)
        )
        number = op.part.number
        before = found[number][1] if number in found else 0
        after = ((one - taken).tolist() for one in (finish, left))
        found[number] = (number, (before + taken).tolist(), *after)
    return tuple(found[number] for number in sorted(found))


@pytest.fixture(scope="session")
def work() -> Callable[[Sequence[InstructionOp], int], Work]:
    """What an instruction takes, however it is cut into beats."""
    return work_of


@pytest.fixture(scope="session")
def integers() -> Compile:
    """Legalises a generated decoder for a machine."""
    return integer_module


@pytest.fixture(scope="session")
def from_text() -> Callable[[str], ModuleOp]:
    """Parses and verifies rom text."""
    return parse_rom


@pytest.fixture(scope="session")
def decoder() -> Decoder:
    """A decoder of two layers; `dataclasses.replace` makes others."""
    return Decoder()


@pytest.fixture(scope="session")
def mini() -> Machine:
    """The machine of roma-mini, its vectors and heads with one scale each."""
    return load_target("roma-mini").with_options(["activations=int8", "kv=int8"]).machine()


@pytest.fixture(scope="session")
def decoders(decoder: Decoder) -> st.SearchStrategy[Decoder]:
    """Decoders of many shapes, ragged ones among them."""
    return st.builds(
        lambda kv, shared, **rest: replace(decoder, heads=kv * shared, kv_heads=kv, **rest),
        kv=st.integers(1, 3),
        shared=st.integers(1, 3),
        layers=st.integers(1, 3),
        width=st.sampled_from([4, 8, 10]),
        hidden=st.integers(3, 40),
        capacity=st.integers(1, 60),
        window=st.sampled_from([0, 0, 7]),
        vocabulary=st.integers(2, 80),
        code=st.sampled_from(["int2", "int4", "int8"]),
        group=st.integers(3, 40),
        bias=st.booleans(),
        norm=st.sampled_from(["rms_norm", "layer_norm"]),
        late_embedding=st.booleans(),
        outline=st.booleans(),
    )


@pytest.fixture(scope="session")
def machines(mini: Machine) -> st.SearchStrategy[Machine]:
    """Small machines, all with room enough."""
    return st.builds(
        lambda **given: replace(mini, **given),
        tiles=st.integers(1, 9),
        l_units=st.integers(1, 5),
        lanes=st.integers(1, 16),
        plane_bits=st.sampled_from([1, 2]),
        vector_lanes=st.integers(1, 20),
        results_per_cycle=st.integers(1, 20),
        activations=st.sampled_from(["int8", "int16", "fp8"]),
        kv=st.sampled_from(["int8", "int16", "fp8"]),
    )
