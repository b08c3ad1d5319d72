"""Operations by name in a block that changes."""

from __future__ import annotations

from xdsl.dialects.builtin import ModuleOp, StringAttr

from intaglio.dialects.by_name import ByName
from intaglio.dialects.fabric import MemoryOp
from intaglio.dialects.memories import Memory


def memory(name: str, rows: int = 1) -> MemoryOp:
    return MemoryOp(name, Memory(rows, 16, 32))


def test_finds_what_the_block_has_now():
    found = ByName[MemoryOp](lambda op: (op.memory.data, op) if isinstance(op, MemoryOp) else None)
    one, two = memory("one"), memory("two")
    module = ModuleOp([one, ModuleOp([memory("inside")]), two])
    block = module.body.block
    assert found.find(block, "one") is one
    assert found.find(block, "inside") is None
    # Added, renamed, and taken away after it was asked.
    three = memory("three")
    block.add_op(three)
    assert found.find(block, "three") is three
    two.memory = StringAttr("four")
    assert found.find(block, "two") is None
    assert found.find(block, "four") is two
    one.detach()
    assert found.find(block, "one") is None


def test_the_first_of_two_counts():
    found = ByName[MemoryOp](lambda op: (op.memory.data, op) if isinstance(op, MemoryOp) else None)
    first = memory("same")
    module = ModuleOp([first, memory("same", 2)])
    assert found.find(module.body.block, "same") is first
    first.detach()
    other = found.find(module.body.block, "same")
    assert other is not None and other.content.rows == 2
