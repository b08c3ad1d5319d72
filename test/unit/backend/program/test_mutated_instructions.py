"""Instructions that are not as they are declared: verifier and reader refuse them alike."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from xdsl.context import Context
from xdsl.dialects.builtin import (
    ArrayAttr,
    Builtin,
    DictionaryAttr,
    FloatAttr,
    IntegerAttr,
    StringAttr,
    SymbolRefAttr,
    UnitAttr,
    f64,
    i64,
)
from xdsl.ir import Attribute
from xdsl.parser import Parser
from xdsl.utils.exceptions import VerifyException

from intaglio.backend.compile import compile_model
from intaglio.backend.program.program import PROGRAM, program_of
from intaglio.backend.program.reader import read_program
from intaglio.backend.stages import Options
from intaglio.dialects import rom
from intaglio.dialects.errors import UserError
from intaglio.dialects.fabric import FABRIC
from intaglio.dialects.gating import NO_DOMAIN
from intaglio.dialects.isa.arguments import Choice, Flag, Integer, Number
from intaglio.dialects.isa.instruction import Instruction
from intaglio.dialects.isa.parts import Operand, Store
from intaglio.dialects.isa.registry import INSTRUCTIONS, declared
from intaglio.dialects.isa.values import Blocks, Coded, Quantized
from intaglio.dialects.json_file import JSONFile
from intaglio.dialects.program import PROGRAM as PROGRAM_DIALECT
from intaglio.dialects.program import BlockOp, InstructionOp, ProgramOp

DEMO = Path(__file__).parents[4] / "examples/demo/model/model.onnx"
Content = dict[str, Any]
Mutation = tuple[str, Content, dict[str, str]]
"""What is done; the instruction then; what each instance binds besides."""


SMALLEST: Mapping[type, object] = {Integer: 1, Number: [1, 0], Flag: True}
"""Arguments of instructions that are made by hand, as in program.json."""


def told(one: Operand) -> str:
    """The kind of an operand, or what its kinds are together."""
    return one.kind.told if one.kind is Coded else one.kind.kind


def kinds_of(one: Operand) -> tuple[str, ...]:
    """The kinds that an operand can have."""
    return (Quantized.kind, Blocks.kind) if one.kind is Coded else (one.kind.kind,)


class Compiled:
    """A program as program.json and as IR."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.content: Content = json.loads((folder / PROGRAM).read_text())
        ctx = Context()
        for dialect in (Builtin, rom.ROM, FABRIC, PROGRAM_DIALECT):
            ctx.load_dialect(dialect)
        self.module = Parser(ctx, (folder / "ir/program.mlir").read_text()).parse_module()
        (self.program,) = [op for op in self.module.ops if isinstance(op, ProgramOp)]
        self.blocks = list(self.program.blocks)

    def each(self) -> Iterator[tuple[type[Instruction[Any]], int, int]]:
        """The first of each declaration, with its block and number."""
        seen: set[type] = set()
        for block, content in enumerate(self.content["blocks"]):
            for number, one in enumerate(content["instructions"]):
                kind = declared(one["opcode"], one["queue"])
                if kind not in seen:
                    seen.add(kind)
                    yield kind, block, number

    def stores(self) -> dict[Store, str]:
        """A buffer of each kind."""
        found = {
            Store.of_tensor(one["store"] == "rom.tensor", one["code"], one["dims"]): name
            for name, one in self.content["parameters"].items()
        }
        found |= {
            Store.STATIC_CACHE if "static_scale" in one else Store.CACHE: name
            for name, one in self.content["caches"].items()
        }
        for name in self.content.get("states", ()):
            found[Store.STATE] = name
        for name in self.content.get("matrices", ()):
            found[Store.MATRICES] = name
        return {**found, **({Store.DOMAIN: NO_DOMAIN} if self.content["domains"] else {})}

    def made(self, kind: type[Instruction[Any]]) -> tuple[Content, dict[str, str]] | None:
        """An instruction with all parts that a declaration has, and what each instance binds.

        None: the program has nothing that it could name.
        """
        form, stores = kind.form, self.stores()
        first: dict[str, str] = {}
        for name, one in self.content["buffers"].items():
            _ = first.setdefault(one["type"]["kind"], name)
        for one in (Quantized, Blocks):
            if one.kind in first:
                # Matrices are multiplied with either.
                _ = first.setdefault(Coded.told, first[one.kind])
        values = {told(one) for one in (*form.reads, *form.writes)}
        bound = {
            f"the_{role.name}": name
            for role in form.roles
            for name in [next((n for s, n in stores.items() if s.fits(role.stores)), None)]
            if name is not None
        }
        if not values <= first.keys() or len(bound) < sum(not one.optional for one in form.roles):
            return None
        return {
            "opcode": kind.opcode,
            "queue": kind.queue,
            "reads": [first[told(one)] for one in form.reads],
            "writes": [first[told(one)] for one in form.writes],
            "uses": {slot.removeprefix("the_"): slot for slot in bound},
            "waits": {},
            "duration": "1",
            "arguments": {
                one.name: one.kind.words[0]
                if isinstance(one.kind, Choice)
                else SMALLEST[type(one.kind)]
                for one in form.arguments
            },
            "onnx": [["by hand"] for _ in self.content["blocks"][0]["instances"]],
            "start": [],
            "finish": [],
        }, bound

    def mutations(self, kind: type[Instruction[Any]], one: Content) -> Iterator[Mutation]:
        """What is wrong of an instruction, one thing at a time."""

        def edit(what: str, /, bound: str | None = None, **change: Any) -> Mutation:
            return what, {**one, **change}, {} if bound is None else {"other": bound}

        kinds = {name: b["type"]["kind"] for name, b in self.content["buffers"].items()}
        for key in ("reads", "writes"):
            names: list[str] = one[key]
            given = kind.form.reads if key == "reads" else ()
            # Where the rest is an operand of the same kind, it may be the only one.
            left_out = any(p.optional and p.kind is given[0].kind for p in given[1:])
            if names and not left_out:
                yield edit(f"{key} one less", **{key: names[1:]})
            room = given[len(names) : len(names) + 1] if names else ()
            if not any(kinds[names[-1]] in kinds_of(part) for part in room):
                yield edit(f"{key} one more", **{key: [*names, *(names or list(kinds))[-1:]]})
            for place, name in enumerate(names):
                for other in dict.fromkeys(kinds.values()):
                    of = given[place] if place < len(given) else None
                    if other != kinds[name] and (of is None or other not in kinds_of(of)):
                        wrong = next(n for n, k in kinds.items() if k == other)
                        changed = [*names[:place], wrong, *names[place + 1 :]]
                        yield edit(f"{key}[{place}] of {other}", **{key: changed})
        both = [*one["reads"], *one["writes"]]
        back = both[::-1]
        if [kinds[name] for name in both] != [kinds[name] for name in back]:
            count = len(one["reads"])
            yield edit("values swapped", reads=back[:count], writes=back[count:])
        uses, arguments = one["uses"], one["arguments"]
        for role in kind.form.roles:
            if role.name not in uses:
                continue
            rest = {r: s for r, s in uses.items() if r != role.name}
            yield edit(f"{role.name} misspelled", uses={**rest, role.name + "s": uses[role.name]})
            if not role.optional:
                yield edit(f"no {role.name}", uses=rest)
            for store, name in self.stores().items():
                if not store.fits(role.stores):
                    wrong = {**uses, role.name: "other"}
                    yield edit(f"{role.name} is {store}", bound=name, uses=wrong)
        anything = next(iter(self.stores().values()))
        yield edit("unknown role", bound=anything, uses={**uses, "banana": "other"})
        yield edit("unknown argument", arguments={**arguments, "pear": 3})
        for argument in kind.form.arguments:
            name = argument.name
            if name not in arguments:
                continue
            rest = {a: v for a, v in arguments.items() if a != name}
            yield edit(f"{name} misspelled", arguments={**rest, name + "_": arguments[name]})
            if not argument.optional or name in kind.together:
                yield edit(f"no {name}", arguments=rest)
            for value in wrong_values(argument.kind):
                yield edit(f"{name} {value}", arguments={**arguments, name: value})
        yield edit("opcode misspelled", opcode=one["opcode"] + "s")
        yield edit("opcode of another case", opcode=one["opcode"].upper())
        queues = {known.queue for known in INSTRUCTIONS if known.opcode == one["opcode"]}
        for queue in ("vector", "kv", "power", "matrix", "attention"):
            if queue not in queues:
                yield edit(f"on {queue}", queue=queue)


