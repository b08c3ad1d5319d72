"""Which Intaglio evaluated a point: its version, and a digest of what its figures follow from."""

from __future__ import annotations

from functools import cache
from hashlib import sha256
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

_FOLDERS = ("dialects", "lowering", "backend", "runtime")


@cache
def code_digest() -> str:
    """Of the version and all source; another one may give other figures."""
    digest = sha256(version("intaglio").encode())
    for folder in _FOLDERS:
        spec = find_spec(f"intaglio.{folder}")
        assert spec is not None
        for place in spec.submodule_search_locations or ():
            root = Path(place)
            for path in sorted(root.rglob("*.py")):
                digest.update(path.relative_to(root).as_posix().encode())
                digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
