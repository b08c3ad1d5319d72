"""Adapters in the chip's formats: what goes through the load port into the adapter slots.

A LoRA branch is y += B (A x) with A [r, K], B [N, r] and the scaling alpha / r folded into B. On
the chip both are matrices of small codes with one int16 scale mantissa for each row and one
exponent for each matrix (`dialects/codes.py`, `AdapterMatrix`). An adapter of an output folder is
`adapters/NAME/adapter.json` with `adapter.bin`:

- `adapter.json`: schema, name, hash of the base, and for each site the rank, the loss of the
  conversion, and code, exponent and places of A and B in `adapter.bin`.
- `adapter.bin`: for each site A's codes, A's scales (int16, little endian), B's codes, B's scales.
  Codes are packed low bits first in containers of 2 or 8 bits, rows padded to bytes.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from intaglio.backend.images.adapter_losses import Lines, worst_lines
from intaglio.backend.images.ternary_adapter import absmean, fitted
from intaglio.backend.output.output import ADAPTER_BYTES, ADAPTER_DESCRIPTION, write_json
from intaglio.backend.output.whole import naming
from intaglio.dialects.codes import (
    SLOT_BITS,
    AdapterMatrix,
    container_bits,
    e4m3_encode,
    pack,
    unpack,
)
from intaglio.dialects.errors import UserError
from intaglio.dialects.formats import E4M3_LIMIT
from intaglio.dialects.json_file import JSON

if TYPE_CHECKING:
    from intaglio.backend.program.types import Parameter

SCHEMA = 1

_SCALE_LIMIT = (1 << 15) - 1
_FP8_FRACTION = 20
"""Fraction bits with which a float is handed to the E4M3 rounding."""
_TRAINED_TERNARY = 0.02
"""Largest loss of a site whose matrices are taken to have been ternary before."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class SiteImage:
    """The adapter of one site.

    Attributes:
        rank: r, at most the slot's.
        a: codes [r, K].
        b: codes [N, r], the scaling included.
        loss: relative Frobenius error of B A against the float adapter's.
        lines: the row and the column of B A that lose most; None where an older version wrote it.
    """

    rank: int
    a: AdapterMatrix
    b: AdapterMatrix
    loss: float = 0.0
    lines: Lines | None = None


@dataclass(frozen=True, eq=False)
class AdapterImage:
    """An adapter as the chip takes it.

    Attributes:
        name: under which it was added.
        base_sha256: identity of the engraved base it was converted for (`base_hash`).
        sites: by name, `layers.3.q_proj`, in the program's order; sites without an entry have
            rank 0.
    """

    name: str
    base_sha256: str
    sites: Mapping[str, SiteImage]

    def __repr__(self) -> str:
        return f"AdapterImage({self.name!r}, {', '.join(self.figures().values())})"

    def _repr_html_(self) -> str:
        rows = {"adapter": self.name, **self.figures()}
        cells = (f"<tr><th>{key}</th><td>{escape(value)}</td></tr>" for key, value in rows.items())
        return f"<table>{''.join(cells)}</table>"

    def figures(self) -> dict[str, str]:
        """What it is in a few words, by title."""
        codes = sorted({m.code for site in self.sites.values() for m in (site.a, site.b)})
        rank = max((site.rank for site in self.sites.values()), default=0)
        return {
            "sites": f"{len(self.sites)} site{'' if len(self.sites) == 1 else 's'}",
            "rank": f"rank {rank}",
            "format": " and ".join(codes) or "empty",
            "size": f"{self.size:,} bytes",
            "loss": f"loses {self.worst_loss:.2%} at worst",
        }

    @property
    def size(self) -> int:
        """Bytes of codes and scales in SRAM, each row filled up to a byte."""
        return sum(
            _stored_bytes(matrix) for site in self.sites.values() for matrix in (site.a, site.b)
        )

    @property
    def worst_loss(self) -> float:
        """The largest loss of a site."""
        return max((site.loss for site in self.sites.values()), default=0.0)

    @property
    def mean_loss(self) -> float:
        """The mean of the sites' losses."""
        losses = [site.loss for site in self.sites.values()]
        return sum(losses) / len(losses) if losses else 0.0


