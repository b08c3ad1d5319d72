"""Adapters against context on full-size chips."""

from __future__ import annotations


def test_contexts_beside_the_published_ones(script):
    rows = script("adapter_budget").report()["context"]
    # Tokens that are published, and (SRAM - adapters) / bytes of a token: facts/papers.md 8.1, 8.2.
    assert [(row["published"], row["linear"]) for row in rows] == [
        (736, 746),
        (1600, 1916),
        (3808, 4257),
        (0, 0),
        (1024, 1024),
        (None, 883),
    ]
    assert all(row["fits"] <= row["linear"] for row in rows)
    # The cache of TOM is the published SRAM and nothing else.
    assert rows[4]["fits"] == 1024 and rows[4]["adapters_mib"] == 0