def wrong_values(kind: object) -> list[Any]:
    """Values that an argument does not take: of other types, and too wide."""
    match kind:
        case Integer():
            return [1 << kind.bits, -1, "1", 1.5, True, [1, 2]]
        case Number():
            wide, far = 1 << kind.mantissa.bits - 1, 1 << kind.exponent.bits - 1
            return [[wide, 0], [-wide - 1, 0], [1, far], [1, -far - 1], [1], 3, "1", True, 1.5]
        case Choice():
            return ["nothing", "", 0, True]
        case Flag():
            return [1, "true"]
        case _:
            raise AssertionError(kind)


def attribute(value: Any) -> Attribute:
    """An argument of program.json as the IR has it."""
    match value:
        case bool():
            return UnitAttr()
        case int():
            return IntegerAttr(value, i64)
        case float():
            return FloatAttr(value, f64)
        case str():
            return StringAttr(value)
        case [m, e]:
            return rom.RealAttr(m, e)
        case _:
            return ArrayAttr([attribute(one) for one in value])


def symbols(names: Mapping[str, str]) -> DictionaryAttr:
    return DictionaryAttr({key: SymbolRefAttr(name) for key, name in names.items()})


def verifier_says(program: Compiled, block: BlockOp, op: InstructionOp, mutation: Mutation) -> str:
    _, one, bound = mutation
    properties, instances = dict(op.properties), block.instances
    op.opcode, op.queue = StringAttr(one["opcode"]), StringAttr(one["queue"])
    op.reads, op.writes = (
        ArrayAttr([SymbolRefAttr(name) for name in one[key]]) for key in ("reads", "writes")
    )
    op.uses = symbols(one["uses"])
    op.arguments = DictionaryAttr({k: attribute(v) for k, v in one["arguments"].items()})
    if bound:
        block.instances = ArrayAttr(
            [DictionaryAttr({**each.data, **symbols(bound).data}) for each in instances]
        )
    try:
        op.verify_()
        program.program.verify_()
    except VerifyException as error:
        return str(error)
    finally:
        op.properties.clear()
        op.properties.update(properties)
        block.instances = instances
    return ""


