"""Figures of a target: their form, their bounds, and how derived ones follow the others."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TypeGuard

from intaglio.backend.target.formula import FormulaError, Value, evaluate, names
from intaglio.backend.target.schema import FOLLOWS_MESH, KEYS, MESH, Key
from intaglio.dialects.errors import UserError, UserErrors
from intaglio.dialects.formats import BLOCK_FORMATS, HEAD_FORMATS
from intaglio.dialects.json_file import JSON
from intaglio.dialects.machine import plain_numerators

_TOGETHER = {
    "external.kv_on_die_tokens": ("external.bytes_per_cycle", "external.latency_cycles"),
    "external.bytes_per_cycle": ("external.kv_on_die_tokens",),
    "external.latency_cycles": ("external.kv_on_die_tokens",),
    "latency.power_wake": ("latency.power_sleep",),
    "latency.power_sleep": ("latency.power_wake",),
}
"""Figures that say nothing without others."""


@dataclass(frozen=True)
class Parameter:
    """One figure of a target and where it comes from.

    `range` is (low, high) for numbers and the list of choices for formats and policies.
    """

    value: Value
    origin: str
    source: str | None = None
    formula: str | None = None
    range: tuple[int | float | str, ...] | None = None
    reason: str | None = None
    unit: str = ""

    def to_dict(self) -> dict[str, JSON]:
        """JSON form; absent parts are null."""
        return {
            "value": list(self.value) if isinstance(self.value, tuple) else self.value,
            "unit": self.unit,
            "origin": self.origin,
            "source": self.source,
            "formula": self.formula,
            "range": None if self.range is None else list(self.range),
            "reason": self.reason,
        }


def derive(parameters: dict[str, Parameter], changed: set[str]) -> None:
    """Evaluate again, in place, every derived figure that hangs on a changed one.

    Args:
        parameters: all figures by full name; derived ones are replaced.
        changed: full names that changed; those that follow are added.

    Raises:
        FormulaError: formulas run in a circle.
        UserError: a formula has no sound value any more.
    """
    done: set[str] = set()

    def update(name: str, chain: tuple[str, ...]) -> None:
        if name in chain:
            circle = " -> ".join([*chain[chain.index(name) :], name])
            raise FormulaError(f"formulas run in a circle: {circle}")
        parameter = parameters[name]
        if name in done or parameter.formula is None:
            return
        used = names(parameter.formula)
        for other in used:
            update(other, (*chain, name))
        done.add(name)
        if changed.isdisjoint(used):
            return
        try:
            value = formula_result(
                name, evaluate(parameter.formula, lambda key: parameters[key].value)
            )
        except FormulaError as error:
            raise UserError(
                f"the formula of {name} {error}",
                hint=f"formula: {parameter.formula}",
            ) from error
        if value != parameter.value:
            parameters[name] = replace(parameter, value=value)
            changed.add(name)

    for name in tuple(parameters):
        update(name, ())


def formula_result(name: str, value: Value) -> Value:
    """A formula's value in the type of its parameter."""
    spec = KEYS[name]
    if spec.kind == "int" and isinstance(value, float) and value.is_integer():
        value = int(value)
    if problem := wrong_value(spec, value):
        raise FormulaError(f"gives {problem}; allowed: {spec.allowed()}")
    return value


_WAKE = "latency.power_wake"


_MISSING = {
    "formats.block": '[formats] block = { value = 32, origin = "assumed", range = [16, 64], '
    'reason = "..." }',
    "latency.block_exponent": '[latency] block_exponent = { value = 3, origin = "assumed", '
    'range = [1, 8], reason = "..." }',
}
"""How a target file has what activations with an exponent a block need."""


def contradictions(parameters: Mapping[str, Parameter]) -> list[tuple[str, str, str | None]]:
    """Parameters that do not go together: name, what is wrong with it, and what would help."""
    found: list[tuple[str, str, str | None]] = [
        (name, what, None) for name, what in _contradictions(parameters)
    ]
    found += _unfit_probabilities(parameters)
    activations = parameters["formats.activations"].value
    told = ({"formats.activations": activations} | inputs_of(parameters)).items()
    found += [
        (
            key,
            f"is {shown(fmt)}, which needs {one}",
            f"{line} in the target file, or activations of int8",
        )
        for key, fmt in told
        if fmt in BLOCK_FORMATS
        for one, line in _MISSING.items()
        if one not in parameters
    ]
    return found


def _contradictions(parameters: Mapping[str, Parameter]) -> list[tuple[str, str]]:
    found = _mesh_contradictions(parameters)
    for key, also in _TOGETHER.items():
        if key in parameters:
            found += [(key, f"needs {one}") for one in also if one not in parameters]
    cell, bits = parameters["l_unit.cell"].value, parameters["l_unit.plane_bits"].value
    if cell == "ternary" and bits != 2:
        found.append(("l_unit.plane_bits", f"is {shown(bits)}, a ternary cell is stored in 2"))
    lanes, bank = (_integer(parameters, f"l_unit.{key}") for key in ("lanes", "bank_bits"))
    word = lanes * _integer(parameters, "l_unit.plane_bits")
    if parameters["l_unit.rom"].value == "logic" and word % bank:
        found.append(
            ("l_unit.bank_bits", f"is {bank}, which does not divide a word of {word} bits")
        )
    head, held = (parameters[f"{key}.head_weights"].value for key in ("policy", "formats"))
    assert isinstance(head, str)
    assert isinstance(held, tuple)
    if head.partition(":")[0] not in held:
        found.append(
            ("policy.head_weights", f"is {head}, formats.head_weights has only {shown(held)}")
        )
    policy, wake = (parameters.get(key) for key in ("policy.expert_power", _WAKE))
    if policy is not None and policy.value == "chosen" and (wake is None or not wake.value):
        found.append(("policy.expert_power", f"is chosen, but without {_WAKE} no bank is gated"))
    return found


