"""The target of a compile as its output folder keeps it: every figure, with options applied.

A target may come from a file of the user's own, so a name alone would not say what a model was
compiled for. The content is what `intaglio targets NAME --json` prints.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from intaglio.backend.output import write_json
from intaglio.backend.target import Target
from intaglio.backend.target_report import target_json
from intaglio.backend.target_schema import KEYS, SCHEMA
from intaglio.backend.target_values import Parameter
from intaglio.dialects.errors import UserError

TARGET = "target.json"


def write_target(folder: Path, target: Target) -> None:
    """Writes the target that a model is compiled for."""
    write_json(folder / TARGET, target_json(target))


def read_target(out: str | Path) -> Target:
    """The target that an output folder was compiled for, options included.

    Raises:
        UserError: the folder holds none, or one that this version does not understand.
    """
    path = Path(out) / TARGET
    try:
        content = json.loads(path.read_text())
        if content["schema"] != SCHEMA:
            raise ValueError(f"schema {content['schema']}, this version reads {SCHEMA}")
        return Target(
            name=content["name"],
            schema=SCHEMA,
            description=content["description"],
            parameters={name: _parameter(name, one) for name, one in content["parameters"].items()},
            sources=content["sources"],
            options=tuple(content["options"]),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"is no target that this version understands: {error}",
            file=str(path),
            hint="compile the model again",
        ) from error


def _parameter(name: str, content: Mapping[str, Any]) -> Parameter:
    if name not in KEYS:
        raise ValueError(f"unknown figure {name}")
    values = {key: value for key, value in content.items() if key != "meaning"}
    for part in ("value", "range"):
        if isinstance(values[part], list):
            values[part] = tuple(values[part])
    return Parameter(**values)