def reader_says(program: Compiled, block: int, number: int, mutation: Mutation) -> str:
    _, one, bound = mutation
    changed = dict(program.content["blocks"][block])
    changed["instructions"] = [*changed["instructions"][:number], one]
    changed["instances"] = [{**each, **bound} for each in changed["instances"]]
    named = {name for each in changed["instances"] for name in each.values()}
    content = {**program.content, "blocks": [changed], "sites": {}}
    for key in ("parameters", "domains"):
        # What this block does not name takes its time and changes nothing.
        content[key] = {name: one for name, one in content[key].items() if name in named}
    content["domains"] = {name: [] for name in content["domains"]}
    try:
        read_program(JSONFile(content, PROGRAM), program.folder)
    except UserError as error:
        assert error.file == PROGRAM
        return error.what
    return ""


def refused_alike(program: Compiled, block: int, number: int, mutation: Mutation) -> None:
    """Reader and verifier refuse it with the same words, which have the instruction's name."""
    op = list(program.blocks[block].instructions)[number]
    said = reader_says(program, block, number, mutation)
    start = f"blocks[0].instructions[{number}]: "
    assert said.startswith(start), mutation
    assert f"'{mutation[1]['opcode']}'" in said, mutation
    words = said.removeprefix(start)
    if mutation[0].endswith((" 1.5", " [1]", " [1, 2]")):
        # The IR has other numbers and lists.
        words = words.partition(" is ")[0]
    verified = verifier_says(program, program.blocks[block], op, mutation)
    name = program.blocks[block].sym_name.data
    assert f"instruction {number} of @{name}: {words}" in verified, mutation


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    """The demo model, with slots for adapters."""
    out = tmp_path_factory.mktemp("demo") / "out"
    options = Options("roma-mini", emit="program", adapter_rank=4)
    return Compiled(compile_model(DEMO, out, options).folder)


