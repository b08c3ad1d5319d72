"""Targets: the chip as a strict, versioned TOML file describes it, each figure with its origin.

Origins: `paper` (abstract, or a quoted sentence, figure or table), `secondary` (an article about
it), `derived` (by a stated formula, which is evaluated and must agree), `assumed` (our reading,
with the range in which it may lie and the reason). An option given by `--set` has origin `option`.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import NamedTuple

from intaglio.backend.target.formula import Value, names
from intaglio.backend.target.reader import read_document
from intaglio.backend.target.schema import FOLLOWS_MESH, INPUT_FORMATS, KEYS, SCHEMA, WIRES, Key
from intaglio.backend.target.values import (
    INPUTS,
    WIDE_BLOCKS,
    Parameter,
    contradictions,
    derive,
    is_settable,
    raise_all,
    shown,
    wrong_value,
)
from intaglio.dialects.errors import UserError, meant, meant_key
from intaglio.dialects.json_file import long_number, too_deep
from intaglio.dialects.machine import Machine
from intaglio.dialects.number_ranges import ranges_text, read_ranges

_FOLDER = Path(__file__).parents[1] / "targets"
_SUITED = ("int4", "int6", "int8", "int3", "int2", "ternary")
"""Codes to propose for float weights: four bits, as models mostly have, else what loses least."""


@dataclass(frozen=True)
class Target:
    """A chip to compile for.

    `parameters` maps full names (`l_unit.lanes`) to figures in the order of the schema; `sources`
    maps the keys used in `Parameter.source` to what they stand for; `options` are the settings
    applied, as they were written.
    """

    name: str
    schema: int
    description: str
    parameters: Mapping[str, Parameter]
    sources: Mapping[str, str]
    options: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> Value:
        return self.parameters[name].value

    def integer(self, name: str) -> int:
        """Value of an integer parameter, by full name."""
        value = self[name]
        if not isinstance(value, int):
            raise TypeError(f"{name} is no integer")
        return value

    def number(self, name: str) -> float:
        """Value of a numeric parameter, by full name."""
        value = self[name]
        if not isinstance(value, int | float):
            raise TypeError(f"{name} is no number")
        return value

    def text(self, name: str) -> str:
        """Value of a format or policy parameter, by full name."""
        value = self[name]
        if not isinstance(value, str):
            raise TypeError(f"{name} is no single choice")
        return value

    @cached_property
    def total_l_units(self) -> int:
        """L-Units of the chip."""
        return self.integer("array.matrix_units") * self.integer("array.l_units")

    @cached_property
    def rom_bytes(self) -> int:
        """ROM of all L-Units together, rounded down to a byte."""
        return self.total_l_units * self.integer("l_unit.rom_bits") // 8

    @cached_property
    def banks(self) -> int:
        """ROM banks of the chip; where ROM is logic, those that its whole capacity would take."""
        bank = self.integer("l_unit.bank_words") * self.integer("l_unit.bank_bits")
        bits = self.integer("l_unit.rom_bits")
        if self.text("l_unit.rom") == "logic":
            return -(-bits * self.total_l_units // bank)
        return max(1, round(bits / bank)) * self.total_l_units

    @cached_property
    def adapter_kv_sram_bytes(self) -> int:
        """SRAM of all H-Units together."""
        return self.integer("array.h_units") * self.integer("h_unit.sram_bytes")

    @cached_property
    def vector_sram_bytes(self) -> int:
        """SRAM of all vector units together."""
        return self.integer("array.vector_units") * self.integer("vector.sram_bytes")

    @cached_property
    def sram_bytes(self) -> int:
        """SRAM of the chip."""
        return self.adapter_kv_sram_bytes + self.vector_sram_bytes

    @cached_property
    def peak_macs_per_second(self) -> int:
        """Products a second of weights of one plane with activations of one pass, all L-Units."""
        return (
            self.total_l_units * self.integer("l_unit.lanes") * self.integer("clock.frequency_hz")
        )

    @property
    def mixed_weights(self) -> str | None:
        """How a float model is meant to be quantised, as `--weights` takes it; None: not stated."""
        return self.text("policy.weights") if "policy.weights" in self.parameters else None

    @property
    def suited_weights(self) -> str:
        """A rounding of float weights that the layers can hold, as `--weights` takes it.

        In the published groups, or in words of the L-Unit.
        """
        code = next(one for one in _SUITED if one in self._choices("formats.weights"))
        if code == "ternary":
            return code
        return f"{code}:{self._optional('l_unit.group') or self.integer('l_unit.lanes')}"

    def _optional(self, name: str) -> int:
        """Value of an integer parameter that a target may do without: 0."""
        return self.integer(name) if name in self.parameters else 0

    def _choices(self, name: str) -> tuple[str, ...]:
        value = self[name]
        assert isinstance(value, tuple)
        return value

    @property
    def _retention_cycles(self) -> int:
        name = "external.retention_us"
        if name not in self.parameters:
            return 0
        return int(self.number(name) * self.integer("clock.frequency_hz") // 1_000_000)

    @property
    def _rom_logic(self) -> str:
        name = "policy.rom_logic"
        return self.text(name) if name in self.parameters else "table"

    @property
    def _expert_power(self) -> str:
        name = "policy.expert_power"
        return self.text(name) if name in self.parameters else "layer"

    @property
    def _fractions(self) -> str:
        """Whoever sets fraction bits sets those of all values."""
        return "set" if self.parameters["formats.fraction_bits"].origin == "option" else "model"

    def _lines(self, figure: str) -> tuple[str, ...]:
        """What a figure of matrices' inputs says, `NAME=VALUE` each."""
        if figure not in self.parameters:
            return ()
        return tuple(self.text(figure).split(_OF_INPUTS[figure].between))

    @cached_property
    def wire_ends(self) -> dict[str, tuple[Value, Value]]:
        """Figures that follow from wires and adders on the way, by name: the value with all of
        those that are assumed at the lower ends of their ranges, and at the upper ends."""
        moved = {
            name: limits
            for name in WIRES
            if (one := self.parameters.get(name))
            and one.origin == "assumed"
            and (limits := one.range)
        }
        hanging = [
            name
            for name, one in self.parameters.items()
            if one.formula is not None and not moved.keys().isdisjoint(names(one.formula))
        ]
        found: list[dict[str, Parameter]] = []
        for end in (0, 1):
            parameters = dict(self.parameters)
            for name, limits in moved.items():
                parameters[name] = replace(parameters[name], value=limits[end])
            derive(parameters, set(moved))
            found.append(parameters)
        low, high = found
        return {name: (low[name].value, high[name].value) for name in hanging}

    def machine(self) -> Machine:
        """The figures the passes need, without origins."""
        vector_units = self.integer("array.vector_units")
        latencies = {
            name.removeprefix("latency."): self._optional(name)
            for name in KEYS
            if name.startswith("latency.")
        }
        return Machine(
            name=self.name,
            clock_hz=self.integer("clock.frequency_hz"),
            tiles=self.integer("array.matrix_units"),
            l_units=self.integer("array.l_units"),
            lanes=self.integer("l_unit.lanes"),
            cell=self.text("l_unit.cell"),
            plane_bits=self.integer("l_unit.plane_bits"),
            pass_bits=self.integer("l_unit.pass_bits"),
            rom=self.text("l_unit.rom"),
            rom_bits=self.integer("l_unit.rom_bits"),
            bank_words=self.integer("l_unit.bank_words"),
            bank_bits=self.integer("l_unit.bank_bits"),
            h_units=self.integer("array.h_units"),
            attention_lanes=self.integer("h_unit.attention_lanes"),
            query_parallel=self.integer("h_unit.query_parallel"),
            multiplier_bits=self.integer("h_unit.multiplier_bits"),
            sram_bytes=self.integer("h_unit.sram_bytes"),
            kv_port_bytes=self.integer("h_unit.kv_port_bytes"),
            load_bytes=self.integer("h_unit.load_bytes"),
            kv_on_die=self._optional("external.kv_on_die_tokens"),
            external_bytes=self._optional("external.bytes_per_cycle"),
            external_latency=self._optional("external.latency_cycles"),
            retention_cycles=self._retention_cycles,
            shared_arrays=int(self.text("array.attention") == "shared"),
            vector_lanes=vector_units * self.integer("vector.lanes"),
            vector_sram_bytes=self.vector_sram_bytes,
            results_per_cycle=self.integer("network.results_per_cycle"),
            weights=self._choices("formats.weights"),
            head_weights=self._choices("formats.head_weights"),
            adapter=self.text("formats.adapter"),
            activations=self.text("formats.activations"),
            kv=self.text("formats.kv"),
            probabilities=self.text("formats.probabilities"),
            embedding=self.text("formats.embedding"),
            placement=self.text("policy.placement"),
            adapter_sites=tuple(s for s in self._choices("policy.adapter_sites") if s != "all"),
            embedding_store=self.text("policy.embedding_store"),
            head_store=self.text("policy.head_store"),
            fraction_bits=self.integer("formats.fraction_bits"),
            accumulators=self._optional("l_unit.accumulators"),
            block=self._optional("formats.block"),
            rom_logic=self._rom_logic,
            contexts=self.integer("policy.in_flight"),
            expert_power=self._expert_power,
            fractions=self._fractions,
            activations_of=self._lines(INPUTS),
            wide_of=self._lines(WIDE_BLOCKS),
            **latencies,
        )

    def with_options(self, options: Iterable[str]) -> Target:
        """This target with settings applied; derived figures follow what their formulas name.

        Args:
            options: `key=value` each: a full name (`l_unit.lanes=16`), a format without its
                section (`activations=int16`), that of one matrix's input
                (`activations.down_proj=int16`), its wide blocks (`wide.down_proj=3,17-20`), or
                `wide=attention`. Of two settings of one key the last holds.

        Raises:
            UserError: an unknown key or a value that is not allowed; all of them are named.
        """
        options = tuple(options)
        if not options:
            return self
        errors: list[UserError] = []
        parameters = dict(self.parameters)
        changed: set[str] = set()
        for option in options:
            try:
                if (inputs := _inputs(option)) is not None:
                    parameters[INPUTS] = _told(parameters, INPUTS, inputs, option)
                    continue
                if (blocks := _blocks(option)) is not None:
                    parameters[WIDE_BLOCKS] = _told(parameters, WIDE_BLOCKS, blocks, option)
                    continue
                name, value = self._option(option)
            except UserError as error:
                errors.append(error)
                continue
            before = self.parameters[name]
            parameters[name] = replace(
                before,
                value=value,
                origin="option",
                source=f"--set {option}",
                formula=None,
                reason=f"{shown(before.value)} ({before.origin}) in the target"
                + _outside(value, before.range),
            )
            changed.add(name)
        raise_all(errors)
        prefix = f"--set {' --set '.join(options)}"
        try:
            derive(parameters, changed)
        except UserError as error:
            raise UserError(f"{prefix}: {error.what}", hint=error.hint) from error
        errors.extend(
            UserError(f"{prefix}: {name} would be {problem}")
            for name in parameters
            if (problem := wrong_value(KEYS[name], parameters[name].value))
        )
        errors.extend(
            UserError(f"{prefix}: {name} {what}", hint=hint)
            for name, what, hint in contradictions(parameters)
        )
        raise_all(errors)
        return replace(self, parameters=parameters, options=self.options + options)

    def check_option(self, option: str) -> None:
        """Whether a setting by itself is one of this target's, whatever else is set beside it.

        Raises:
            UserError: it has no such key, or the value is none of the key's.
        """
        if _inputs(option) is None and _blocks(option) is None:
            _ = self._option(option)

    def _option(self, option: str) -> tuple[str, Value]:
        """Full name and value of one setting, or a `UserError`."""
        key, equals, text = option.partition("=")
        key, text = key.strip(), text.strip()
        if not equals or not text:
            raise UserError(f"--set {option}: not of the form key=value")
        name = key if "." in key else f"formats.{key}"
        settable = [name for name in self.parameters if is_settable(name, self.parameters)]
        if name in self.parameters and name not in settable:
            raise UserError(
                f"--set {option}: {name} cannot be set ({KEYS[name].meaning})",
                hint=_instead(name),
            )
        if name not in settable:
            optional = name in KEYS and not KEYS[name].required and is_settable(name, {})
            raise UserError(
                f"--set {option}: target '{self.name}' has no parameter '{key}'",
                hint=f"a target file may have it: copy this one and add {key} "
                f"({KEYS[name].meaning}) with its origin; docs/targets.md"
                if optional
                else meant_key(key, _short(settable))
                + "`intaglio targets` with its name or file lists all",
            )
        spec = KEYS[name]
        if spec.kind in ("choice", "choices"):
            limits = self.parameters[name].range
            spec = replace(spec, choices=tuple(map(str, limits or spec.choices)))
        value = _parse(spec, text)
        if problem := wrong_value(spec, value):
            raise UserError(
                f"--set {option}: {name} is {problem}", hint=f"allowed: {spec.allowed()}"
            )
        return name, value


