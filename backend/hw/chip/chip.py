"""The whole chip: sequencers, units, shared memories, token port and event port.

`build_chip` gives the IR of a program's chip, top module `chip`; `chip_images` what its ROMs hold.
What lies where is in `layout.py`, when what happens in `sequencer.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from intaglio.backend.hw.chip.layout import Layout, Words, layout_of, rom_words
from intaglio.backend.hw.chip.sequencer import (
    POWER,
    SEQUENCE_BITS,
    TOKEN_BITS,
    build_sequencer,
    build_token_port,
    count_bits,
)
from intaglio.backend.hw.units.adapter.sizes import SELECT
from intaglio.backend.hw.units.adapter.unit import adapter_unit
from intaglio.backend.hw.units.attention.kv import external_kv
from intaglio.backend.hw.units.attention.unit import attention_unit
from intaglio.backend.hw.units.matrix.array import build_matrix
from intaglio.backend.hw.units.matrix.rom_bank import LogicROM
from intaglio.backend.hw.units.power import build_power
from intaglio.backend.hw.units.vector.unit import build_vector
from intaglio.backend.hw.wires.memories import Bank, build_all, fit
from intaglio.backend.hw.wires.signal import Design, ModuleBuilder, Signal, Wire, cat
from intaglio.dialects.errors import CompilerBug
from intaglio.dialects.gating import wanted_only

if TYPE_CHECKING:
    from xdsl.dialects.builtin import ModuleOp

    from intaglio.backend.images.read import Images
    from intaglio.backend.program.program import Program

TOP = "chip"
"""Name of the top module."""
SATURATION_BITS = 32
"""Width of the saturation counter."""

_MANTISSA, _EXPONENT, _TOTAL = 24, 10, 40
_CODE, _FIXED = 16, 32


def build_chip(program: Program) -> ModuleOp:
    """The hardware of a program: hw, comb and seq operations, one module for each kind of part.

    ROM banks that are logic are external modules: their content is not part of the program.

    Raises:
        UserError: the program needs what the hardware does not have.
    """
    return chip_design(layout_of(program)).op()


def chip_images(program: Program, images: Images) -> Iterator[tuple[str, Words]]:
    """The contents of the chip's ROMs: path of the memory and its words, one memory at a time."""
    return rom_words(layout_of(program), images)


def chip_design(layout: Layout, logic: LogicROM | None = None) -> Design:
    """The modules of the chip; see `build_chip`.

    Args:
        layout: of the program.
        logic: what is in ROM banks that are logic; external modules without.
    """
    design = Design()
    _Chip(design, layout, logic).build()
    return design


def position_bits(layout: Layout) -> int:
    """Width of the position register: a power of two holds the context's positions."""
    return max(1, (layout.attention.capacity - 1).bit_length())


