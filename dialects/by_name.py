"""Operations of a block by their names, for verifiers: a model of many layers has hundreds of them
and names each many times."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar
from weakref import WeakKeyDictionary, WeakValueDictionary

from xdsl.ir import Block, Operation

T = TypeVar("T", bound=Operation)


class ByName(Generic[T]):
    """Finds operations of some kinds in blocks that may change; what was found last is looked at
    first.

    Args:
        name: of an operation; None: it is none of those that are looked for.
    """

    def __init__(self, name: Callable[[Operation], tuple[str, T] | None]) -> None:
        self._name = name
        self._known: WeakKeyDictionary[Block, WeakValueDictionary[str, T]] = WeakKeyDictionary()

    def find(self, block: Block, name: str) -> T | None:
        """The first operation of a block with a name, if there is one."""
        known = self._known.get(block)
        found = None if known is None else known.get(name)
        if found is not None and found.parent is block and self._name(found) == (name, found):
            return found
        fresh: WeakValueDictionary[str, T] = WeakValueDictionary()
        for op in block.ops:
            if (named := self._name(op)) is not None:
                fresh.setdefault(*named)
        self._known[block] = fresh
        return fresh.get(name)