@pytest.fixture(scope="module")
def gated(model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    """On a chip that switches its layers off."""
    out = tmp_path_factory.mktemp("gated") / "out"
    options = Options("tom-mini", context=32, emit="program")
    return Compiled(compile_model(model("ternary_tied"), out, options).folder)


@pytest.fixture(scope="module")
def mixed(model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    """A mixture of experts, on a chip that switches on the chosen ones alone."""
    out = tmp_path_factory.mktemp("mixed") / "out"
    options = Options("tom-mini", ("policy.expert_power=chosen",), context=32, emit="program")
    return Compiled(compile_model(model("experts_ternary"), out, options).folder)


@pytest.fixture(scope="module")
def convolving(model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    """With the states of a convolution and of linear attention."""
    out = tmp_path_factory.mktemp("convolving") / "out"
    options = Options("roma-mini", context=32, emit="program")
    return Compiled(compile_model(model("qwen35"), out, options).folder)


@pytest.fixture(scope="module")
def blocked(model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    """With exponents by block, and norms whose factors follow the products."""
    out = tmp_path_factory.mktemp("blocked") / "out"
    settings = ("activations=half8",)
    options = Options("roma-mini", settings, context=32, emit="program", adapter_rank=4)
    return Compiled(compile_model(model("llama"), out, options).folder)


@pytest.fixture(scope="module")
def dealt(model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    """Experts, with exponents by block."""
    out = tmp_path_factory.mktemp("dealt") / "out"
    options = Options("roma-mini", ("activations=half8",), context=32, emit="program")
    return Compiled(compile_model(model("experts"), out, options).folder)


def test_what_the_compiler_writes_passes(
    demo: Compiled, gated: Compiled, mixed: Compiled, convolving: Compiled, blocked: Compiled
) -> None:
    for one in (demo, gated, mixed, convolving, blocked):
        one.program.verify()
        assert program_of(one.content).blocks


@pytest.mark.parametrize("which", ["demo", "gated", "mixed", "convolving", "blocked"])
def test_mutations_are_refused_with_the_same_words(
    which: str, request: pytest.FixtureRequest
) -> None:
    program: Compiled = request.getfixturevalue(which)
    for kind, number_of_block, number in program.each():
        one = program.content["blocks"][number_of_block]["instructions"][number]
        mutations = list(program.mutations(kind, one))
        assert len(mutations) >= 10, kind
        for mutation in mutations:
            refused_alike(program, number_of_block, number, mutation)
    program.program.verify()


@pytest.mark.parametrize("kind", INSTRUCTIONS, ids=lambda kind: f"{kind.queue}-{kind.opcode}")
def test_mutations_of_every_declaration(
    kind: type[Instruction[Any]],
    demo: Compiled,
    gated: Compiled,
    mixed: Compiled,
    convolving: Compiled,
    blocked: Compiled,
    dealt: Compiled,
) -> None:
    """Instructions made by hand with all their parts, in the place of a program's first one."""
    programs = demo, gated, mixed, convolving, blocked, dealt
    program, found = next((one, made) for one in programs if (made := one.made(kind)))
    one, bound = found
    block = program.blocks[0]
    op = next(iter(block.instructions))
    assert reader_says(program, 0, 0, ("as it is", one, bound)) == ""
    assert "instruction 0 of" not in verifier_says(program, block, op, ("as it is", one, bound))
    mutations = list(program.mutations(kind, one))
    assert len(mutations) >= 10
    for what, wrong, other in mutations:
        refused_alike(program, 0, 0, (what, wrong, {**bound, **other}))
