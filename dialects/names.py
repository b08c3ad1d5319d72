"""Names of ONNX in the texts of modules.

xDSL prints what is not ASCII as bytes, and reads that back as bytes, not as a text. So characters
that are not printable ASCII stand as `\\u{...}` in attributes, and a backslash twice; other names
are as they are.
"""

from __future__ import annotations

import re

_SPECIAL = re.compile(r"[^ -\[\]-~]")
_ESCAPED = re.compile(r"\\(?:\\|u\{([0-9a-f]{1,6})\})")


def escaped(name: str) -> str:
    """A name for an attribute."""
    return _SPECIAL.sub(lambda found: _escape(found[0]), name)


def unescaped(text: str) -> str:
    """The name that `escaped` made a text of."""
    return _ESCAPED.sub(lambda found: chr(int(found[1], 16)) if found[1] else "\\", text)


def _escape(character: str) -> str:
    return "\\\\" if character == "\\" else f"\\u{{{ord(character):x}}}"
