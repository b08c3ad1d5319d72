"""Proofs with Z3 that a fault of hardware text changes nothing, module by module.

A module's registers and inputs are free, the same in both, but for bits that never change: fields
of descriptors that are alike in the chip's whole program, and what follows from them, through
registers and down into the modules inside (`known_bits`). Proved is that outputs, inputs of modules
inside and the next values of registers are then the same. What registers without a reset hold
before anything was written into them counts as nothing.

Three things more are found and used where they are proved, step by step from one cycle to the next:
registers and inputs whose signed numbers need fewer bits than they have; registers that may differ
while another register, of one bit, says that they do not count; outputs, addresses and data that
nobody reads unless `start` or an enable beside them is on.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import z3

from intaglio.backend.hw.chip.chip import TOP
from intaglio.backend.hw.chip.contents import descriptor_wires
from intaglio.backend.hw.chip.layout import layout_of
from intaglio.backend.images.read import Images
from intaglio.backend.program.program import Program

_MODULE = re.compile(
    r"^  hw\.module @(\w+)\((.*?)\)(?: attributes .*?)? \{\n(.*?)^  \}$", re.M | re.S
)
_PORT = re.compile(r"(in|out) %?([\w.]+): (?:!seq\.clock|i(\d+))")
_REGISTER = re.compile(r"^(%[\w.]+), %clk(?: reset (%[\w.]+), (%[\w.]+))?$")
_INSTANCE = re.compile(r'^"\w+" @(\w+)\((.*)\) -> \((.*)\)$')
_ATTRIBUTES = re.compile(r" \{sv\.namehint = .*?\}")
_FIELD, _START = "field_", "start"

EMPTY: Mapping[str, int] = {}
Bits = tuple[int, int]
"""Which bits can be 0, and which can be 1."""


@dataclass
class Instance:
    """A module inside: what goes into its ports, and which value each output is."""

    module: str
    inputs: dict[str, str]
    outputs: dict[str, str]


@dataclass
class Module:
    """A module of hardware text: values by name."""

    name: str
    inputs: dict[str, int] = field(default_factory=dict)
    outputs: list[str] = field(default_factory=list)
    returned: list[str] = field(default_factory=list)
    width: dict[str, int] = field(default_factory=dict)
    operations: dict[str, tuple[str, list[str], int]] = field(default_factory=dict)
    registers: dict[str, tuple[str, str | None, str | None]] = field(default_factory=dict)
    instances: list[Instance] = field(default_factory=list)

    @cached_property
    def places(self) -> dict[str, str]:
        """Outputs: the value of each."""
        return dict(zip(self.outputs, self.returned, strict=True))

    def uses(self, value: str) -> int:
        """How often a value is read."""
        found = sum(args.count(value) for _, args, _ in self.operations.values())
        found += sum(one.count(value) for one in self.registers.values())
        found += sum(list(one.inputs.values()).count(value) for one in self.instances)
        return found + self.returned.count(value)


def modules_of(text: str) -> dict[str, Module]:
    """The modules of hardware text; memories and tables are only names in the others."""
    return {
        match[1]: _parsed(match[1], match[2], match[3])
        for match in _MODULE.finditer(text)
        if not re.match(r"(rom|sram|table)_", match[1])
    }


def _parsed(name: str, ports: str, body: str) -> Module:
    module = Module(name)
    for way, port, width in _PORT.findall(ports):
        if not width:
            continue
        if way == "in":
            module.inputs[f"%{port}"] = module.width[f"%{port}"] = int(width)
        else:
            module.outputs.append(port)
    for line in body.splitlines():
        line = _ATTRIBUTES.sub("", line.strip())
        if line.startswith("hw.output"):
            module.returned = line.removeprefix("hw.output").partition(" : ")[0].strip().split(", ")
            continue
        result, _, said = line.partition(" = ")
        if not said:
            result, said = "", line
        kind, _, rest = said.partition(" ")
        if kind == "hw.instance":
            _instance(module, result, rest)
            continue
        body_, _, types = rest.rpartition(" : ")
        if kind == "hw.constant":
            body_, _, types = rest.partition(" : ")
            types = types or "i1"
            number = {"true": 1, "false": 0}.get(body_)
            value = int(body_) if number is None else number
            _add(module, result, "constant", [], value, int(types[1:]))
        elif kind == "seq.compreg":
            match = _REGISTER.match(body_)
            assert match is not None, line
            module.registers[result] = match[1], match[2], match[3]
            module.width[result] = int(types[1:])
        elif kind == "comb.extract":
            value, _, low = body_.strip().partition(" from ")
            _add(module, result, "extract", [value], int(low.strip(" :")), _last(types))
        elif kind == "comb.icmp":
            how, _, operands = body_.partition(" ")
            _add(module, result, how, operands.split(", "), 0, 1)
        else:
            args = body_.strip(" :").split(", ")
            widths = [int(one) for one in re.findall(r"i(\d+)", types)]
            width = sum(widths) if kind == "comb.concat" else widths[-1]
            _add(module, result, kind.partition(".")[2], args, 0, width)
    return module


def _last(types: str) -> int:
    return int(re.findall(r"i(\d+)", types)[-1])


def _add(module: Module, result: str, kind: str, args: list[str], value: int, width: int) -> None:
    module.operations[result] = kind, args, value
    module.width[result] = width


def _instance(module: Module, results: str, rest: str) -> None:
    match = _INSTANCE.match(rest)
    assert match is not None, rest
    inputs = {
        port: value
        for port, value, width in re.findall(r"(\w+): (%[\w.]+): (?:!seq\.clock|i(\d+))", match[2])
        if width
    }
    outputs: dict[str, str] = {}
    given = re.findall(r"(\w+): i(\d+)", match[3])
    for value, (port, width) in zip(filter(None, results.split(", ")), given, strict=True):
        outputs[port] = value
        module.width[value] = int(width)
    module.instances.append(Instance(match[1], inputs, outputs))


# Bits that never change


def _everything(width: int) -> Bits:
    return (1 << width) - 1, (1 << width) - 1


def _exactly(value: int, width: int) -> Bits:
    mask = (1 << width) - 1
    return ~value & mask, value & mask


def _signed(value: int, width: int) -> int:
    return value - (1 << width) if value >> (width - 1) else value


def _computed(kind: str, a: int, b: int, wide: int) -> int:
    """An operator of two numbers of `wide` bits."""
    sa, sb, mask = _signed(a, wide), _signed(b, wide), (1 << wide) - 1
    compared = {
        "eq": a == b, "ne": a != b, "ult": a < b, "ule": a <= b, "ugt": a > b, "uge": a >= b,
        "slt": sa < sb, "sle": sa <= sb, "sgt": sa > sb, "sge": sa >= sb,
    }  # fmt: skip
    if kind in compared:
        return int(compared[kind])
    match kind:
        case "add":
            return (a + b) & mask
        case "sub":
            return (a - b) & mask
        case "mul":
            return a * b & mask
        case "shl":
            return a << b & mask if b < wide else 0
        case "shru":
            return a >> b if b < wide else 0
        case "shrs":
            return (sa >> min(b, wide)) & mask
        case _:
            raise NotImplementedError(kind)


def known_bits(
    module: Module, inputs: Mapping[str, Bits], outputs: Mapping[str, Bits]
) -> dict[str, Bits]:
    """For each value of a module which bits can be 0 and which can be 1.

    Args:
        module: the module.
        inputs: of its inputs.
        outputs: of values that modules inside give; all others can be anything.
    """
    found: dict[str, Bits] = {}
    for name, width in module.inputs.items():
        found[name] = inputs.get(name, _everything(width))
    for one in module.instances:
        for value in one.outputs.values():
            found[value] = outputs.get(value, _everything(module.width[value]))
    for name in module.registers:
        found[name] = (0, 0)
    order = list(_ordered(module))
    while True:
        for name in order:
            found[name] = _transfer(module, name, found)
        changed = False
        for name, (following, _, reset) in module.registers.items():
            zero, one = found[name]
            for source in filter(None, (following, reset)):
                zero, one = zero | found[source][0], one | found[source][1]
            changed |= (zero, one) != found[name]
            found[name] = zero, one
        if not changed:
            return found


def _users_first(modules: Mapping[str, Module], top: str) -> list[str]:
    """A module and all in it, each after those that it stands in."""
    found: list[str] = []

    def visit(name: str) -> None:
        if name in found or name not in modules:
            return
        for one in modules[name].instances:
            visit(one.module)
        found.append(name)

    visit(top)
    return found[::-1]


def fields_of(program: Program, folder: Path) -> dict[tuple[str, str], Bits]:
    """For the fields of a program's descriptors, by queue and name, which bits they ever have."""
    layout, images = layout_of(program), Images(program, folder)
    found: dict[tuple[str, str], Bits] = {}
    for queue in layout.queues:
        every = descriptor_wires(layout, queue, images)
        for name, width in layout.fields[queue].items() if every else ():
            zero = one = 0
            for values in every:
                low, high = _exactly(values.get(name, 0), width)
                zero, one = zero | low, one | high
            found[queue, name] = zero, one
    return found