def target_names() -> tuple[str, ...]:
    """Names of the targets that come with the compiler, sorted."""
    return tuple(sorted(path.stem for path in _FOLDER.glob("*.toml")))


def load_target(name_or_path: str | Path) -> Target:
    """Read and check a target.

    Args:
        name_or_path: a name from `target_names()`, or the path of a target file: anything that
            ends in `.toml` or has a folder in it.

    Raises:
        UserError: no such target, or a file that is not a sound description; every fault found is
            named with file, section and key.
    """
    if (
        isinstance(name_or_path, Path)
        or name_or_path.endswith(".toml")
        or "/" in name_or_path
        or "\\" in name_or_path
    ):
        path = Path(name_or_path)
        file_name = str(name_or_path)
    else:
        if name_or_path not in target_names():
            raise UserError(
                f"no target is called '{name_or_path}'",
                hint=meant(name_or_path, target_names())
                + f"targets: {', '.join(target_names())}; or give the path of a .toml file",
            )
        path = _FOLDER / f"{name_or_path}.toml"
        file_name = path.name
    try:
        text = path.read_bytes().decode("utf-8")
    except OSError as error:
        raise UserError(
            f"cannot be read ({error.strerror or error})",
            file=file_name,
            hint=f"targets that come with the compiler: {', '.join(target_names())}",
        ) from error
    except UnicodeDecodeError as error:
        raise UserError("is not UTF-8 text", file=file_name) from error
    return _described(text, file_name)


