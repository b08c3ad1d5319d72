"""The model of a sweep, read once for all points that have it read in the same way."""

from __future__ import annotations

import io
from hashlib import sha256
from pathlib import Path

from intaglio.backend.compile import Reading, reading_of
from intaglio.backend.printer import TextPrinter
from intaglio.backend.stages import Options
from intaglio.dialects.errors import UserError
from intaglio.runtime.what_if import WhatIf


class Models:
    """A model in the ways in which points have it read.

    Attributes:
        path: the .onnx file.
    """

    def __init__(self, path: Path, weights_count: bool = False) -> None:
        """Args:
        path: the .onnx file.
        weights_count: whether figures of points hang on the bytes of weights.
        """
        self.path = path
        self._weights_count = weights_count
        self._read: dict[Reading, WhatIf | UserError] = {}
        self._digests: dict[Reading, str] = {}
        self._files: str | None = None

    def of(self, options: Options) -> tuple[Reading, WhatIf]:
        """How the options have the model read, and what was read.

        Raises:
            UserError: the chip makes no sense, or the model cannot be read for it.
        """
        reading = reading_of(options)
        if reading not in self._read:
            try:
                self._read[reading] = WhatIf(self.path, options)
            except UserError as error:
                self._read[reading] = error
        found = self._read[reading]
        if isinstance(found, UserError):
            raise found
        return reading, found

    def digest(self, options: Options) -> str:
        """Of what was read, and of the bytes of weights where figures hang on them; of a reading
        that failed, of what is wrong."""
        try:
            reading, what_if = self.of(options)
        except UserError as error:
            return sha256(str(error).encode()).hexdigest()
        if reading not in self._digests:
            text = io.StringIO()
            TextPrinter(stream=text).print_op(what_if.imported)
            digest = sha256(text.getvalue().encode())
            if self._weights_count:
                digest.update(self._digest_of_files().encode())
            self._digests[reading] = digest.hexdigest()
        return self._digests[reading]

    def _digest_of_files(self) -> str:
        """Of the model's file and all beside it that may hold its weights."""
        if self._files is None:
            digest = sha256()
            for path in sorted(self.path.parent.glob(f"{self.path.name}*")):
                with path.open("rb") as file:
                    while part := file.read(1 << 22):
                        digest.update(part)
            self._files = digest.hexdigest()
        return self._files