def _unfit_probabilities(
    parameters: Mapping[str, Parameter],
) -> list[tuple[str, str, str | None]]:
    """Where the format of probabilities does not go with that of activations and caches."""
    name, activations = "formats.probabilities", parameters["formats.activations"].value
    probabilities, kv = (parameters[f"formats.{key}"].value for key in ("probabilities", "kv"))
    if probabilities == "places8":
        if kv in HEAD_FORMATS:
            return []
        return [(name, "is places8, which needs formats.kv=half8", "--set kv=half8")]
    fitting = plain_numerators(activations)
    if probabilities == fitting:
        return []
    other = "int8" if activations == "int16" else "int16"
    what = f"must be {fitting} with {activations} activations"
    return [(name, what, f"--set probabilities={fitting}, or --set activations={other} beside it")]


INPUTS = "formats.activations_of"
"""The figure that says which matrices' inputs have formats of their own."""
WIDE_BLOCKS = "formats.wide"
"""That of their wide blocks."""


def inputs_of(parameters: Mapping[str, Parameter]) -> dict[str, Value]:
    """The format of each matrix's input that has its own, as `activations.NAME`."""
    if INPUTS not in parameters:
        return {}
    pairs = [one.partition("=") for one in str(parameters[INPUTS].value).split(",")]
    return {f"activations.{name}": fmt for name, _, fmt in pairs}


def _integer(parameters: Mapping[str, Parameter], name: str) -> int:
    value = parameters[name].value
    assert isinstance(value, int)
    return value


def _mesh_contradictions(parameters: Mapping[str, Parameter]) -> list[tuple[str, str]]:
    """Where a mesh does not hold together; a chip without one has nothing to contradict."""
    given = [key for key in MESH if key in parameters]
    if not given:
        return []
    if missing := [key for key in MESH if key not in parameters]:
        return [(given[0], f"needs {', '.join(missing)}: a mesh has all of them")]
    rows, columns, vector_rows = (_integer(parameters, key) for key in MESH)
    found: list[tuple[str, str]] = []
    if rows <= vector_rows or (rows - vector_rows) % 2:
        beside = rows - vector_rows
        what = (
            f"{rows} leaves {beside} rows of matrix units, not as many on each side of the centre"
        )
        found.append(("array.rows", what))
    counts = ((rows - vector_rows) * columns, vector_rows * columns)
    for key, count in zip(FOLLOWS_MESH, counts, strict=True):
        if parameters[key].value != count:
            found.append((key, f"is {shown(parameters[key].value)}, rows and columns give {count}"))
    return found


def is_settable(name: str, parameters: Mapping[str, Parameter]) -> bool:
    """Whether an option may change a figure: what a mesh determines only where there is none."""
    if name in FOLLOWS_MESH and MESH[0] in parameters:
        return False
    return KEYS[name].settable


def is_number(value: object) -> TypeGuard[int | float]:
    """Whether a TOML value is an integer or a float; `true` and `false` are neither."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def wrong_value(spec: Key, value: JSON) -> str | None:
    """What is wrong with a value, to stand after "is", or None."""
    if spec.kind == "choices":
        if not isinstance(value, tuple) or not value:
            return f"{quoted(value)}, not a list of choices"
        if wrong := [item for item in value if item not in spec.choices]:
            return f"{shown(value)}, with {quoted(wrong[0])} not among the choices"
        return f"{shown(value)}, with a repetition" if len(set(value)) < len(value) else None
    if spec.kind == "text":
        if not isinstance(value, str) or not value:
            return f"{quoted(value)}, not a text"
        fits = not spec.pattern or re.fullmatch(spec.pattern, value)
        return None if fits else f"{quoted(value)}, not of the form allowed"
    if spec.kind == "choice":
        if isinstance(value, str) and value in spec.choices:
            return None
        return f"{quoted(value)}, not among the choices"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return f"{quoted(value)}, not a number"
    if spec.kind == "int" and not isinstance(value, int):
        return f"{value!r}, not an integer"
    if not spec.low <= value <= spec.high:
        return f"{shown(value)}, outside {spec.low:g} to {spec.high:g}"
    if spec.power_of_two and isinstance(value, int) and value & (value - 1):
        return f"{shown(value)}, not a power of two"
    return None


def sound(value: JSON) -> Value:
    """A value with which nothing is wrong, by its type."""
    if isinstance(value, tuple):
        return tuple(map(str, value))
    assert isinstance(value, int | float | str)
    return value


def shown(value: JSON) -> str:
    """A value for messages: floats with six digits, lists with commas."""
    if isinstance(value, tuple):
        return ", ".join(map(shown, value))
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def quoted(value: JSON) -> str:
    """A value as it was written: texts in quotes."""
    return f"'{value}'" if isinstance(value, str) else repr(value)


def raise_all(errors: list[UserError]) -> None:
    """Raise what was found: nothing, the one error, or all of them together."""
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise UserErrors(errors)
