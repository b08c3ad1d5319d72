"""The names of what runs a compiled model."""

from __future__ import annotations

from collections.abc import Sequence

from intaglio.dialects.errors import UserError, meant

HARDWARE_ENGINES = ("rtl", "verilator")
"""What runs the hardware."""
CHECKED_ENGINES = ("simulator", *HARDWARE_ENGINES)
"""What onnxruntime can judge."""
ENGINES = (*CHECKED_ENGINES, "onnxruntime")
"""What can run a model."""


def check_known(engine: str, known: Sequence[str] = ENGINES) -> None:
    """Whether an engine is among those that can do what is asked.

    Raises:
        UserError: it is not; names them.
    """
    if engine in known:
        return
    what = "cannot do that" if engine in ENGINES else "is unknown"
    raise UserError(
        f"engine '{engine}' {what}", hint=f"{meant(engine, known)}engines: {', '.join(known)}"
    )
