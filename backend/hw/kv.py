"""Where the KV cache lies in the H-Units' SRAM and in the memory of its scales.

Token t of a cache is on tile t mod tiles; there head h of its tokens' n-th (n = t div tiles) is
vector ``n * heads + h`` of the cache's region. A vector is ``reads * planes`` words of
`attention_lanes` bytes: word ``r * planes + p`` holds byte p of elements r * lanes and following.
Regions follow one another in the order of the caches' addresses (`fabric.reserve`); scales, which
that address map counts with the codes, have a memory of their own beside the vector units: row
``scale_row + h * scale_rows + t div W`` holds, at lane t mod W, the scale of head h of token t,
24 bits of mantissa below 8 bits of exponent. Static caches have no scales there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from intaglio.dialects.codes import FORMATS
from intaglio.dialects.errors import UserError
from intaglio.dialects.fixed_point import SCALE_BITS, Ints
from intaglio.dialects.machine import Machine
from intaglio.runtime.program import Cache, Program
