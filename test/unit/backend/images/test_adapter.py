"""Adapters in the chip's formats: what the codes mean, what rounding loses, files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from intaglio.backend.images.adapter import (
    AdapterImage,
    encode,
    encode_site,
    floats,
    product_error,
    read_image,
    write_image,
)
from intaglio.dialects.codes import SLOT_BITS, e4m3_decode
from intaglio.dialects.errors import UserError

CODES = tuple(SLOT_BITS)


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


@pytest.mark.parametrize("code", CODES)
def test_codes_are_the_nearest(code: str):
    """Every code is the nearest there is to its number, given the scale; ternary by its rule."""
    matrix = random(7, 40) * np.exp2(np.arange(-3, 4))[:, None]
    stored = encode(matrix, code)
    steps = np.ldexp(stored.scales.astype(float), -stored.exponent)[:, None]
    error = np.abs(floats(stored) - matrix)
    if code == "ternary":
        mean = np.abs(matrix).mean(1, keepdims=True)
        np.testing.assert_array_equal(
            stored.codes.astype(int) - 1, np.clip(np.rint(matrix / mean), -1, 1)
        )
    elif code == "fp8":
        grid = np.unique(e4m3_decode(np.array([c for c in range(256) if c & 127 != 127])))
        nearest = np.abs(matrix[..., None] - grid * steps[..., None]).min(-1)
        np.testing.assert_allclose(error, nearest, atol=1e-12)
    else:
        assert (error <= steps / 2 * (1 + 1e-9)).all()
    assert stored.scales.max() >= 1 << 13 and stored.scales.min() > 0


@pytest.mark.parametrize(("code", "peak"), [("fp8", 448 << 9), ("int8", 127), ("int6", 31)])
def test_the_largest_of_a_row_takes_the_largest_code(code: str, peak: int):
    matrix = random(5, 30)
    weights = np.abs(encode(matrix, code).weights)
    assert (weights.max(1) == peak).all()
    assert (weights.argmax(1) == np.abs(matrix).argmax(1)).all()


def test_ternary_scale_has_the_least_error():
    matrix = random(4, 50)
    stored = encode(matrix, "ternary")
    best = np.square(floats(stored) - matrix).sum(1)
    for change in (0.99, 1.01):
        assert (np.square(floats(stored) * change - matrix).sum(1) > best).all()


@pytest.mark.parametrize("code", CODES)
def test_rows_of_zeros_and_tiny_rows(code: str):
    matrix = random(4, 16)
    matrix[1] = 0
    matrix[2] *= 2.0**-30
    stored = encode(matrix, code)
    assert not floats(stored)[1].any()
    # A row far below the others keeps what its mantissa can say: at most one unit.
    unit = 2.0**-stored.exponent
    assert np.abs(floats(stored)[2] - matrix[2]).max() <= unit * 448
    assert not encode(np.zeros((2, 3)), code).scales.any()


@pytest.mark.parametrize("code", CODES)
def test_exact_numbers_stay_exact(code: str):
    weights = {
        "fp8": [448, -448, 0, 0.0625],
        "int8": [127, -127, 5, 0],
        "int6": [31, -31, 1, 0],
        "ternary": [1, -1, 1, 1],
    }[code]
    matrix = np.array([weights, np.array(weights) / 4])
    np.testing.assert_array_equal(floats(encode(matrix, code)), matrix)


def test_values_that_are_not_finite():
    with pytest.raises(ValueError, match="infinities"):
        encode([[1, np.inf]], "fp8")
    with pytest.raises(ValueError, match="not int5"):
        encode([[1.0]], "int5")


@pytest.mark.parametrize("code", CODES)
def test_loss_is_that_of_the_product(code: str):
    a, b = random(6, 40), random(30, 6, seed=1)
    site = encode_site(a, b, code)
    stored, product = floats(site.b) @ floats(site.a), b @ a
    expected = np.linalg.norm(stored - product) / np.linalg.norm(product)
    assert site.loss == pytest.approx(expected, rel=1e-6)
    bounds = {"fp8": 0.04, "int8": 0.015, "int6": 0.06, "ternary": 0.75}
    assert 0 < site.loss < bounds[code]
    assert site.rank == 6


def test_integer_codes_balance_columns():
    """Columns of B of many sizes share a row's scale; A's rows take the difference."""
    a, b = random(6, 40), random(30, 6, seed=1) * 4.0 ** np.arange(6)
    a /= 4.0 ** np.arange(6)[:, None]
    for code in ("int8", "int6", "ternary"):
        plain = product_error(a, b, floats(encode(a, code)), floats(encode(b, code)))
        assert encode_site(a, b, code).loss < plain / 1.3


def test_an_untrained_adapter_loses_nothing():
    site = encode_site(random(4, 8), np.zeros((6, 4)), "fp8")
    assert site.loss == 0 and not floats(site.b).any()


def image(code: str) -> AdapterImage:
    sites = {
        "layers.0.q_proj": encode_site(random(4, 33), random(9, 4), code),
        "layers.1.v_proj": encode_site(random(2, 8), random(5, 2), code),
    }
    return AdapterImage("style", "ab12", sites)


@pytest.mark.parametrize("code", CODES)
def test_written_and_read(code: str, tmp_path: Path):
    folders = [tmp_path / "1", tmp_path / "2"]
    for folder in folders:
        folder.mkdir()
        write_image(image(code), folder, {"source": "peft"})
    for path in folders[0].iterdir():
        assert path.read_bytes() == (folders[1] / path.name).read_bytes()
    wanted, read = image(code), read_image(folders[0])
    assert (read.name, read.base_sha256) == ("style", "ab12")
    assert list(read.sites) == list(wanted.sites)
    for name, site in read.sites.items():
        for half in ("a", "b"):
            one, other = getattr(site, half), getattr(wanted.sites[name], half)
            assert (one.code, one.exponent) == (other.code, other.exponent)
            np.testing.assert_array_equal(one.codes, other.codes)
            np.testing.assert_array_equal(one.scales, other.scales)
        assert (site.rank, site.loss) == (wanted.sites[name].rank, wanted.sites[name].loss)
    assert read.worst_loss == max(site.loss for site in wanted.sites.values())
    assert min(s.loss for s in wanted.sites.values()) <= read.mean_loss <= read.worst_loss


def test_size_counts_the_bits_of_the_format():
    sizes = {code: image(code).size for code in CODES}
    scales = 2 * (4 + 9 + 2 + 5)
    assert sizes["fp8"] == sizes["int8"] == 4 * 33 + 9 * 4 + 2 * 8 + 5 * 2 + scales
    assert sizes["ternary"] == 4 * 9 + 9 * 1 + 2 * 2 + 5 * 1 + scales
    assert sizes["int6"] == 4 * 25 + 9 * 3 + 2 * 6 + 5 * 2 + scales


def test_damaged_files(tmp_path: Path):
    write_image(image("fp8"), tmp_path)
    path = tmp_path / "adapter.bin"
    data = path.read_bytes()
    path.write_bytes(data[:-1])
    with pytest.raises(UserError, match=r"adapter\.bin: is damaged"):
        read_image(tmp_path)
    path.unlink()
    with pytest.raises(UserError, match="cannot be read"):
        read_image(tmp_path)
    path.write_bytes(data)
    description = tmp_path / "adapter.json"
    content = json.loads(description.read_text())
    description.write_text(json.dumps(content | {"schema": 99}))
    with pytest.raises(UserError, match="has schema 99"):
        read_image(tmp_path)
    description.write_text("{")
    with pytest.raises(UserError, match="is no adapter"):
        read_image(tmp_path)
