"""Intaglio: a compiler that engraves ONNX language models into ROM-based accelerators.

>>> import intaglio
>>> chip = intaglio.compile("model.onnx", target="roma")  # doctest: +SKIP
>>> chip.generate([1, 2, 3], 8)  # doctest: +SKIP
"""

from pathlib import Path as _Path
from typing import TYPE_CHECKING as _TYPE_CHECKING

if _TYPE_CHECKING:
    from intaglio.dialects.errors import UserError
    from intaglio.runtime.chip import Chip, compile, load  # noqa: A004

    __version__: str

__all__ = ["Chip", "UserError", "compile", "load"]

# In a checkout the subpackages are folders beside this one (see pyproject.toml, package-dir);
# without this line Python started in the checkout's root would find this folder and not them. Found
# there again as `intaglio.intaglio` it stays as it is, or walks over packages would have no end.
_root = _Path(__file__).resolve().parent.parent
if __name__ == "intaglio" and (_root / "dialects" / "program.py").is_file():
    __path__.append(str(_root))


def __getattr__(name: str) -> object:
    # Imported when used: the command line and `xdsl-opt` import this package for every run.
    if name == "__version__":
        from importlib.metadata import version

        return version("intaglio")
    if name not in __all__:
        raise AttributeError(f"module 'intaglio' has no attribute '{name}'")
    if name == "UserError":
        from intaglio.dialects.errors import UserError

        return UserError
    from intaglio.runtime import chip

    return getattr(chip, name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
