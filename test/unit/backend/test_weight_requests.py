"""What a compile asks of the import: rounding in the target's mix, codes that the chip has."""

from __future__ import annotations

import pytest

from intaglio.backend.compile import cells, requested_weights
from intaglio.backend.stages import Options
from intaglio.backend.target import load_target
from intaglio.dialects.errors import UserError


def test_the_mix_of_a_target() -> None:
    assert requested_weights(Options("hc1", weights="target")) == load_target("hc1").mixed_weights
    assert requested_weights(Options("hc1", weights="int4:32")) == "int4:32"
    assert requested_weights(Options("hc1")) is None


def test_a_target_without_a_mix() -> None:
    with pytest.raises(UserError, match="roma does not say") as caught:
        requested_weights(Options("roma", weights="target"))
    assert "int4" in (caught.value.hint or "")


def test_codes_are_those_of_layers_and_head() -> None:
    assert cells(Options("hc1")) == ("ternary", "int2", "int3", "int4", "int6")
    assert cells(Options("tom")) == ("ternary",)
    assert cells(Options("roma", emit="rom")) == ()
