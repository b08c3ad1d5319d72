"""Names of the files in OUT/reference, given by one hand so that no two are the same.

The model's external data lie there under the names that its graph has for them, companions under
their own. Whatever else is written there takes a name that is still free.
"""

from __future__ import annotations

from itertools import chain, count
from pathlib import PurePosixPath

from intaglio.backend.output.output import REFERENCE


class ReferenceNames:
    """Names that are taken, relative to the folder, with slashes."""

    def __init__(self) -> None:
        self._taken: set[PurePosixPath] = set()

    def take(self, name: str) -> str:
        """A name that must be just this; gives it relative to the output folder."""
        self._taken.add(PurePosixPath(name))
        return f"{REFERENCE}/{name}"

    def free(self, name: str) -> str:
        """A name for a new file: this one, or one like it with a number."""
        whole = PurePosixPath(name)
        others = (whole.with_stem(f"{whole.stem}-{number}") for number in count(1))
        found = next(one for one in chain([whole], others) if self._is_free(one))
        return self.take(str(found))

    def _is_free(self, name: PurePosixPath) -> bool:
        # A file cannot have the name of a folder. Some file systems do not tell case apart.
        path = _folded(name)
        taken = [_folded(one) for one in self._taken]
        return not any(path.is_relative_to(one) or one.is_relative_to(path) for one in taken)


def _folded(path: PurePosixPath) -> PurePosixPath:
    return PurePosixPath(str(path).casefold())
