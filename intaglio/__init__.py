"""Intaglio: a compiler that engraves ONNX language models into ROM-based accelerators."""

from pathlib import Path as _Path

# In a checkout the subpackages are folders beside this one (see pyproject.toml, package-dir);
# without this line Python started in the checkout's root would find this folder and not them.
_root = _Path(__file__).resolve().parent.parent
if (_root / "dialects" / "rom.py").is_file():
    __path__.append(str(_root))