class _Chip:
    """The top module under construction.

    Ports besides clock and reset:

    - `token_valid`, `token`, `sample`, `restart`, out `token_ready`: see `build_token_port`.
    - out `next_valid`, `next_token`; `next_ready`.
    - out `busy`; out `saturations`: values that did not fit, since reset.
    - `vector_row`, out `vector_data`: a row of the vector memory, one cycle later; the logits are
      there when a wanted token has finished.
    - `load_valid`, `load_address`, `load_data`, out `load_ready`: where there are adapter slots,
      the load port (`adapter/layout.py`): it takes a word in every cycle in which no token is
      worked on.
    - out `power`: a bit for each power domain, where the program switches them.
    - out `event_<queue>_start`, `event_<queue>_finish`, `event_<queue>_number`: an instruction
      starts or finishes in this cycle, and which one of the token's; `event_any`: one of them.
    """

    def __init__(self, design: Design, layout: Layout, logic: LogicROM | None) -> None:
        self.design, self.layout, self.logic = design, layout, logic
        self.machine = layout.program.machine
        lanes = layout.lanes
        bits = count_bits(layout.queues)
        self.units = self._units()
        self.sequencers = {
            queue: build_sequencer(
                design, queue, layout.queues, layout.fields[queue], self.machine.issue
            )
            for queue in layout.queues
        }
        self.port = build_token_port(design, position_bits(layout))
        self.m = m = design.module(TOP, f"The chip {self.machine.name}, for {layout.program.name}.")
        self.token_inputs = {
            name: m.input(name, width)
            for name, width in (
                ("token_valid", 1),
                ("token", TOKEN_BITS),
                ("sample", 1),
                ("restart", 1),
                ("next_ready", 1),
            )
        }
        fixed, codes = {"data": _FIXED * lanes}, {"data": _CODE * lanes}
        scale = {"mantissa": _MANTISSA, "exponent": _EXPONENT}
        self.vectors = Bank(m, "vectors", layout.vector_rows, fixed, lanes)
        self.codes = Bank(m, "codes", layout.code_rows, codes)
        self.code_scales = Bank(m, "code_scales", layout.code_rows, scale)
        self.scores = Bank(m, "scores", layout.score_rows, fixed, lanes)
        self.probabilities = Bank(m, "probabilities", layout.probability_rows, codes)
        self.heads = Bank(m, "heads", layout.head_entries, {**scale, "total": _TOTAL})
        self.constants = Bank(m, "constants", layout.constant_rows, fixed)
        self.counts: dict[str, Wire] = {q: m.wire(f"finished_{q}", bits) for q in layout.queues}
        self.dones: dict[str, Wire] = {q: m.wire(f"done_{q}", 1) for q in layout.queues}
        self.idle = m.wire("idle", 1)
        self.result_valid = m.wire("result_valid", 1)
        self.result = m.wire("result", TOKEN_BITS)

    def _units(self) -> dict[str, ModuleBuilder]:
        design, layout = self.design, self.layout
        units = {
            "matrix": build_matrix(design, layout.matrix, logic=self.logic),
            "attention": attention_unit(design, layout.attention),
            "vector": build_vector(design, self.machine, layout.vector),
        }
        if layout.adapters is not None:
            units["adapter"] = adapter_unit(design, layout.adapters)
        if POWER in layout.queues:
            program = layout.program
            late = wanted_only(program.power_roles, [block.sampled for block in program.blocks])
            units[POWER] = build_power(design, self.machine, tuple(program.domains), late)
        return units

    def build(self) -> None:
        """Connects everything."""
        m = self.m
        self.token = m.instance(
            "token_port",
            self.port,
            {
                **self.token_inputs,
                "idle": self.idle,
                "result_valid": self.result_valid,
                "result": self.result,
            },
        )
        for name in ("token_ready", "next_valid", "next_token", "busy"):
            m.output(name, self.token[name])
        self.position = self.token["position"]
        self._sequence()
        self._power()
        counts = [self._matrix(), self._attention(), self._adapter(), self._vector()]

        number, data = self.vectors.read()
        self.vectors.address(number, m.input("vector_row", self.vectors.address_bits))
        m.output("vector_data", data["data"])
        build_all(
            [
                self.vectors,
                self.codes,
                self.code_scales,
                self.scores,
                self.probabilities,
                self.heads,
                self.constants,
            ]
        )
        saturations = m.register("saturation_count", SATURATION_BITS)
        total: Signal = saturations
        for count in counts:
            total = total + count
        saturations.drive(total.truncate(SATURATION_BITS))
        m.output("saturations", saturations)

    def _sequence(self) -> None:
        """The sequencers and the event port."""
        m = self.m
        every: Signal = m.constant(1)
        any_event: Signal = m.constant(0)
        shared = {name: self.token[name] for name in ("accept", "sampled", "running")}
        self.queues: dict[str, dict[str, Signal]] = {}
        for queue, module in self.sequencers.items():
            others = {f"finished_{q}": count for q, count in self.counts.items() if q != queue}
            out = m.instance(
                f"sequencer_{queue}", module, {**shared, **others, "done": self.dones[queue]}
            )
            self.queues[queue] = out
            self.counts[queue].assign(out["finished"])
            every = every & out["idle"]
            any_event = any_event | out["start"] | out["finish"]
            m.output(f"event_{queue}_start", out["start"])
            m.output(f"event_{queue}_finish", out["finish"])
            m.output(f"event_{queue}_number", out["number"], SEQUENCE_BITS)
        self.idle.assign(every)
        m.output("event_any", any_event)

    # Connections

    def _fields(self, unit: ModuleBuilder, queue: str, prefix: str = "") -> dict[str, Signal]:
        """Start and descriptor fields, as the unit's ports want them."""
        ports = {port.name: port for port in unit.ports}
        given = self.queues[queue]
        inputs: dict[str, Signal] = {f"{prefix}start": given["start"]}
        for name, _ in self.layout.fields[queue]:
            port = ports.get(f"{prefix}{name}")
            if port is None and queue == "attention":
                # The queue of two units: each has its own fields.
                continue
            if port is None:
                raise CompilerBug(f"{unit.name} has no port for the field {name}")
            inputs[port.name] = given[f"field_{name}"].truncate(port.width, port.signed)
        return inputs

    def _reads(
        self, unit: ModuleBuilder, banks: dict[str, Bank]
    ) -> tuple[dict[str, Signal], list[tuple[str, Bank, int]]]:
        """The data inputs of a unit's read ports, and which addresses these ports need.

        A port ``<name><i>_row`` or ``<name><i>_address`` reads the bank ``banks[name]``, a port
        ``<name>_group`` the bank ``banks["<name>_group"]``; data go to ``<name><i>_<part>``.
        """
        ports = {port.name: port for port in unit.ports}
        lanes = self.layout.lanes
        inputs: dict[str, Signal] = {}
        pending: list[tuple[str, Bank, int]] = []
        for port in unit.ports:
            base, _, end = port.name.rpartition("_")
            if not port.output or end not in ("row", "address", "group"):
                continue
            kind = base.rstrip("0123456789")
            bank = banks.get(port.name if end == "group" else kind)
            if bank is None:
                continue
            number, parts = bank.read()
            for part, signal in parts.items():
                wanted = ports.get(f"{base}_{part}")
                if wanted is None:
                    continue
                if wanted.width < signal.width:
                    # Of each lane the low bits.
                    size, low = signal.width // lanes, wanted.width // lanes
                    narrow = [signal[size * i : size * i + low] for i in range(lanes)]
                    signal = cat(*reversed(narrow))
                inputs[wanted.name] = signal.truncate(wanted.width, wanted.signed)
            pending.append((port.name, bank, number))
        return inputs, pending

    def _instance(
        self,
        name: str,
        unit: ModuleBuilder,
        inputs: dict[str, Signal],
        banks: dict[str, Bank],
    ) -> dict[str, Signal]:
        data, pending = self._reads(unit, banks)
        out = self.m.instance(name, unit, {**inputs, **data})
        for port, bank, number in pending:
            bank.address(number, out[port])
        return out

    def _power(self) -> None:
        """The power controller, where the program switches domains."""
        if POWER not in self.units:
            return
        unit = self.units[POWER]
        inputs = self._fields(unit, POWER)
        if any(port.name == "wanted" for port in unit.ports):
            wanted = self.m.register("wanted_q", 1)
            wanted.drive(self.token["sampled"], self.token["accept"])
            inputs["wanted"] = wanted
        out = self.m.instance("power_controller", unit, inputs)
        self.dones[POWER].assign(out["done"])
        self.power = out["power"]
        self.m.output("power", self.power)

    def _matrix(self) -> Signal:
        """The matrix array; its saturations."""
        unit = self.units["matrix"]
        inputs = self._fields(unit, "matrix")
        for port in unit.ports:
            if port.name == "power":
                inputs["power"] = self.power
            if port.name == "token":
                inputs["token"] = fit(self.token["held_token"], port.width)
        banks = {
            "input": self.codes,
            "scale": self.code_scales,
            "bias": self.constants,
            "residual": self.vectors,
        }
        out = self._instance("matrix", unit, inputs, banks)
        address = out["write_address"]
        self.vectors.write(
            address, {"data": out["write_data"]}, out["write_enable"], out["write_mask"]
        )
        self.dones["matrix"].assign(out["done"])
        return out["saturations"]

    def _attention(self) -> Signal:
        """Attention unit and KV port; their saturations."""
        unit = self.units["attention"]
        inputs = self._fields(unit, "attention", "attention_") | self._fields(unit, "kv", "append_")
        if "adapter" in self.units:
            start = inputs["attention_start"]
            inputs["attention_start"] = start & ~self.queues["attention"][f"field_{SELECT}"]
        ports = {port.name: port for port in unit.ports}
        inputs["position"] = fit(self.position, ports["position"].width)
        self.value_scale = self.m.wire("value_scale", ports["value_scale_row"].width)
        inputs["value_scale_row"] = self.value_scale
        banks = {
            "query": self.codes,
            "append": self.codes,
            "query_group": self.code_scales,
            "append_group": self.code_scales,
            "probability": self.probabilities,
            "head": self.heads,
        }
        external = self.m.wire("external_data", 8 * max(1, self.machine.external_bytes))
        if "external_read_data" in ports:
            inputs["external_read_data"] = external
        out = self._instance("attention", unit, inputs, banks)
        self._external(out, external)
        for bank, name in ((self.scores, "score"), (self.vectors, "result")):
            bank.write(
                out[f"{name}_row"],
                {"data": out[f"{name}_data"]},
                out[f"{name}_enable"],
                out[f"{name}_lanes"],
            )
        self.attention_done = out["attention_done"]
        self.dones["kv"].assign(out["append_done"])
        self.value_scale_data = out["value_scale_data"]
        return out["saturations"]

    def _adapter(self) -> Signal:
        """The adapter unit, where there are adapters, and the load port; its saturations."""
        m, done = self.m, self.attention_done
        if "adapter" not in self.units:
            self.dones["attention"].assign(done)
            return m.constant(0)
        unit = self.units["adapter"]
        inputs = self._fields(unit, "attention")
        inputs["start"] = inputs["start"] & self.queues["attention"][f"field_{SELECT}"]
        ports = {port.name: port for port in unit.ports}
        if "load_enable" in ports:
            ready = (~self.token["busy"]).named("free_to_load")
            m.output("load_ready", ready)
            inputs["load_enable"] = m.input("load_valid", 1) & ready
            for name in ("load_address", "load_data"):
                inputs[name] = m.input(name, ports[name].width)
        banks = {
            "input": self.codes,
            "input_group": self.code_scales,
            "residual": self.vectors,
        }
        out = self._instance("adapter", unit, inputs, banks)
        self.vectors.write(
            out["result_row"],
            {"data": out["result_data"]},
            out["result_enable"],
            out["result_lanes"],
        )
        self.dones["attention"].assign(done | out["done"])
        return out["saturations"]

    def _external(self, out: dict[str, Signal], data: Wire) -> None:
        """External memory, where keys and values are there."""
        depth = self.layout.attention.kv.external_depth
        if not depth:
            data.assign(0)
            return
        module = external_kv(self.design, self.machine, depth)
        inputs = {
            port.name: out[f"external_{port.name}"]
            for port in module.ports
            if port.name.startswith(("read_", "write_")) and not port.output
        }
        data.assign(self.m.instance("external_kv", module, inputs)["read_data"])

    def _vector(self) -> Signal:
        """The vector unit; its saturations."""
        unit = self.units["vector"]
        inputs = self._fields(unit, "vector")
        ports = {port.name: port for port in unit.ports}
        inputs["position"] = self.position
        if "value_scale_data" in ports:
            inputs["value_scale_data"] = self.value_scale_data
        banks = {"vector": self.vectors, "constant": self.constants, "score": self.scores}
        out = self._instance("vector", unit, inputs, banks)
        address = out.get("value_scale_address", self.m.constant(0))
        self.value_scale.assign(fit(address, self.value_scale.width))
        for bank, name in (
            (self.vectors, "vector_write"),
            (self.codes, "code_write"),
            (self.scores, "score_write"),
            (self.probabilities, "probability_write"),
        ):
            if f"{name}_enable" in out:
                bank.write(
                    out[f"{name}_address"],
                    {"data": out[f"{name}_data"]},
                    out[f"{name}_enable"],
                    out.get(f"{name}_mask"),
                )
        for bank, enable in (
            (self.code_scales, "scale_enable"),
            (self.heads, "probability_scale_enable"),
        ):
            if enable in out:
                values = {
                    "mantissa": out["scale_mantissa"],
                    "exponent": out["scale_exponent"],
                    "total": out.get("scale_total", 0),
                }
                bank.write(out["scale_address"], values, out[enable])
        self.dones["vector"].assign(out["done"])
        if "token" not in out:
            raise CompilerBug("the program samples no token")
        self.result_valid.assign(out["token_valid"])
        self.result.assign(fit(out["token"], TOKEN_BITS))
        return out["saturated"]
