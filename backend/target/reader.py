"""The strict reader of target files: every fault is found before any is raised."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from intaglio.backend.target.formula import FormulaError, Value, evaluate, names
from intaglio.backend.target.schema import (
    ENTRY_KEYS,
    KEYS,
    ORIGINS,
    SCHEMA,
    SECTIONS,
    TARGET_KEYS,
    Key,
)
from intaglio.backend.target.values import (
    Parameter,
    contradictions,
    derive,
    formula_result,
    is_number,
    quoted,
    raise_all,
    shown,
    sound,
    wrong_value,
)
from intaglio.dialects.errors import UserError, meant
from intaglio.dialects.json_file import JSON

_ENTRY = '{ value = ..., origin = "paper"|"secondary"|"derived"|"assumed", ... }'
_AGREEMENT = 0.005
"""Relative distance allowed between a derived figure as stated, rounded, and its formula."""


@dataclass(frozen=True)
class Description:
    """A target file that was found sound."""

    name: str
    description: str
    parameters: dict[str, Parameter]
    sources: dict[str, str]


def read_document(document: Mapping[str, JSON], file: str) -> Description:
    """Check a parsed target file.

    Args:
        document: the file as `tomllib` gives it.
        file: its name for messages.

    Raises:
        UserError: what is wrong, with file, section and key; several faults come together.
    """
    return _Reader(file).read(document)


class _Reader:
    """Collects the faults of one document."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.errors: list[UserError] = []
        self.sources: dict[str, str] = {}

    def fault(self, what: str, hint: str | None = None) -> None:
        self.errors.append(UserError(what, file=self.file, hint=hint))

    def read(self, document: Mapping[str, JSON]) -> Description:
        # Another version may differ in anything, so nothing else would be worth reporting.
        schema = document.get("schema")
        if type(schema) is not int or schema != SCHEMA:
            found = "is missing" if schema is None else f"is {schema!r}"
            self.fault(f"schema {found}", f"this compiler reads schema = {SCHEMA}")
            raise_all(self.errors)
        sections = ["target", "sources", *SECTIONS]
        for name in document:
            if name not in ("schema", *sections):
                kind = "section" if isinstance(document[name], dict) else "key"
                self.fault(
                    f"unknown {kind} '{name}'",
                    meant(name, sections) + f"sections: {', '.join(sections)}",
                )
        name, description = self._about(document.get("target"))
        self._sources(document.get("sources", {}))
        parameters = self._parameters(document)
        raise_all(self.errors)
        self._formulas(parameters)
        raise_all(self.errors)
        for name, what, hint in contradictions(parameters):
            self.fault(f"{_place(name)}: {what}", hint)
        raise_all(self.errors)
        return Description(name, description, parameters, self.sources)

    def _about(self, section: JSON) -> list[str]:
        """The texts of the section [target], in the order of their keys."""
        if not isinstance(section, dict):
            self.fault(
                "section [target] is missing" if section is None else "[target] is not a section",
                f"it has the keys {', '.join(TARGET_KEYS)}",
            )
            return [""] * len(TARGET_KEYS)
        for key in section:
            if key not in TARGET_KEYS:
                self.fault(
                    f"[target] {key}: unknown key",
                    meant(key, TARGET_KEYS) + f"keys: {', '.join(TARGET_KEYS)}",
                )
        texts: list[str] = []
        for key in TARGET_KEYS:
            text = section.get(key)
            if key not in section:
                self.fault(f"[target] {key}: is missing")
            elif not isinstance(text, str) or not text.strip():
                self.fault(f"[target] {key}: is not a text")
            elif key == "name" and not re.fullmatch(r"[a-z][a-z0-9-]*", text):
                self.fault(
                    f"[target] name: '{text}' is no name for a target",
                    "small letters, digits and hyphens, a letter first",
                )
            texts.append(str(text))
        return texts

    def _sources(self, section: JSON) -> None:
        if not isinstance(section, dict):
            self.fault("[sources] is not a section")
            return
        for key, text in section.items():
            if not isinstance(text, str) or not text.strip():
                self.fault(f"[sources] {key}: is not a text")
            else:
                self.sources[key] = text

    def _parameters(self, document: Mapping[str, JSON]) -> dict[str, Parameter]:
        found: dict[str, Parameter] = {}
        for section in SECTIONS:
            table = document.get(section, {})
            specs = {
                name.partition(".")[2]: spec
                for name, spec in KEYS.items()
                if name.startswith(f"{section}.")
            }
            keys = ", ".join(specs)
            if not isinstance(table, dict):
                self.fault(f"[{section}] is not a section", f"keys: {keys}")
                continue
            for key in table:
                if key not in specs:
                    self.fault(
                        f"[{section}] {key}: unknown key", meant(key, specs) + f"keys: {keys}"
                    )
            missing = [key for key, spec in specs.items() if spec.required and key not in table]
            if missing and not table:
                self.fault(f"section [{section}] is missing", f"keys: {', '.join(missing)}")
                continue
            for key, spec in specs.items():
                if key in missing:
                    self.fault(
                        f"[{section}] {key}: is missing", f"{spec.meaning}: {spec.allowed()}"
                    )
                elif key in table and (entry := self._entry(f"{section}.{key}", table[key])):
                    found[f"{section}.{key}"] = entry
        return found

    def _entry(self, name: str, entry: JSON) -> Parameter | None:
        """One parameter, or None when it has faults, which are recorded."""
        before = len(self.errors)
        place, spec = _place(name), KEYS[name]
        if not isinstance(entry, dict):
            self.fault(f"{place}: a value without an origin", f"write {_ENTRY}")
            return None
        for part in entry:
            if part not in ENTRY_KEYS:
                self.fault(
                    f"{place}: unknown part '{part}'",
                    meant(part, ENTRY_KEYS) + f"parts: {', '.join(ENTRY_KEYS)}",
                )
        texts: dict[str, str] = {}
        for part in ("source", "formula", "reason"):
            text = entry.get(part)
            if isinstance(text, str) and text.strip():
                texts[part] = text
            elif part in entry:
                self.fault(f"{place}: {part} is not a text")
        origin = entry.get("origin")
        if origin is None:
            self.fault(f"{place}: a value without an origin", f"origins: {', '.join(ORIGINS)}")
        elif not isinstance(origin, str) or origin not in ORIGINS:
            self.fault(
                f"{place}: unknown origin {quoted(origin)}", f"origins: {', '.join(ORIGINS)}"
            )
        value = _value_of(spec, entry.get("value"))
        if "value" not in entry:
            self.fault(f"{place}: has no value", f"{spec.meaning}: {spec.allowed()}")
        elif problem := wrong_value(spec, value):
            self.fault(f"{place}: value is {problem}", f"allowed: {spec.allowed()}")
        self._origin_parts(place, origin, entry)
        if len(self.errors) > before:
            return None
        limits = self._range(place, spec, value, entry["range"]) if "range" in entry else None
        if len(self.errors) > before:
            return None
        assert isinstance(origin, str)
        return Parameter(
            sound(value),
            origin,
            texts.get("source"),
            texts.get("formula"),
            limits,
            texts.get("reason"),
            spec.unit,
        )

    def _origin_parts(self, place: str, origin: JSON, entry: Mapping[str, JSON]) -> None:
        needs = {
            "paper": {"source": "where it stands"},
            "secondary": {"source": "where it stands"},
            "derived": {"formula": "an expression of other parameters"},
            "assumed": {"range": "[low, high], or the choices", "reason": "why this value"},
        }
        # An origin that is no text was reported and may not even be hashable.
        origin = origin if isinstance(origin, str) else None
        for part, what in needs.get(origin or "", {}).items():
            if part not in entry:
                self.fault(f"{place}: {origin} without a {part}", f"add {part}: {what}")
        for part, only in (("formula", "derived"), ("range", "assumed")):
            if part in entry and origin in ORIGINS and origin != only:
                self.fault(f"{place}: {origin} with a {part}", f"only {only} figures have one")
        source = entry.get("source")
        if not isinstance(source, str):
            return
        keys = [key.strip() for key in source.partition(";")[2].split(",") if key.strip()]
        if not keys and origin in ("paper", "secondary"):
            self.fault(
                f"{place}: source names no key of [sources]",
                'write "place; KEY, KEY" with keys of [sources]',
            )
        for key in keys:
            if key not in self.sources:
                self.fault(
                    f"{place}: source names '{key}', which is not in [sources]",
                    f"keys: {', '.join(self.sources) or 'none'}",
                )

    def _range(
        self, place: str, spec: Key, value: JSON, limits: JSON
    ) -> tuple[int | float | str, ...] | None:
        given: list[JSON] = limits if isinstance(limits, list) else []
        if spec.kind in ("choice", "choices", "text"):
            chosen = value if isinstance(value, tuple) else (value,)
            choices = [one for one in given if isinstance(one, str) and not _foreign(spec, one)]
            if not choices or len(choices) < len(given):
                self.fault(f"{place}: range is not a list of choices", f"allowed: {spec.allowed()}")
            elif any(item not in choices for item in chosen):
                self.fault(f"{place}: value {shown(value)} is not in its own range")
            else:
                return tuple(choices)
            return None
        numbers = [one for one in given if is_number(one)]
        if not len(numbers) == len(given) == 2 or not numbers[0] <= numbers[1]:
            self.fault(f"{place}: range is not [low, high]")
            return None
        low, high = numbers
        if not spec.low <= low <= high <= spec.high:
            self.fault(
                f"{place}: range {shown((low, high))} leaves the bounds of sense",
                f"allowed: {spec.low:g} to {spec.high:g}",
            )
        elif not isinstance(value, int | float) or not low <= value <= high:
            self.fault(f"{place}: value {shown(value)} is not in its own range")
        else:
            return low, high
        return None

    def _formulas(self, parameters: dict[str, Parameter]) -> None:
        """Every derived figure must be what its formula says, and no two may hang on each other."""
        for name, parameter in parameters.items():
            if parameter.formula is None:
                continue
            try:
                for other in names(parameter.formula):
                    if other not in parameters:
                        raise FormulaError(f"names '{other}', which is not a parameter")
                value = formula_result(
                    name, evaluate(parameter.formula, lambda key: parameters[key].value)
                )
            except FormulaError as error:
                self.fault(f"{_place(name)}: formula {error}", f"formula: {parameter.formula}")
                continue
            if not _agree(parameter.value, value):
                self.fault(
                    f"{_place(name)}: value is {shown(parameter.value)}, "
                    f"but its formula gives {shown(value)}",
                    f"formula: {parameter.formula}",
                )
        if self.errors:
            return
        try:
            derive(dict(parameters), set(parameters))
        except FormulaError as error:
            self.fault(str(error))


def _agree(stated: Value, computed: Value) -> bool:
    if isinstance(stated, float) or isinstance(computed, float):
        if not isinstance(stated, int | float) or not isinstance(computed, int | float):
            return False
        return abs(stated - computed) <= _AGREEMENT * abs(computed)
    return stated == computed


def _value_of(spec: Key, value: JSON) -> JSON:
    """A TOML value in the form parameters have: lists of choices as tuples."""
    return tuple(value) if spec.kind == "choices" and isinstance(value, list) else value


def _foreign(spec: Key, item: str) -> bool:
    """Whether an item of a range cannot be a value."""
    return wrong_value(spec, item) is not None if spec.kind == "text" else item not in spec.choices


def _place(name: str) -> str:
    section, _, key = name.partition(".")
    return f"[{section}] {key}"