@lru_cache(maxsize=16)
def _described(text: str, file_name: str) -> Target:
    """The target that a file's text describes; a compile asks for its own many times."""
    try:
        document = tomllib.loads(text)
    except RecursionError as error:
        raise UserError(too_deep(), file=file_name) from error
    except ValueError as error:
        what = long_number(error) or f"is not valid TOML: {error}"
        raise UserError(what, file=file_name) from error
    read = read_document(document, file_name)
    return Target(read.name, SCHEMA, read.description, read.parameters, read.sources)


def _parse(spec: Key, text: str) -> Value:
    """An option's text as a value; what cannot be one stays text and is refused later."""
    if spec.kind == "choices":
        return tuple(item.strip() for item in text.split(","))
    if spec.kind == "choice":
        return text
    try:
        return int(text)
    except ValueError:
        pass
    try:
        number = float(text)
    except ValueError:
        return text
    return int(number) if spec.kind == "int" and number.is_integer() else number


WIDE: Mapping[str, tuple[str, ...]] = {"attention": ("q_proj", "k_proj", "v_proj", "o_proj")}
"""What `wide=NAME` means: inputs of these matrices in 16 bits."""


def _inputs(option: str) -> dict[str, str] | None:
    """The matrices whose inputs a setting gives a format; None: it is about something else.

    Raises:
        UserError: it is not understood.
    """
    key, equals, text = option.partition("=")
    key, text = key.strip().removeprefix("formats."), text.strip()
    if key == "wide" and equals:
        if text not in WIDE:
            raise UserError(
                f"--set {option}: nothing is called '{text}'", hint=f"allowed: {', '.join(WIDE)}"
            )
        return dict.fromkeys(WIDE[text], "int16")
    section, dot, name = key.partition(".")
    if section != "activations" or not dot:
        return None
    if not name or "," in name or not text:
        raise UserError(
            f"--set {option}: not of the form activations.NAME=FORMAT",
            hint="NAME is a matrix, such as qkv_proj, down_proj or lm_head",
        )
    if text not in INPUT_FORMATS:
        raise UserError(
            f"--set {option}: {key} is '{text}', not among the choices",
            hint=f"allowed: one of {', '.join(INPUT_FORMATS)}",
        )
    return {name: text}