def _stored_bytes(matrix: AdapterMatrix) -> int:
    rows, columns = matrix.codes.shape
    return rows * (-(-columns * SLOT_BITS[matrix.code] // 8) + 2)


# --- from floats --------------------------------------------------------------------------------


def encode(values: npt.ArrayLike, code: str) -> AdapterMatrix:
    """A float matrix [N, K] in a format of the chip.

    A row's scale is what maps its largest magnitude to the largest code: 448 for fp8, 127 for int8,
    31 for int6. It is rounded up to a mantissa, so that nothing is clipped, and the codes are
    rounded with the scale as rounded. For ternary the codes are those of the absmean rule of
    BitNet, BitROM and TOM, ``clip(round(w / mean|w|), -1, 1)`` within a row; the scale is then the
    one with the least squared error for these codes.

    The exponent, common to the rows, is the largest at which all mantissas fit 15 bits and a sign.

    Args:
        values: finite, [N, K].
        code: fp8, int8, int6 or ternary.

    Raises:
        ValueError: a value is not finite, or the code is unknown.
    """
    matrix = np.asarray(values, np.float64)
    if not np.isfinite(matrix).all():
        raise ValueError("weights contain infinities or not-a-number")
    if code == "ternary":
        return _ternary(*absmean(matrix))
    limit = {"fp8": E4M3_LIMIT, "int8": 127, "int6": 31}.get(code)
    if limit is None:
        raise ValueError(f"adapters are {', '.join(SLOT_BITS)}, not {code}")
    mantissas, exponent = _mantissas(np.abs(matrix).max(1, initial=0.0) / limit, np.ceil)
    scaled = _divided(matrix, mantissas, exponent)
    if code == "fp8":
        units = np.rint(np.ldexp(scaled, _FP8_FRACTION)).astype(np.int64)
        codes = e4m3_encode(units, _FP8_FRACTION)
        # The chip has one zero.
        codes[codes == 128] = 0
    else:
        codes = np.clip(np.rint(scaled), -limit, limit).astype(np.int64) + (limit + 1)
    return AdapterMatrix(code, codes.astype(np.uint8), mantissas, exponent)


def _ternary(digits: Floats, scales: Floats) -> AdapterMatrix:
    """Ternary codes [N, K] with scales [N] of at least 0."""
    mantissas, exponent = _mantissas(scales, np.rint)
    return AdapterMatrix("ternary", (digits + 1).astype(np.uint8), mantissas, exponent)


def _mantissas(scales: Floats, rounding: Any) -> tuple[npt.NDArray[np.int16], int]:
    """Scales of at least 0 as mantissas of at most 15 bits with one exponent."""
    largest = float(scales.max(initial=0.0))
    if largest == 0:
        return np.zeros(scales.shape, np.int16), 0
    exponent = 15 - int(np.frexp(largest)[1])
    if rounding(math.ldexp(largest, exponent)) > _SCALE_LIMIT:
        exponent -= 1
    return rounding(np.ldexp(scales, exponent)).astype(np.int16), exponent


def _divided(matrix: Floats, mantissas: npt.NDArray[np.int16], exponent: int) -> Floats:
    scales = np.ldexp(mantissas.astype(np.float64), -exponent)[:, None]
    return np.divide(matrix, scales, out=np.zeros_like(matrix), where=scales > 0)


def encode_site(
    a: npt.ArrayLike, b: npt.ArrayLike, code: str, slot_rank: int | None = None
) -> SiteImage:
    """A site's float adapter, A [r, K] and B [N, r], in a format of the chip, with its loss.

    B A does not change when a column of B is divided by a number and the same row of A multiplied
    by it. For integer codes that can help: B's rows have one scale each, and lose small columns
    beside large ones, while each row of A has its own. So with them it is tried to make all
    columns of B of one size, up to powers of two, and kept if that loses less.

    A float adapter in three values loses half of itself that way, so there the codes are then
    fitted to the product, with all the rows that the slot has
    (`backend/images/ternary_adapter.py`). One that was trained with three values stays as it is.

    Args:
        a: float [r, K].
        b: float [N, r].
        code: fp8, int8, int6 or ternary.
        slot_rank: of the chip's slot, at least r; r without it.

    Returns:
        The stored adapter; of rank r, or of the slot's where that is larger and the adapter was
        fitted.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    balances = [np.ones(len(a))]
    if code != "fp8":
        sizes = np.sqrt((b * b).mean(0))
        balances.append(np.exp2(np.rint(np.log2(np.where(sizes > 0, sizes, 1.0)))))

    def site(stored_a: AdapterMatrix, stored_b: AdapterMatrix) -> SiteImage:
        loss = product_error(a, b, floats(stored_a), floats(stored_b))
        return SiteImage(stored_a.rows, stored_a, stored_b, loss)

    found = [site(encode(a * one[:, None], code), encode(b / one, code)) for one in balances]
    best = min(found, key=lambda site: site.loss)
    if code == "ternary" and best.loss > _TRAINED_TERNARY:
        digits_a, scales_a, digits_b, scales_b = fitted(a, b, max(len(a), slot_rank or 0))
        other = site(_ternary(digits_a, scales_a), _ternary(digits_b, scales_b))
        best = min(best, other, key=lambda site: site.loss)
    return replace(best, lines=worst_lines(a, b, floats(best.a), floats(best.b)))


def floats(matrix: AdapterMatrix) -> Floats:
    """The numbers that a matrix stands for."""
    return np.ldexp(matrix.values().astype(np.float64), -matrix.exponent)


def product_error(a: Floats, b: Floats, stored_a: Floats, stored_b: Floats) -> float:
    """Relative Frobenius error of `stored_b stored_a` against `b a`, without forming either.

    With the error as one product [B', -B] [A'; A] of inner width 2r, its squared norm is the trace
    of the product of two Gram matrices [2r, 2r].
    """
    left, right = np.hstack([stored_b, -b]), np.vstack([stored_a, a])
    error = np.trace((left.T @ left) @ (right @ right.T))
    whole = np.trace((b.T @ b) @ (a @ a.T))
    return math.sqrt(max(error, 0.0) / whole) if whole > 0 else 0.0


# --- identity of the base -----------------------------------------------------------------------


def base_hash(parameters: Mapping[str, Parameter]) -> str:
    """SHA-256 that identifies what is engraved: keys and contents of all parameters.

    Args:
        parameters: `Program.parameters`.

    Returns:
        The hash of the lines ``key sha256...`` in the order of the keys. Placement and target do
        not enter, only what was engraved.
    """
    lines = sorted(
        " ".join([p.key, *(part.sha256 for part in p.parts)])
        for p in parameters.values()
        if p.codes is not None
    )
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


# --- files --------------------------------------------------------------------------------------


def write_image(image: AdapterImage, folder: Path, notes: Mapping[str, JSON] | None = None) -> None:
    """Writes `adapter.json` and `adapter.bin` into a folder; the same image gives the same bytes.

    Args:
        image: the adapter.
        folder: an existing folder.
        notes: more that `adapter.json` is to say, such as where the adapter came from.
    """
    data = bytearray()
    sites: dict[str, JSON] = {}

    def put(content: bytes) -> dict[str, int]:
        part = {"offset": len(data), "size": len(content)}
        data.extend(content)
        return part

    for name, site in image.sites.items():
        entry: dict[str, JSON] = {"rank": site.rank, "loss": site.loss}
        if site.lines is not None:
            entry["lines"] = asdict(site.lines)
        for half, matrix in (("a", site.a), ("b", site.b)):
            packed = pack(matrix.codes, container_bits(SLOT_BITS[matrix.code]))
            entry[half] = {
                "dims": list(matrix.codes.shape),
                "code": matrix.code,
                "exponent": matrix.exponent,
                "codes": put(packed.tobytes()),
                "scales": put(matrix.scales.astype("<i2").tobytes()),
            }
        sites[name] = entry
    with naming(folder / ADAPTER_BYTES):
        (folder / ADAPTER_BYTES).write_bytes(data)
    content = {
        "schema": SCHEMA,
        "name": image.name,
        "base_sha256": image.base_sha256,
        **(notes or {}),
        "sha256": hashlib.sha256(data).hexdigest(),
        "sites": sites,
    }
    write_json(folder / ADAPTER_DESCRIPTION, content)


def read_image(folder: Path) -> AdapterImage:
    """Reads what `write_image` wrote.

    Raises:
        UserError: a file is missing, damaged, or of another version.
    """
    path, again = folder / ADAPTER_DESCRIPTION, "remove the adapter and add it again"
    try:
        content = json.loads(path.read_text())
        if content["schema"] != SCHEMA:
            raise UserError(
                f"has schema {content['schema']}, this version reads {SCHEMA}",
                file=str(path),
                hint=again,
            )
        data = (folder / ADAPTER_BYTES).read_bytes()
        if hashlib.sha256(data).hexdigest() != content["sha256"]:
            raise UserError("is damaged", file=str(folder / ADAPTER_BYTES), hint=again)
        sites = {
            name: SiteImage(
                rank=entry["rank"],
                a=_matrix(entry["a"], data),
                b=_matrix(entry["b"], data),
                loss=entry["loss"],
                lines=Lines(**entry["lines"]) if "lines" in entry else None,
            )
            for name, entry in content["sites"].items()
        }
        return AdapterImage(content["name"], content["base_sha256"], sites)
    except OSError as error:
        raise UserError(
            f"cannot be read: {error.strerror}", file=str(folder), hint=again
        ) from error
    except (ValueError, KeyError, TypeError, RecursionError, OverflowError) as error:
        raise UserError(f"is no adapter: {error}", file=str(path), hint=again) from error


def _matrix(entry: Mapping[str, Any], data: bytes) -> AdapterMatrix:
    rows, columns = entry["dims"]

    def part(of: Mapping[str, int]) -> npt.NDArray[np.uint8]:
        return np.frombuffer(data, np.uint8, of["size"], of["offset"])

    bits = container_bits(SLOT_BITS[entry["code"]])
    return AdapterMatrix(
        entry["code"],
        unpack(part(entry["codes"]).reshape(rows, -1), bits, columns),
        part(entry["scales"]).view("<i2").astype(np.int16),
        entry["exponent"],
    )
