"""What a row of a sweep is: the content of a line of the record."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Found = dict[str, Any]
"""What a point was found to be: see `evaluate`; in the record with its `key` and `point`."""
Row = Mapping[str, Any]
"""The same, to be read."""
Module = Any
"""A library that may not be installed, or something of it."""
