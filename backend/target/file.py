"""The target of a compile as its output folder keeps it: every figure, with options applied.

A target may come from a file of the user's own, so a name alone would not say what a model was
compiled for. The content is what `intaglio targets NAME --json` prints.
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

from intaglio.backend.output.output import write_json
from intaglio.backend.target.report import target_json
from intaglio.backend.target.schema import KEYS, SCHEMA
from intaglio.backend.target.target import Target
from intaglio.backend.target.values import Parameter, sound, wrong_value
from intaglio.dialects.json_file import JSONFile, shown

TARGET = "target.json"


def write_target(folder: Path, target: Target) -> None:
    """Writes the target that a model is compiled for."""
    write_json(folder / TARGET, target_json(target))


def read_target(out: str | Path) -> Target:
    """The target that an output folder was compiled for, options included.

    Raises:
        UserError: the folder holds none, or one that this version does not understand.
    """
    content = JSONFile.read(Path(out) / TARGET, "compile the model again")
    if (schema := content["schema"].value) != SCHEMA:
        raise content.error(f"has schema {shown(schema)}, this version reads {SCHEMA}")
    parameters = {name: _parameter(name, one) for name, one in content["parameters"].items()}
    for name, spec in KEYS.items():
        if spec.required and name not in parameters:
            raise content["parameters"].error(f"has no figure '{name}'")
    return Target(
        name=content["name"].text(),
        schema=SCHEMA,
        description=content["description"].text(),
        parameters=parameters,
        sources={key: one.text() for key, one in content["sources"].items()},
        options=tuple(content["options"].texts()),
    )


def _parameter(name: str, content: JSONFile) -> Parameter:
    if name not in KEYS:
        raise content.error("is no figure that this version knows")
    content.only("meaning", *(field.name for field in fields(Parameter)))
    source, formula, reason = (
        None if content[part].value is None else content[part].text()
        for part in ("source", "formula", "reason")
    )
    given, limits = content["value"], None
    value = tuple(given.texts()) if isinstance(given.value, list) else given.value
    if problem := wrong_value(KEYS[name], value):
        raise given.error(f"is {problem}")
    if content["range"].value is not None:
        limits = tuple(
            one.value if isinstance(one.value, str) else one.number()
            for one in content["range"].list()
        )
    return Parameter(
        sound(value),
        content["origin"].text(),
        source,
        formula,
        limits,
        reason,
        content["unit"].text(),
    )