def _ordered(module: Module) -> Iterator[str]:
    """Operations after those that they read."""
    done: set[str] = set()

    def visit(name: str) -> Iterator[str]:
        if name in done or name not in module.operations:
            return
        done.add(name)
        for source in module.operations[name][1]:
            yield from visit(source)
        yield name

    for name in module.operations:
        yield from visit(name)


def _transfer(module: Module, name: str, found: Mapping[str, Bits]) -> Bits:
    kind, args, value = module.operations[name]
    width = module.width[name]
    given = [found[one] for one in args]
    match kind:
        case "constant":
            return _exactly(value, width)
        case "wire":
            return given[0]
        case "extract":
            mask = (1 << width) - 1
            return given[0][0] >> value & mask, given[0][1] >> value & mask
        case "concat":
            zero = one = 0
            for source, (a, b) in zip(args, given, strict=True):
                zero, one = zero << module.width[source] | a, one << module.width[source] | b
            return zero, one
        case "replicate":
            zero = one = 0
            for _ in range(width // module.width[args[0]]):
                zero = zero << module.width[args[0]] | given[0][0]
                one = one << module.width[args[0]] | given[0][1]
            return zero, one
        case "mux":
            condition, a, b = given
            zero = one = 0
            if condition[1]:
                zero, one = zero | a[0], one | a[1]
            if condition[0]:
                zero, one = zero | b[0], one | b[1]
            return zero, one
        case "and" | "or" | "xor":
            zero, one = given[0]
            for a, b in given[1:]:
                match kind:
                    case "and":
                        zero, one = zero | a, one & b
                    case "or":
                        zero, one = zero & a, one | b
                    case _:
                        zero, one = zero & a | one & b, zero & b | one & a
            return zero, one
        case _:
            return _of_numbers(kind, given, module.width[args[0]], width)


def _of_numbers(kind: str, given: list[Bits], wide: int, width: int) -> Bits:
    mask = (1 << wide) - 1
    if any((a | b) != mask for a, b in given):
        return 0, 0
    (a0, a1), (b0, b1) = given
    if not (a0 & a1 or b0 & b1):
        return _exactly(_computed(kind, a1, b1, wide), width)
    # The least and the greatest of each, as unsigned numbers.
    least, most = (~a0 & mask, ~b0 & mask), (a1, b1)
    match kind:
        case "ult" | "ule" | "ugt" | "uge":
            ends = {
                _computed(kind, least[0], most[1], wide),
                _computed(kind, most[0], least[1], wide),
            }
            if len(ends) == 1:
                return _exactly(ends.pop(), 1)
        case "eq" | "ne":
            if (a0 & ~a1 & b1 & ~b0) | (a1 & ~a0 & b0 & ~b1):
                return _exactly(int(kind == "ne"), 1)
        case "add" | "mul" | "sub":
            moving = a0 & a1 | b0 & b1
            low = (moving & -moving) - 1
            value = _computed(kind, a1, b1, wide) & low
            zero, one = mask & ~value, mask & ~low | value
            top = most[0] + most[1] if kind == "add" else most[0] * most[1]
            if kind != "sub" and top <= mask:
                one &= (1 << top.bit_length()) - 1
            return zero, one
        case _:
            pass
    return _everything(width)


def chip_bits(
    modules: Mapping[str, Module], fields: Mapping[tuple[str, str], Bits]
) -> dict[str, dict[str, Bits]]:
    """The bits of each module of a chip: what is known wherever it stands in it.

    Args:
        modules: of the chip.
        fields: by queue and name those of descriptors.
    """
    inputs: dict[str, dict[str, Bits]] = {TOP: {}}
    found: dict[str, dict[str, Bits]] = {}
    for name in _users_first(modules, TOP):
        module = modules[name]
        outputs = {
            value: fields[queue, port.removeprefix(_FIELD)]
            for one in module.instances
            if one.module.startswith("sequencer_")
            for queue in [one.module.removeprefix("sequencer_")]
            for port, value in one.outputs.items()
            if port.startswith(_FIELD) and (queue, port.removeprefix(_FIELD)) in fields
        }
        found[name] = bits = known_bits(module, inputs[name], outputs)
        for one in module.instances:
            into = inputs.setdefault(one.module, {})
            for port, value in one.inputs.items():
                zero, high = into.get(f"%{port}", (0, 0))
                into[f"%{port}"] = zero | bits[value][0], high | bits[value][1]
    return found


# Terms


class Terms:
    """The values of a module as terms of Z3.

    Args:
        module: the module.
        known: bits of inputs and registers that never change.
        apart: names of inputs and registers that have variables of their own.
        mark: of these.
        narrow: registers that hold signed numbers of so many bits only.
    """

    def __init__(
        self,
        module: Module,
        known: Mapping[str, Bits],
        apart: frozenset[str] = frozenset(),
        mark: str = "",
        narrow: Mapping[str, int] = EMPTY,
    ) -> None:
        self.module, self._known, self._apart, self._mark = module, known, apart, mark
        self._narrow = narrow
        self._found: dict[str, Any] = {}

    def of(self, name: str) -> Any:
        """The term of a value."""
        if name not in self._found:
            self._found[name] = self._made(name)
        return self._found[name]

    def _made(self, name: str) -> Any:
        module = self.module
        if name not in module.operations:
            width = module.width[name]
            mark = self._mark if name in self._apart else ""
            if (few := self._narrow.get(name, width)) < width and name not in self._apart:
                return z3.SignExt(width - few, z3.BitVec(name, few))
            variable = z3.BitVec(name + mark, width)
            zero, one = self._known.get(name, _everything(width))
            fixed = (zero ^ one) & ((1 << width) - 1)
            if not fixed:
                return variable
            return variable & z3.BitVecVal(~fixed, width) | z3.BitVecVal(fixed & one, width)
        kind, args, value = module.operations[name]
        width = module.width[name]
        given = [self.of(one) for one in args]
        match kind:
            case "constant":
                return z3.BitVecVal(value, width)
            case "wire":
                return given[0]
            case "extract":
                return z3.Extract(value + width - 1, value, given[0])
            case "concat":
                return z3.Concat(*given) if len(given) > 1 else given[0]
            case "replicate":
                count = width // module.width[args[0]]
                return z3.Concat(*given * count) if count > 1 else given[0]
            case "mux":
                return z3.If(given[0] == 1, given[1], given[2])
            case _:
                return _operator(kind, given)

    def roots(self) -> dict[str, Any]:
        """What a module shows and keeps: outputs, next values, inputs of modules inside."""
        module, found = self.module, dict[str, Any]()
        for port, value in module.places.items():
            found[f"output {port}"] = self.of(value)
        for name, (following, reset, value) in module.registers.items():
            term = self.of(following)
            if reset is not None and value is not None:
                term = z3.If(self.of(reset) == 1, self.of(value), term)
            found[f"register {name}"] = term
        for number, one in enumerate(module.instances):
            for port, value in one.inputs.items():
                found[f"input {number} {one.module} {port}"] = self.of(value)
        return found


def _operator(kind: str, given: list[Any]) -> Any:
    a = given[0]
    for b in given[1:]:
        match kind:
            case "and":
                a = a & b
            case "or":
                a = a | b
            case "xor":
                a = a ^ b
            case "add":
                a = a + b
            case "sub":
                a = a - b
            case "mul":
                a = a * b
            case "shl":
                a = a << b
            case "shru":
                a = z3.LShR(a, b)
            case "shrs":
                a = a >> b
            case _:
                compared = {
                    "eq": lambda x, y: x == y, "ne": lambda x, y: x != y,
                    "ult": z3.ULT, "ule": z3.ULE, "ugt": z3.UGT, "uge": z3.UGE,
                    "slt": lambda x, y: x < y, "sle": lambda x, y: x <= y,
                    "sgt": lambda x, y: x > y, "sge": lambda x, y: x >= y,
                }  # fmt: skip
                a = z3.If(compared[kind](a, b), z3.BitVecVal(1, 1), z3.BitVecVal(0, 1))
    return a


def _equal(a: Any, b: Any, given: list[Any], seconds: float) -> str | None:
    """None: they are, always; else what is known."""
    if a.eq(b) or z3.simplify(a).eq(z3.simplify(b)):
        return None
    solver = z3.Solver()
    solver.set("timeout", round(1000 * seconds))
    solver.add(*given, a != b)
    found = solver.check()
    if found == z3.unsat:
        return None
    return "can differ" if found == z3.sat else f"not known after {round(seconds)} s"


_WRITTEN = re.compile(r"(.*?)(?:address|data|mask)$")


def _sources(module: Module, value: str) -> set[str]:
    """The registers and inputs that a value is computed from."""
    seen, waiting, registers = set[str](), [value], set[str]()
    while waiting:
        name = waiting.pop()
        if name in module.registers or name in module.inputs:
            registers.add(name)
        elif name not in seen and name in module.operations:
            waiting += module.operations[name][1]
        seen.add(name)
    return registers


def _enable_of(module: Module, inside: Instance | None, port: str) -> str | None:
    """The value without which a port of a memory or of a unit's result means nothing."""
    places = module.places if inside is None else inside.inputs
    match = _WRITTEN.match(port)
    if match is not None and match[1].endswith("_") and f"{match[1]}enable" in places:
        return places[f"{match[1]}enable"]
    if inside is None and port.startswith("result_") and "result_enable" in places:
        return places["result_enable"]
    if inside is None and port.startswith(_FIELD):
        return places.get(_START)
    return None


class _Widths:
    """How many bits the signed numbers in registers and inputs of a chip's modules need."""

    def __init__(
        self, modules: Mapping[str, Module], known: Mapping[str, Mapping[str, Bits]]
    ) -> None:
        self._modules, self._known = modules, known
        self._found: dict[str, dict[str, int]] = {name: {} for name in modules}

    def of(self, name: str, value: str, depth: int = 4) -> Mapping[str, int]:
        """Those that a value of a module is computed from, as far as `depth` steps of them go."""
        module, found = self._modules[name], self._found[name]
        for source in _sources(module, value):
            width = module.width[source]
            if source in found or width < 3 or not depth:
                continue
            if source in module.inputs:
                self._input(name, source, depth)
            elif module.registers[source][1] is None:
                self._register(name, source, depth)
        return found

    def _register(self, name: str, register: str, depth: int) -> None:
        module, found = self._modules[name], self._found[name]
        width, following = module.width[register], module.registers[register][0]
        found[register] = width
        self.of(name, following, depth - 1)
        for few in range(width - 1, 1, -1):
            # With what is to be shown for the register as it is.
            if not self._fits(name, following, few, {**found, register: few}):
                return
            found[register] = few

    def _input(self, name: str, port: str, depth: int) -> None:
        """An input: wherever the module stands, what goes into it."""
        width = self._modules[name].width[port]
        self._found[name][port] = width
        users = [
            (around, one.inputs[port[1:]])
            for around, module in self._modules.items()
            for one in module.instances
            if one.module == name and port[1:] in one.inputs
        ]
        for around, value in users:
            self.of(around, value, depth - 1)
        for few in range(width - 1, 1, -1):
            if not users or not all(
                self._fits(around, value, few, self._found[around]) for around, value in users
            ):
                return
            self._found[name][port] = few

    def _fits(self, name: str, value: str, few: int, narrow: Mapping[str, int]) -> bool:
        module = self._modules[name]
        term = Terms(module, self._known[name], narrow=narrow).of(value)
        kept = z3.SignExt(module.width[value] - few, z3.Extract(few - 1, 0, term))
        return _equal(term, kept, [], 3) is None


_BUDGET = 10
"""A search for guards ends after so many times the seconds of one question."""
Guard = tuple[str, int]
"""A register of one bit, and its value with which another register counts."""


class _Relation:
    """What is known of two modules that run side by side on the same inputs.

    Registers are equal, but for some that are so only while one of their guards has a value: a
    register of one bit, itself equal in both. It is a proof when all of it is still so a cycle
    later, and what the modules show is the same.
    """

    def __init__(
        self,
        modules: tuple[Module, Module],
        known: Mapping[str, Bits],
        narrow: Mapping[str, int],
        seconds: float,
    ) -> None:
        self.modules, self.known, self.seconds = modules, known, seconds
        self.guards: dict[str, list[Guard]] = {}
        self._end = time.monotonic() + _BUDGET * seconds
        self.outputs: set[str] = set()
        """Outputs that are the same only while they are enabled."""
        self.narrow = narrow

    def _sides(self) -> tuple[Terms, Terms, list[Any]]:
        apart = frozenset(self.guards)
        one, two = (
            Terms(module, self.known, apart, mark, self.narrow)
            for module, mark in zip(self.modules, ("'", "''"), strict=True)
        )
        given = [
            z3.Implies(one.of(name) == value, one.of(register) == two.of(register))
            for register, guards in self.guards.items()
            for name, value in guards
        ]
        return one, two, given

    def why_not(self) -> str | None:
        """Finds guards; None when there are some for all that differs."""
        for _ in range(60):
            wrong = self._step()
            if wrong is None:
                return None
            if wrong:
                return wrong
        return "no end of guards"

    def _step(self) -> str | None:
        """None: proved; "": tried further guards; else what differs."""
        one, two, given = self._sides()
        first, second = one.roots(), two.roots()
        module = self.modules[0]
        added = False
        for root, term in first.items():
            kind, _, which = root.partition(" ")
            other = second[root]
            if kind == "register":
                if which in self.guards:
                    kept = [
                        guard
                        for guard in self.guards[which]
                        if self._holds(first, guard, term, other, given)
                    ]
                    if len(kept) < len(self.guards[which]):
                        self.guards[which] = kept
                        added = True
                        if not kept:
                            return f"{root} differs without a guard"
                    continue
                why = _equal(term, other, given, self.seconds)
                if why is None:
                    continue
                guards = [
                    (name, value)
                    for name in module.registers
                    if module.width[name] == 1 and name != which and name not in self.guards
                    for value in (1, 0)
                    if self._holds(first, (name, value), term, other, given)
                ]
                if not guards:
                    return f"{root} {why}"
                self.guards[which] = guards
                for guarded in self.guards.values():
                    guarded[:] = [guard for guard in guarded if guard[0] != which]
                added = True
                # What reads it has another variable from now on.
                break
            if _equal(term, other, given, self.seconds) is None:
                continue
            inside = module.instances[int(which.split()[0])] if kind == "input" else None
            enable = _enable_of(module, inside, which.split()[-1])
            if enable is None:
                return f"{root} can differ"
            why = _equal(term, other, [*given, one.of(enable) == 1], self.seconds)
            if why is not None:
                return f"{root} {why}, enabled"
            if kind == "output":
                self.outputs.add(which)
        return "" if added else None

    def _holds(
        self, first: Mapping[str, Any], guard: Guard, term: Any, other: Any, given: list[Any]
    ) -> bool:
        """Whether a guard that has its value in the next cycle makes two values equal."""
        name, value = guard
        if time.monotonic() > self._end:
            return False
        return _equal(term, other, [*given, first[f"register {name}"] == value], 2) is None


def unproven(
    text: str, other: str, name: str, fields: Mapping[tuple[str, str], Bits], seconds: float = 20
) -> str | None:
    """Whether a module does the same in two chips.

    Args:
        text: hardware text of one.
        other: of the other, in which only this module differs.
        name: of the module.
        fields: what is known of descriptors' fields, by queue and name.
        seconds: for one output or register.

    Returns:
        None: it does; else the first output or register that was not proved, and why.
    """
    sys.setrecursionlimit(100_000)
    modules, others = modules_of(text), modules_of(other)
    known = chip_bits(modules, fields)
    narrow, widths = dict[str, int](), _Widths(modules, known)
    for value, operation in modules[name].operations.items():
        if others[name].operations.get(value) != operation:
            narrow.update(widths.of(name, value))
    relation = _Relation((modules[name], others[name]), known[name], narrow, seconds)
    why = relation.why_not()
    if why is not None:
        return why
    for port in sorted(relation.outputs):
        why = _counts_elsewhere(modules, known, name, port)
        if why is not None:
            return why
    return None


def _counts_elsewhere(
    modules: Mapping[str, Module], known: Mapping[str, Mapping[str, Bits]], name: str, port: str
) -> str | None:
    """Whether an output matters while it is not enabled: None if it is proved that it does not."""
    chip, module = modules[TOP], modules[name]
    source = next((one for one in chip.instances if one.module == name), None)
    enable = _enable_of(module, None, port)
    if source is None or enable is None:
        return f"{port} of a module within a unit"
    enabling = next(out for out, value in module.places.items() if value == enable)
    value, switch = source.outputs[port], source.outputs[enabling]
    why = _ignored(chip, known[TOP], value, {switch})
    if why is None:
        return None
    for unit in chip.instances:
        into = [f"%{to}" for to, given in unit.inputs.items() if given == value]
        if not into:
            continue
        if unit.module not in modules:
            return why
        starts = {f"%{to}" for to, given in unit.inputs.items() if switch in _read(chip, given)}
        inside = _ignored(modules[unit.module], known[unit.module], into[0], starts)
        if inside is not None:
            return f"{unit.module} {inside}"
    return None


def _read(module: Module, value: str) -> set[str]:
    """What a value is made of, itself too: conjunctions only."""
    kind, args, _ = module.operations.get(value, ("", [], 0))
    found = {value}
    if kind in ("and", "wire"):
        for one in args:
            found |= _read(module, one)
    return found


def _ignored(
    module: Module, known: Mapping[str, Bits], value: str, enables: set[str]
) -> str | None:
    """Whether a module ignores an input, or what one inside gives, while all enables are 0."""
    if not enables:
        return f"reads {value} without an enable"
    one = Terms(module, known, frozenset({value}), "'")
    two = Terms(module, known, frozenset({value}), "''")
    given = [one.of(enable) == 0 for enable in enables]
    first, second = one.roots(), two.roots()
    for root, term in first.items():
        conditions = list(given)
        kind, _, which = root.partition(" ")
        if kind == "input":
            inside = module.instances[int(which.split()[0])]
            enable = _enable_of(module, inside, which.split()[-1])
            if enable is not None:
                conditions.append(one.of(enable) == 1)
        if _equal(term, second[root], conditions, 20) is not None:
            return f"reads {value} without an enable, for {root}"
    return None
