"""Does each parameter, cache, adapter and value lie in the hardware where the module says?

    python bench/places.py            all small models of test/models on all small chips
    python bench/places.py OUT...     compiled folders

The check is that of `test/unit/backend/hw/chip/test_places.py`, which takes six of these. Prints
how much was looked up; exits with 1 where something lies elsewhere. A model that a chip has no
cells for is left out, and said so.
"""

from __future__ import annotations

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType

from intaglio.backend.compile import compile_model
from intaglio.backend.stages import Options
from intaglio.dialects.errors import UserError

TESTS = Path(__file__).parents[1] / "test"
TARGETS = ("roma-mini", "hc1-mini", "tom-mini", "bitrom-mini")
RANK, CONTEXT = 4, 24


def loaded(path: Path) -> ModuleType:
    """A module of the tests, which are no package."""
    spec = spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def main(folders: list[str]) -> int:
    """Checks folders, or all small chips; how many have something elsewhere."""
    check = loaded(TESTS / "unit/backend/hw/chip/test_places.py").check_places
    wrong = 0

    def checked(name: str, out: Path) -> None:
        nonlocal wrong
        try:
            found = check(out)
        except AssertionError as error:
            wrong += 1
            print(f"{name:32}WRONG: {error}")
        else:
            print(f"{name:32}{', '.join(f'{count:,} {what}' for what, count in found.items())}")

    for folder in folders:
        checked(folder, Path(folder))
    if folders:
        return wrong
    make = loaded(TESTS / "models/make_models.py")
    with TemporaryDirectory() as scratch:
        for model in make.VARIANTS:
            path = make.make_model(model, Path(scratch) / model)
            for target in TARGETS:
                out = Path(scratch) / f"{model}-{target}"
                options = Options(target, context=CONTEXT, adapter_rank=RANK, emit="program")
                try:
                    compile_model(path, out, options)
                except UserError as error:
                    print(f"{model} on {target}: left out: {error.what.splitlines()[0]}")
                    continue
                checked(f"{model} on {target}", out)
    return wrong


if __name__ == "__main__":
    sys.exit(min(1, main(sys.argv[1:])))
