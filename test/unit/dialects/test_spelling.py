"""Opcodes, roles, arguments and kinds of values are spelled in dialects/isa, and nowhere else.

A text that is such a word, whole, spells it

- wherever what is called an opcode, a role, a kind, `uses`, `arguments` (`ASKED`) is compared with
  it, matched against it, or looked up by it, and where it is handed to a parameter that is called
  so; a constant of the file stands for its texts;
- as a key, in a comparison, in a lookup or in a set, if nothing else has that name there.

What else has names is found, not listed: what a file imports, and functions, attributes of classes,
ports and fields of descriptors of its folder. `OTHERS` has those that no source declares.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest

from intaglio.dialects.isa.registry import INSTRUCTIONS
from intaglio.dialects.isa.values import KINDS

ROOT = Path(__file__).parents[3]
WORDS = {
    *KINDS,
    *(one.opcode for one in INSTRUCTIONS),
    *(part.name for one in INSTRUCTIONS for part in (*one.form.roles, *one.form.arguments)),
}
ASKED = {"opcode", "opcodes", "operations", "role", "roles", "uses", "arguments", "kind"}
"""What parts of an instruction are called."""
DECLARING = {"input", "output", "Field", "Take", "Give", "entry", "row", "written_row"}
"""Calls that name ports of hardware and fields of its descriptors."""
OTHERS: Mapping[str, set[str]] = {
    # Operators and attributes of ONNX.
    "lowering/onnx/": WORDS,
    # Keys of the JSON that commands print.
    "runtime/": {"domain", "probabilities", "token", "values", "weights"},
    # A latency of the target.
    "backend/hw/units/vector/shape.py": {"sample"},
}


@dataclass
class Source:
    """A file, by its name in the repository, and what else has names in its folder."""

    name: str
    tree: ast.Module
    folder: frozenset[str] = frozenset()

    @property
    def beside(self) -> str:
        return self.name.rpartition("/")[0]

    @cached_property
    def declared(self) -> set[str]:
        """What the file gives names to: functions, attributes of classes, ports and fields."""
        found: set[str] = set()
        for node in ast.walk(self.tree):
            match node:
                case ast.ClassDef(body=body):
                    for one in body:
                        match one:
                            case ast.AnnAssign(target=ast.Name(name)):
                                found.add(name)
                            case ast.Assign(targets=[ast.Name(name)]):
                                found.add(name)
                            case _:
                                pass
                case ast.AnnAssign(target=ast.Name("FIELDS"), value=ast.Dict(keys=keys)):
                    found |= {key.value for key in keys if isinstance(key, ast.Constant)}
                case ast.Call(func=function, args=given) if called(function) in DECLARING:
                    found |= {one.value for one in given if isinstance(one, ast.Constant)}
                case _:
                    pass
        return found | {one.name for one in self.tree.body if isinstance(one, ast.FunctionDef)}

    @cached_property
    def own(self) -> set[str]:
        """Words that are names of something else here."""
        imported = {
            one.asname or one.name
            for node in ast.walk(self.tree)
            if isinstance(node, ast.ImportFrom)
            for one in node.names
        }
        others = [words for name, words in OTHERS.items() if self.name.startswith(name)]
        return imported.union(self.folder, *others)

    @cached_property
    def constants(self) -> dict[str, set[str]]:
        """The words that constants of the file are, or are collections of."""
        return {
            name: words(node.value, {})
            for node in self.tree.body
            if isinstance(node, ast.Assign | ast.AnnAssign)
            for target in ([node.target] if isinstance(node, ast.AnnAssign) else node.targets)
            if (name := called(target))
        }


def sources() -> list[Source]:
    found = [
        Source(path.relative_to(ROOT).as_posix(), ast.parse(path.read_text()))
        for folder in ("dialects", "lowering", "backend", "runtime", "intaglio")
        for path in sorted((ROOT / folder).rglob("*.py"))
    ]
    for one in found:
        own = [other.declared for other in found if other.beside == one.beside]
        one.folder = frozenset[str]().union(*own)
    return [one for one in found if not one.name.startswith("dialects/isa/")]


def called(node: ast.AST) -> str:
    """What something is called where it is asked for: `one.opcode`, `opcode`, `one["opcode"]`."""
    match node:
        case ast.Attribute(value=inner, attr="data"):
            return called(inner)
        case (
            ast.Attribute(attr=name) | ast.Name(name) | ast.Subscript(slice=ast.Constant(str(name)))
        ):
            return name
        case _:
            return ""


def words(node: ast.AST | None, constants: Mapping[str, set[str]]) -> set[str]:
    """The words that a node is, or is a collection of."""
    match node:
        case ast.Constant(str(text)):
            return {text} & WORDS
        case ast.Name(name):
            return constants.get(name, set())
        case ast.Tuple(elts=parts) | ast.List(elts=parts) | ast.Set(elts=parts):
            return {name for part in parts for name in words(part, constants)}
        case ast.Dict(keys=keys):
            return {name for key in keys for name in words(key, constants)}
        case ast.Call(func=ast.Name("set" | "frozenset" | "tuple" | "list"), args=[inner]):
            return words(inner, constants)
        case _:
            return set()


def found_in(source: Source, parameters: Mapping[str, list[str]]) -> Iterator[tuple[int, set[str]]]:
    """Lines, and the words that are spelled there."""
    for node in ast.walk(source.tree):
        match node:
            case ast.Compare(left=left, comparators=others):
                texts, asked = [left, *others], [left, *others]
            case ast.Match(subject=subject, cases=cases):
                patterns = [inner for case in cases for inner in ast.walk(case.pattern)]
                texts = [one.value for one in patterns if isinstance(one, ast.MatchValue)]
                asked = [subject]
            case ast.Subscript(value=value, slice=key):
                texts, asked = [key, value], [key, value]
            case ast.Call(func=ast.Attribute(value=value, attr="get" | "pop"), args=[key, *_]):
                texts, asked = [key, value], [key, value]
            case ast.Dict() | ast.Set():
                texts, asked = [node], []
            case ast.Call(func=ast.Name("getattr"), args=[_, key, *_]):
                yield node.lineno, words(key, {})
                continue
            case ast.Call(func=function, args=given, keywords=keywords):
                names = parameters.get(called(function), [])
                names = names * len(given) if len(names) == 1 else names
                named = [*zip(names, given, strict=False)]
                named += [(one.arg or "", one.value) for one in keywords]
                for name, one in named:
                    if name in ASKED:
                        yield one.lineno, words(one, source.constants)
                continue
            case _:
                continue
        if any(called(one) in ASKED for one in asked):
            yield node.lineno, {name for one in texts for name in words(one, source.constants)}
        else:
            yield node.lineno, {name for one in texts for name in words(one, {})} - source.own


def parameters_of(every: list[Source]) -> dict[str, list[str]]:
    """All parameters of each function that has one in `ASKED`; one alone stands for many."""
    found: dict[str, list[str]] = {}
    for node in (inner for one in every for inner in ast.walk(one.tree)):
        if isinstance(node, ast.FunctionDef):
            names = [one.arg for one in node.args.args if one.arg not in ("self", "cls")]
            if node.args.vararg is not None:
                names = [*names, node.args.vararg.arg]
            if ASKED.intersection(names):
                found[node.name] = names
    return found


def spelled(source: Source, parameters: Mapping[str, list[str]]) -> list[str]:
    """Where a file spells a word, and which."""
    return [
        f"{source.name}:{line}: '{word}'"
        for line, found in found_in(source, parameters)
        for word in sorted(found)
    ]


@pytest.fixture(scope="module")
def every() -> list[Source]:
    return sources()


def test_no_source_spells_them(every: list[Source]) -> None:
    parameters = parameters_of(every)
    assert not [place for one in every for place in spelled(one, parameters)]


def test_no_exception_is_idle(every: list[Source], monkeypatch: pytest.MonkeyPatch) -> None:
    parameters, exceptions = parameters_of(every), dict(OTHERS)
    monkeypatch.setattr(f"{__name__}.OTHERS", {})
    for prefix, excepted in exceptions.items():
        found = {
            place.rpartition("'")[0].rpartition("'")[2]
            for one in every
            if one.name.startswith(prefix)
            for place in spelled(Source(one.name, one.tree, one.folder), parameters)
        }
        assert found == excepted or (excepted is WORDS and found)


WRONG = [
    'if one.opcode == "scale": pass',
    'if one.opcode in ("wake", "sleep"): pass',
    'if "bias" in one.uses: pass',
    'x = one.arguments["window"]',
    'x = one.arguments.get("window", 0)',
    'x = instruction["arguments"]["heads"]',
    'if buffer.type["kind"] == "fixed": pass',
    'match one.opcode.data:\n    case "copy" | "add": pass',
    'x = {"matvec": 1}',
    'x = {"copy": 1, "add": 2}[one.opcode]',
    'UNITS = {"copy": 1}\nx = UNITS.get(one.opcode)',
    'COPIES = ("copy", "scale")\nx = one.opcode in COPIES',
    'x = getattr(one, "weights")',
    'x = frozenset({"rms_norm", "layer_norm"})',
    'def has(self, *operations): pass\nx = unit.has("rotary", "softmax")',
    'def run(opcode, size): pass\nrun("sample", 3)',
    'InstructionOp(opcode="embed")',
]
RIGHT = [
    '"""Scores of matvec, softcap and pre_shift, in words."""',
    'm.input("groups", 32)\nx = inputs["groups"]',
    'class Cache:\n    heads: int\nx = content["heads"]',
    'def softmax(): pass\nKERNELS = {"softmax": softmax}',
    "match one:\n    case Matvec(): pass",
    "x = one.does.pre_shift",
    "x = unit.operation(isa.Rotary.opcode)",
    'yield f"{one.opcode} of {name}"',
    'x = counted(3, "token")',
]


@pytest.mark.parametrize("text", WRONG)
def test_the_rules_find(text: str) -> None:
    source = Source("backend/somewhere.py", ast.parse(text))
    assert spelled(source, parameters_of([source]))


@pytest.mark.parametrize("text", RIGHT)
def test_the_rules_leave(text: str) -> None:
    source = Source("backend/somewhere.py", ast.parse(text))
    source.folder = frozenset(source.declared)
    assert not spelled(source, parameters_of([source]))


@pytest.mark.parametrize(
    ("name", "was", "fault"),
    [
        (
            "backend/hw/units/vector/encode.py",
            "case Quantize() if one.scale_of is not None:",
            'case _ if one.opcode == "quantize" and "scale_of" in one.uses:',
        ),
        ("backend/hw/units/vector/unit.py", "features.has(ROTARY)", 'features.has("rotary")'),
        (
            "runtime/engines/rtl.py",
            "case values.Scores(heads=heads):",
            'case _ if kind == "scores":',
        ),
    ],
)
def test_a_fault_in_a_source_is_found(every: list[Source], name: str, was: str, fault: str) -> None:
    text = (ROOT / name).read_text()
    assert was in text
    (own,) = [one for one in every if one.name == name]
    source = Source(name, ast.parse(text.replace(was, fault)), own.folder)
    assert spelled(source, parameters_of(every))
