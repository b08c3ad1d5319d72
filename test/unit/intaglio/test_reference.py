"""docs/reference: what the definitions say, and nothing older."""

from __future__ import annotations

from pathlib import Path

import pytest

from intaglio.dialects.isa.registry import INSTRUCTIONS
from intaglio.reference import pages
from intaglio.universe import INTAGLIO

FOLDER = Path(__file__).parents[3] / "docs" / "reference"


def test_the_pages_are_up_to_date():
    written = {path.name: path.read_text() for path in FOLDER.glob("*.md")}
    assert {name: written.get(name) for name in pages()} == pages(), (
        "run python -m intaglio.reference docs/reference"
    )


@pytest.mark.parametrize("dialect", INTAGLIO.all_dialects)
def test_every_operation_has_its_place(dialect):
    page = pages()[f"{dialect}.md"]
    for op in INTAGLIO.all_dialects[dialect]().operations:
        section = page.partition(f"## `{op.name}`\n")[2].partition("\n## ")[0]
        assert "```mlir\n" in section or op.name in {"rom.emit"}, f"{op.name} has no example"
        assert f"    {op.name} " in section, f"{op.name} has no syntax"
        for name in (
            *op.get_irdl_definition().properties,
            *dict(op.get_irdl_definition().operands),
        ):
            assert f"| `{name}` |" in section


def test_options_of_passes():
    page = pages()["passes.md"]
    assert "| `target` | `str` | needed |" in page and "| `residents` | `int` | `1` |" in page
    assert page.index("`rom-legalize`") < page.index("`program-schedule`")


def test_texts_under_definitions_are_in_the_page():
    assert (
        "| `zero_fraction` | optional attribute | `float` | The share of weights"
        in pages()["rom.md"]
    )
    assert "Else `1`." in pages()["rom.md"].partition("## `rom.rms_norm`")[2]


def test_every_instruction_has_its_place():
    page = pages()["instructions.md"]
    for one in INSTRUCTIONS:
        section = page.partition(f"## `{one.opcode}` (queue `{one.queue}`)\n")[2]
        rows = section.partition("\n## ")[0]
        for key, parts in (
            ("reads", one.form.reads),
            ("writes", one.form.writes),
            ("uses", one.form.roles),
            ("arguments", one.form.arguments),
        ):
            assert rows.count(f"| {key} |") == len(parts)
            assert all(f"| {key} | `{part.name}` |" in rows for part in parts)