def _blocks(option: str) -> dict[str, str] | None:
    """The matrix of whose input a setting names wide blocks, and which; None: it is about something
    else.

    Raises:
        UserError: it is not understood.
    """
    key, _, text = option.partition("=")
    key, text = key.strip().removeprefix("formats."), text.strip().replace(" ", "")
    section, dot, name = key.partition(".")
    if section != "wide" or not dot:
        return None
    if not name or "," in name or ";" in name or not text:
        raise UserError(
            f"--set {option}: not of the form wide.NAME=BLOCKS",
            hint="NAME is a matrix, such as qkv_proj or down_proj; BLOCKS are numbers of blocks of "
            "its input, such as 3,17-20, or all",
        )
    if text == "all":
        return {name: text}
    try:
        return {name: ranges_text(read_ranges(text))}
    except ValueError as error:
        raise UserError(f"--set {option}: {error}", hint="or all") from error


class _OfInputs(NamedTuple):
    """Of a figure of matrices' inputs what stands between two, its setting, and its reason."""

    between: str
    setting: str
    reason: str


_OF_INPUTS = {
    INPUTS: _OfInputs(
        ",",
        "activations.NAME=FORMAT",
        "of these matrices alone; all others take formats.activations",
    ),
    WIDE_BLOCKS: _OfInputs(
        ";", "wide.NAME=BLOCKS", "of these blocks alone; all others have 8 bits"
    ),
}


