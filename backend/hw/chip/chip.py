"""The whole chip: sequencers, units, shared memories, token port and event port.

`build_chip` gives the IR of a program's chip, top module `chip`; `chip_images` what its ROMs hold.
What lies where is in `layout.py`, when what happens in `sequencer.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from intaglio.backend.hw.chip.contents import Words, rom_words
from intaglio.backend.hw.chip.in_flight import Interleaver
from intaglio.backend.hw.chip.layout import Layout, layout_of
from intaglio.backend.hw.chip.sequencer import SEQUENCE_BITS, build_sequencer, count_bits, counters
from intaglio.backend.hw.chip.token_port import TOKEN_BITS, build_ports_of_tokens, build_token_port
from intaglio.backend.hw.units.attention.kv import external_kv
from intaglio.backend.hw.units.matrix.rom_bank import LogicROM
from intaglio.backend.hw.units.memories import SHARED, VECTORS, Memory
from intaglio.backend.hw.units.ports import (
    NEXT_TOKEN,
    NEXT_TOKEN_CONTEXT,
    NEXT_TOKEN_VALID,
    POWER_BITS,
    TOKEN,
    WANTED,
    Command,
    Give,
    Load,
    Read,
    Saturations,
    Serve,
    Take,
    Write,
    context_of,
    position_of,
)
from intaglio.backend.hw.units.unit import Unit
from intaglio.backend.hw.wires.memories import Bank, build_all
from intaglio.backend.hw.wires.signal import (
    RESET,
    Design,
    ModuleBuilder,
    Port,
    Signal,
    Wire,
    cat,
    choose,
    tree,
)
from intaglio.backend.hw.wires.widths import fit, index_bits
from intaglio.dialects.errors import CompilerBug
from intaglio.dialects.isa.queues import MATRIX, PEAKS, reductions_of
from intaglio.lowering.schedule import durations

if TYPE_CHECKING:
    from xdsl.dialects.builtin import ModuleOp

    from intaglio.backend.images.read import Images
    from intaglio.backend.program.program import Program

TOP = "chip"
"""Name of the top module."""
SATURATION_BITS = 32
"""Width of the saturation counter."""


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
    return max(1, (layout.program.counted - 1).bit_length())


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
    - out `event_<queue>_start`, `event_<queue>_started`: an instruction starts in this cycle, and
      which one of the token's; `event_<queue>_finish`, `event_<queue>_ended`: its result can be
      read from this cycle on; `event_reductions_finish`, `event_reductions_ended`: its reduction
      can, likewise `event_<queue>_peaks_finish`; `event_any`: one of them, or a token.
    """

    def __init__(self, design: Design, layout: Layout, logic: LogicROM | None) -> None:
        self.design, self.layout = design, layout
        self.machine = layout.program.machine
        bits = count_bits(layout.queues)
        self.modules = [(unit, unit.module(design, logic)) for unit in layout.units]
        self.contexts = len(layout.contexts)
        self.sequencers = {queue: self._sequencer(queue) for queue in layout.queues}
        self.port = (
            build_token_port(design, position_bits(layout))
            if self.contexts == 1
            else build_ports_of_tokens(design, position_bits(layout), self.contexts)
        )
        self.m = m = design.module(TOP, f"The chip {self.machine.name}, for {layout.program.name}.")
        self.token_inputs = {
            name: m.input(name, width)
            for name, width in (
                ("token_valid", 1),
                ("token", TOKEN_BITS),
                ("sample", 1),
                ("restart", 1),
                ("next_ready", 1),
                *(
                    (
                        ("in_flight", self.contexts.bit_length()),
                        ("restart_position", position_bits(layout)),
                    )
                    if self.contexts > 1
                    else ()
                ),
            )
        }
        self.banks = {
            memory.name: Bank(
                m,
                memory.name,
                layout.rows[memory.name],
                memory.word(layout.program.memories[memory.name].lanes),
                layout.lanes if memory.masked else 0,
            )
            for memory in SHARED
            if memory.name in layout.rows
        }
        self.counts: dict[str, Wire] = {
            name: m.wire(name, bits)
            for name in (
                self._count(c, one) for c in range(self.contexts) for one in counters(layout.queues)
            )
        }
        self.told: dict[tuple[str, str], list[Signal]] = {}
        """What units tell a sequencer, by queue and port."""
        self.heard: dict[tuple[str, str], Wire] = {}
        self.idles = [m.wire(f"idle{self._of(c)}", 1) for c in range(self.contexts)]
        self.result_valid = m.wire("result_valid", 1)
        self.result = m.wire("result", TOKEN_BITS)
        if self.contexts > 1:
            self.result_context = m.wire("result_context", index_bits(self.contexts))
        self.saturations: list[Signal] = []
        self.given: dict[str, Signal] = {}
        """What ports take by name."""
        self.awaited: dict[str, Wire] = {}
        """Of these what units give, until they do."""

    def build(self) -> None:
        """Connects everything."""
        m = self.m
        self.token = m.instance(
            "token_port",
            self.port,
            {
                **self.token_inputs,
                **{f"idle{self._of(c)}": one for c, one in enumerate(self.idles)},
                "result_valid": self.result_valid,
                "result": self.result,
                **({"result_context": self.result_context} if self.contexts > 1 else {}),
            },
        )
        told = ("next_context", "accepted") if self.contexts > 1 else ()
        for name in ("token_ready", "next_valid", "next_token", "busy", *told):
            m.output(name, self.token[name])
        self._sequence()
        self._announce()
        for unit, module in self.modules:
            self._join(unit, module)
        self._external()
        for (queue, port), wire in self.heard.items():
            # Of units that share a queue all must be ready; one has done something.
            every = port == "ready"
            signals = self.told[queue, port]
            wire.assign(tree(signals, lambda a, b, every=every: a & b if every else a | b))
        self._result()

        vectors = self.banks[VECTORS.name]
        number, data = vectors.read()
        vectors.address(number, m.input("vector_row", vectors.address_bits))
        m.output("vector_data", data["data"])
        build_all(list(self.banks.values()))
        saturations = m.register("saturation_count", SATURATION_BITS)
        total: Signal = saturations
        for count in self.saturations:
            total = total + count
        saturations.drive(total.truncate(SATURATION_BITS))
        m.output("saturations", saturations)

    def _peak(self, queue: str) -> int:
        """Cycles from a queue's results to their largest magnitudes."""
        quantized = self.layout.program.peaks.get(queue, False)
        return durations.peak(self.machine, quantized=quantized)

    def _sequence(self) -> None:
        """The sequencers and the event port."""
        m, contexts = self.m, range(self.contexts)
        every: list[Signal] = [m.constant(1) for _ in contexts]
        any_event: Signal = m.constant(0)
        shared: dict[str, Signal] = {
            name: self.token[name]
            for name in ("accept", "sampled", "running", "turn")
            if name in self.token
        }
        shared |= {
            f"{name}{c}": self.token[f"{name}{c}"]
            for name in ("accept", "live")
            for c in contexts
            if self.contexts > 1
        }
        self.queues: dict[str, dict[str, Signal]] = {}
        for queue, module in self.sequencers.items():
            ports = {port.name for port in module.ports if not port.output}
            given = {**shared, **self.counts}
            inputs = {name: one for name, one in given.items() if name in ports}
            for name in ("ready", "done", "reduced"):
                if name in ports:
                    inputs[name] = self.heard[queue, name] = m.wire(f"{name}_{queue}", 1)
            out = m.instance(f"sequencer_{queue}", module, inputs)
            self.queues[queue] = out
            for c in contexts:
                self.counts[self._count(c, queue)].assign(out[f"finished{self._of(c)}"])
                every[c] = every[c] & out[f"idle{self._of(c)}"]
            any_event = any_event | out["start"] | out["finish"]
            self._tell(queue, out, ("start", "started"), ("finish", "ended"))
            if "reduction" in out:
                leaves = reductions_of(queue)
                for c in contexts:
                    self.counts[self._count(c, leaves)].assign(out[f"reductions{self._of(c)}"])
                any_event = any_event | out["reduction"]
                m.output(f"event_{leaves}_finish", out["reduction"])
                m.output(f"event_{leaves}_ended", out["left"], SEQUENCE_BITS)
                if self.contexts > 1:
                    m.output(f"event_{leaves}_ended_context", out["left_context"])
        for idle, one in zip(self.idles, every, strict=True):
            idle.assign(one)
        if self.contexts > 1:
            any_event = any_event | self.token["accepted"]
        m.output("event_any", any_event | self.token["next_valid"])

    def _sequencer(self, queue: str) -> ModuleBuilder:
        design, layout, issue = self.design, self.layout, self.machine.issue
        given = design, queue, layout.queues, layout.fields[queue], issue
        if self.contexts == 1:
            return build_sequencer(*given)
        return Interleaver(*given, self.contexts, layout.orders[queue]).build()

    def _of(self, context: int) -> str:
        """What the names of a context's signals end with."""
        return "" if self.contexts == 1 else str(context)

    def _count(self, context: int, counter: str) -> str:
        """The name of a context's count."""
        return f"finished{self._of(context)}_{counter}"

    def _tell(self, queue: str, out: Mapping[str, Signal], *told: tuple[str, str]) -> None:
        """Starts and finishes at the event port, with contexts whose they are."""
        m = self.m
        for event, number in told:
            m.output(f"event_{queue}_{event}", out[event])
            m.output(f"event_{queue}_{number}", out[number], SEQUENCE_BITS)
            if self.contexts > 1:
                whose = out["whose" if event == "start" else f"{number}_context"]
                m.output(f"event_{queue}_{number}_context", whose)

    # Bundles

    def _announce(self) -> None:
        """What ports take by name, from the chip and from units."""
        for queue, out in self.queues.items():
            self.given[position_of(queue)] = self._at_hand("position", queue)
            if self.contexts > 1:
                self.given[context_of(queue)] = out["whose"]
        self.given[TOKEN] = self._at_hand("held_token", MATRIX)
        bundles = [bundle for unit in self.layout.units for bundle in unit.ports]
        if any(isinstance(one, Take) and one.name == WANTED for one in bundles):
            wanted = self.m.register("wanted_q", 1)
            wanted.drive(self.token["sampled"], self.token["accept"])
            self.given[WANTED] = wanted
        for unit, module in self.modules:
            widths = {port.name: port.width for port in module.ports}
            for one in unit.ports:
                if isinstance(one, Give):
                    self._await(one.name, widths[one.port])
                if isinstance(one, Serve):
                    # Given apart: whoever reads it gives the address.
                    self._await(f"{one.memory.name}_address", widths[one.address])
                    self._await(f"{one.memory.name}_data", widths[one.data])
        self._external_module = self._external_port()

    def _at_hand(self, name: str, queue: str) -> Signal:
        """What the token port says of the token whose instruction a queue starts or started."""
        if self.contexts == 1:
            return self.token[name]
        each = [self.token[f"{name}{c}"] for c in range(self.contexts)]
        return choose(self.queues[queue]["whose"], each)

    def _await(self, name: str, width: int) -> None:
        self.given[name] = self.awaited[name] = self.m.wire(name, width)

    def _give(self, name: str, signal: Signal) -> None:
        wire = self.awaited.pop(name)
        wire.assign(fit(signal, wire.width))

    def _join(self, unit: Unit, module: ModuleBuilder) -> None:
        """An instance of a unit, each bundle of its ports joined to what it says."""
        ports = {port.name: port for port in module.ports}
        inputs: dict[str, Signal] = {}
        reads: list[tuple[Read, Bank, int]] = []
        for one in unit.ports:
            match one:
                case Command():
                    inputs |= self._command(unit, one, ports)
                case Take():
                    inputs[one.port] = fit(self._taken(unit, one.name), ports[one.port].width)
                case Serve():
                    inputs[one.address] = self.given[f"{one.memory.name}_address"]
                case Load():
                    inputs |= self._load(one, ports)
                case Read() if one.memory.name in self.banks:
                    bank = self.banks[one.memory.name]
                    number, parts = bank.read()
                    for part, port in one.data.items():
                        inputs[port] = self._narrowed(one.memory, parts[part], ports[port])
                    reads.append((one, bank, number))
                case Read():
                    name = f"{one.memory.name}_data"
                    inputs[one.data["data"]] = self._taken(unit, name)
                case _:
                    pass
        out = self.m.instance(unit.name, module, inputs)
        for read, bank, number in reads:
            bank.address(number, out[read.address])
        for one in unit.ports:
            match one:
                case Command():
                    told = {"done": out[one.done]}
                    told |= {"ready": out[one.ready]} if one.flows else {}
                    if one.reduces:
                        told["reduced"] = out[one.reduced]
                    elif one.queue in PEAKS:
                        # Peaks follow results in a time of their own.
                        told["reduced"] = told["done"].delay(self._peak(one.queue), reset=0)
                    for name, signal in told.items():
                        self.told.setdefault((one.queue, name), []).append(signal)
                case Give():
                    self._give(one.name, out[one.port])
                case Serve():
                    self._give(f"{one.memory.name}_data", out[one.data])
                case Read() if one.memory.name not in self.banks:
                    self._give(f"{one.memory.name}_address", out[one.address])
                case Write():
                    self.banks[one.memory.name].write(
                        out[one.address],
                        {part: out[port] for part, port in one.data.items()},
                        out[one.enable],
                        None if one.mask is None else out[one.mask],
                    )
                case Saturations():
                    self.saturations.append(out[one.port])
                case _:
                    pass

    def _taken(self, unit: Unit, name: str) -> Signal:
        if name not in self.given:
            raise CompilerBug(f"nothing gives {name}, which {unit.name} takes")
        return self.given[name]

    def _command(
        self, unit: Unit, command: Command, ports: Mapping[str, Port]
    ) -> dict[str, Signal]:
        """Start and descriptor fields. Of units that share a queue one gets the start."""
        given = self.queues[command.queue]
        start = given["start"]
        sharing = [
            other.name
            for other in self.layout.units
            if any(one.queue == command.queue for one in other.commands)
        ]
        for name in sharing[1:]:
            if unit.name == sharing[0]:
                start = start & ~given[f"field_{name}"]
            elif unit.name == name:
                start = start & given[f"field_{name}"]
        inputs = {command.start: start}
        for name in command.fields:
            port = ports[command.port(name)]
            inputs[port.name] = given[f"field_{name}"].truncate(port.width, port.signed)
        return inputs

    def _narrowed(self, memory: Memory, data: Signal, port: Port) -> Signal:
        """What a memory gives on the wires of a port, which may want less of each lane."""
        lanes = self.layout.lanes
        if memory.element and port.width < data.width:
            low = port.width // lanes
            size = memory.element
            narrow = [data[size * i : size * i + low] for i in range(lanes)]
            data = cat(*reversed(narrow))
        return data.truncate(port.width, port.signed)

    def _load(self, load: Load, ports: Mapping[str, Port]) -> dict[str, Signal]:
        """The chip's load port."""
        m = self.m
        ready = (~self.token["busy"]).named("free_to_load")
        m.output("load_ready", ready)
        return {
            load.enable: m.input("load_valid", 1) & ready,
            load.address: m.input("load_address", ports[load.address].width),
            load.data: m.input("load_data", ports[load.data].width),
        }

    # What is not a unit

    def _external_port(self) -> ModuleBuilder | None:
        """The module of external memory, where keys and values are there."""
        attention = self.layout.attention
        if attention is None or not attention.kv.external_depth:
            return None
        module = external_kv(self.design, self.machine, attention.kv.external_depth)
        for port in module.ports:
            if port.output:
                self._await(f"external_{port.name}", port.width)
        return module

    def _external(self) -> None:
        module = self._external_module
        if module is None:
            return
        inputs = {
            port.name: self.given[f"external_{port.name}"]
            for port in module.ports
            if not (port.output or port.clock or port.name == RESET)
        }
        for name, signal in self.m.instance("external_kv", module, inputs).items():
            self._give(f"external_{name}", signal)

    def _result(self) -> None:
        """What units give to the chip itself."""
        if NEXT_TOKEN not in self.given:
            raise CompilerBug("the program samples no token")
        self.result_valid.assign(self.given[NEXT_TOKEN_VALID])
        self.result.assign(fit(self.given[NEXT_TOKEN], TOKEN_BITS))
        if self.contexts > 1:
            self.result_context.assign(self.given[NEXT_TOKEN_CONTEXT])
        if POWER_BITS in self.given:
            self.m.output("power", self.given[POWER_BITS])
