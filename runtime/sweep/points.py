"""The points of a sweep: what is varied, and which options of a compile each point stands for."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from itertools import product
from math import prod
from pathlib import Path

from intaglio.backend.stages import Options
from intaglio.backend.target.target import load_target
from intaglio.dialects.errors import UserError
from intaglio.dialects.json_file import parse_json
from intaglio.runtime.chip import parse_slots

OPTIONS = ("target", "context", "weights", "adapter_slots")
"""Options of a compile that can be varied as settings of the target can."""

Point = tuple[tuple[str, str], ...]
"""What is varied, in its order, each with its value."""


@dataclass(frozen=True)
class Asked:
    """What is wanted of each point.

    Attributes:
        positions: tokens to state.
        prompt: tokens of the prompt whose first answer is timed; 0: none.
        text: file that is scored with the simulator and onnxruntime; None: none.
        windows: of the text.
    """

    positions: tuple[int, ...] = ()
    prompt: int = 0
    text: str | None = None
    windows: int = 1


def parse_vary(given: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """`KEY=A,B,C` each: what is varied and its values; `|` parts values that have commas.

    Raises:
        UserError: one is not of this form, or names a key or a value twice.
    """
    found: dict[str, tuple[str, ...]] = {}
    for text in given:
        key, equals, values = text.partition("=")
        key = key.strip()
        parts = values.split("|" if "|" in values else ",")
        listed = tuple(part.strip() for part in parts)
        if not equals or not key or not all(listed):
            raise UserError(
                f"--vary {text}: not of the form key=value,value",
                hint="for example --vary l_unit.lanes=16,32,64",
            )
        if key in found:
            raise UserError(f"--vary {text}: {key} is varied twice")
        if len(set(listed)) < len(listed):
            raise UserError(f"--vary {text}: a value stands there twice")
        found[key] = listed
    return found


def grid(vary: Mapping[str, Sequence[str]]) -> Iterator[Point]:
    """Every combination; what is named last changes first."""
    for values in product(*vary.values()):
        yield tuple(zip(vary, values, strict=True))


def grid_size(vary: Mapping[str, Sequence[str]]) -> int:
    """How many combinations there are."""
    return prod(len(values) for values in vary.values())


def read_points(path: Path) -> list[Point]:
    """The points of a file: CSV with a line of keys, JSON lines, or a list in JSON.

    Raises:
        UserError: it cannot be read, or is none of these.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError("is no text", file=str(path)) from error
    try:
        if path.suffix == ".csv":
            rows: list[object] = [dict(row) for row in csv.DictReader(io.StringIO(text))]
        elif text.lstrip().startswith("["):
            content = parse_json(text, str(path))
            assert isinstance(content, list)
            rows = list(content)
        else:
            rows = [parse_json(line, str(path)) for line in text.splitlines() if line.strip()]
    except csv.Error as error:
        raise UserError(f"is no list of points: {error}", file=str(path)) from error
    if not rows:
        raise UserError("has no points", file=str(path))
    found: dict[Point, None] = {}
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict) or not all(_is_plain(one) for one in row.values()):
            raise UserError(
                f"point {number} is no object of keys and values",
                file=str(path),
                hint='a line each: {"l_unit.lanes": 64, "kv": "int8"}',
            )
        found[tuple((str(key), str(value)) for key, value in row.items())] = None
    return list(found)


def _is_plain(value: object) -> bool:
    return isinstance(value, str | int | float) and not isinstance(value, bool) and value != ""


def check_keys(points: Mapping[str, Sequence[str]], options: Options) -> None:
    """Whether the target has all that is varied, before the model is read.

    Args:
        points: keys with the values that they take.
        options: of the compile.

    Raises:
        UserError: a key or a value is wrong whatever the others are, or is set as well.
    """
    targets = [load_target(name) for name in points.get("target", (options.target,))]
    given = {setting.partition("=")[0].strip() for setting in options.settings}
    for key, values in points.items():
        if key in given:
            raise UserError(f"{key} is set for all points, and varied")
        for value in values:
            if key in OPTIONS:
                options_of(((key, value),), options)
                continue
            for target in targets:
                try:
                    target.check_option(f"{key}={value}")
                except UserError as error:
                    what = error.what.replace("--set", "--vary", 1)
                    raise UserError(what, hint=error.hint) from error


def options_of(point: Point, options: Options) -> Options:
    """The options of a compile at a point.

    Raises:
        UserError: a value is none of an option's.
    """
    settings = list(options.settings)
    for key, value in point:
        match key:
            case "target":
                options = replace(options, target=value)
            case "context":
                if not value.isdecimal() or int(value) < 1:
                    raise UserError(f"context {value}: a KV cache holds at least one token")
                options = replace(options, context=int(value))
            case "weights":
                options = replace(options, weights=value)
            case "adapter_slots":
                rank, modules = parse_slots(None if value == "0" else value)
                options = replace(options, adapter_rank=rank, adapter_modules=modules)
            case _:
                settings.append(f"{key}={value}")
    return replace(options, settings=tuple(settings))


def key_of(options: Options, asked: Asked, model: str, code: str) -> str:
    """What a point is known by: a digest of the model, the chip and its settings, and the version.

    Args:
        options: of the compile at the point.
        asked: what is wanted of it.
        model: digest of the model as it was read.
        code: digest of Intaglio's code.
    """
    target = load_target(options.target)
    figures = {name: one.to_dict() for name, one in target.parameters.items()}
    content = [asdict(options), asdict(asked), figures, model, code]
    return sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:20]