def _told(
    parameters: Mapping[str, Parameter], figure: str, inputs: Mapping[str, str], option: str
) -> Parameter:
    """A figure of matrices' inputs with some more, or some told again."""
    before, own = parameters.get(figure), _OF_INPUTS[figure]
    pairs: dict[str, str] = {}
    if before is not None:
        pairs = dict(one.split("=") for one in str(before.value).split(own.between))
    pairs |= inputs
    source = f"--set {option}"
    if before is not None and before.origin == "option":
        source = f"{before.source} {source}"
    return Parameter(
        own.between.join(f"{name}={one}" for name, one in pairs.items()),
        "option",
        source=source,
        reason=own.reason,
    )


def _instead(name: str) -> str:
    """What to do about a figure that cannot be set."""
    if name in FOLLOWS_MESH:
        return "--set array.rows=N or array.columns=N"
    if name in _OF_INPUTS:
        return f"--set {_OF_INPUTS[name].setting}"
    if name == "policy.weights":
        return "--weights FORMAT"
    return "a target file of your own (--target my.toml) may state another"


def _short(names: Iterable[str]) -> list[str]:
    """Keys as options take them: those of formats without their section."""
    return [name.removeprefix("formats.") for name in names]


def _outside(value: Value, limits: tuple[int | float | str, ...] | None) -> str:
    if not isinstance(value, int | float) or limits is None:
        return ""
    low, high = limits
    assert isinstance(low, int | float)
    assert isinstance(high, int | float)
    return "" if low <= value <= high else "; outside its assumed range"
