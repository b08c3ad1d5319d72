"""What rows and columns of an adapter's product lose, against the products written out."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from intaglio.backend.images.adapter import encode_site, floats
from intaglio.backend.images.adapter_losses import LIMITS, Floats, worst_lines


def matrices(rank: int, seed: int = 0) -> tuple[Floats, Floats]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(rank, 96)), rng.normal(size=(80, rank))


@pytest.mark.parametrize("rank", [1, 3, 16])
@pytest.mark.parametrize("code", ["fp8", "int8", "int6", "ternary"])
def test_worst_lines(rank: int, code: str) -> None:
    a, b = matrices(rank)
    b[11] = 0
    a[:, 5] = 0
    site = encode_site(a, b, code)
    product, stored = b @ a, floats(site.b) @ floats(site.a)
    size = np.linalg.norm(product, axis=1)
    used = size > 0
    rows = np.zeros(80)
    rows[used] = np.linalg.norm(stored - product, axis=1)[used] / size[used]
    each = np.where(used, size, np.inf)[:, None]
    whole = np.linalg.norm(product / each, axis=0)
    columns = np.linalg.norm((stored - product) / each, axis=0)
    columns /= np.maximum(whole, np.median(whole[whole > 0]))
    found = site.lines
    assert found is not None and found == worst_lines(a, b, floats(site.a), floats(site.b))
    assert (found.row, found.column) == (rows.argmax(), columns.argmax())
    assert found.row_loss == pytest.approx(rows.max(), rel=1e-6)
    assert found.column_loss == pytest.approx(columns.max(), rel=1e-6)


@pytest.mark.parametrize("rank", [1, 2, 8])
@pytest.mark.parametrize("code", ["fp8", "int8", "int6"])
@pytest.mark.parametrize("draw", ["normal", "laplace", "uniform"])
def test_ordinary_adapters_are_far_from_a_warning(rank: int, code: str, draw: str) -> None:
    rng = np.random.default_rng(2)
    a, b = (getattr(rng, draw)(size=size) for size in ((rank, 96), (80, rank)))
    lines = encode_site(a, b, code).lines
    assert lines is not None and not lines.noteworthy(code)
    assert max(lines.row_loss, lines.column_loss) < LIMITS[code] / 1.5


def large_row(a: Floats, b: Floats) -> None:
    b[7] *= 1e12


def large_element_of_b(a: Floats, b: Floats) -> None:
    b[7, 3] *= 1e12


def large_element_of_a(a: Floats, b: Floats) -> None:
    a[2, 5] *= 1e12


@pytest.mark.parametrize("change", [large_row, large_element_of_b, large_element_of_a])
@pytest.mark.parametrize("code", ["fp8", "int8", "int6", "ternary"])
def test_what_large_ones_hide(change: Callable[[Floats, Floats], None], code: str) -> None:
    """The loss of the whole product can say nothing; that of the worst row or column does."""
    a, b = matrices(4)
    change(a, b)
    site = encode_site(a, b, code)
    assert site.lines is not None
    assert max(share for _, share in site.lines.noteworthy(code)) > LIMITS[code]
    assert site.loss < 0.6


def test_zeros_lose_nothing() -> None:
    a, b = matrices(4)
    lines = encode_site(a, b * 0, "fp8").lines
    assert lines is not None and lines.row_loss == lines.column_loss == 0
