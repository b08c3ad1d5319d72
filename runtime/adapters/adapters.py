"""Adapters of an output folder: add, list, remove, load.

An adapter lies in `OUT/adapters/NAME/`: the SRAM image in the chip's format
(`backend/images/adapter.py`), and the float adapter as an `.onnx_adapter` file for onnxruntime, the
judge. Nothing else of OUT changes. Modules of the adapter's file are matched to the chip's sites
by their names (`runtime/adapters/module_names.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path

import numpy as np
import numpy.typing as npt

from intaglio.backend.images.adapter import (
    AdapterImage,
    SiteImage,
    base_hash,
    encode_site,
    read_image,
    write_image,
)
from intaglio.backend.output.output import (
    ADAPTER_DESCRIPTION,
    ADAPTER_FLOATS,
    ADAPTER_NAME,
    ADAPTERS,
    MANIFEST,
    adapters_in,
    inside,
    read_manifest,
    remove_if_empty,
    sha256_of,
    some_of,
)
from intaglio.backend.output.whole import remove_folder, whole_folder
from intaglio.backend.program.program import Program, Site
from intaglio.dialects.errors import UserError
from intaglio.dialects.json_file import JSON, JSONFile
from intaglio.lowering.step.loss_warning import Loss, loss_warnings
from intaglio.runtime.adapters.files import AdapterFile, Pair, read_adapter, tensors_of
from intaglio.runtime.adapters.module_names import read_name, site_names
from intaglio.runtime.adapters.slots import check_fits, load_cycles
from intaglio.runtime.adapters.warnings import adapter_warnings
from intaglio.runtime.reports.wording import counted

Progress = Callable[[str], None]

SCHEMA = 1


@dataclass(frozen=True, eq=False)
class FloatSite:
    """The float adapter of one site: A [r, K], B [N, r]."""

    a: npt.NDArray[np.float32]
    b: npt.NDArray[np.float32]


@dataclass(frozen=True)
class AdapterSummary:
    """What `intaglio adapter list` says of an adapter.

    Attributes:
        name: under which it was added.
        format: of its matrices on the chip.
        ranks: of each site, 0 where the adapter has nothing.
        size: bytes in SRAM.
        load_cycles: of the load port.
        worst_loss: relative Frobenius error of B A, the worst site's.
        mean_loss: the mean of the sites'.
        worst_site: whose loss is the worst.
        worst_line: the output or input of a site whose part of B A loses most, and what.
        is_for_base: whether it was converted for what is engraved.
        warnings: what was odd about it, when it was added.
    """

    name: str
    format: str
    ranks: Mapping[str, int]
    size: int
    load_cycles: int
    worst_loss: float
    mean_loss: float
    worst_site: str
    worst_line: tuple[str, float]
    is_for_base: bool
    warnings: tuple[str, ...] = ()

    def content(self) -> dict[str, JSON]:
        """As JSON."""
        return {
            "name": self.name,
            "format": self.format,
            "rank": max(self.ranks.values(), default=0),
            "sites": dict(self.ranks),
            "bytes": self.size,
            "load_cycles": self.load_cycles,
            "worst_loss": self.worst_loss,
            "mean_loss": self.mean_loss,
            "worst_site": self.worst_site,
            "worst_line": {"name": self.worst_line[0], "loss": self.worst_line[1]},
            "is_for_base": self.is_for_base,
        }


class Adapters:
    """The adapters of an output folder.

    Args:
        folder: the output folder.
        program: its program.
    """

    program: Program

    def __init__(self, folder: Path, program: Program) -> None:
        self._out = folder
        self._folder = folder / ADAPTERS
        self.program = program

    def __repr__(self) -> str:
        return f"Adapters({', '.join(map(repr, self))})"

    def _repr_html_(self) -> str:
        head = ("adapter", "rank", "sites", "bytes", "load cycles", "loses at worst")
        rows = [
            (
                one.name,
                f"{max(one.ranks.values(), default=0)}",
                f"{sum(rank > 0 for rank in one.ranks.values())} of {len(one.ranks)}",
                f"{one.size:,}",
                f"{one.load_cycles:,}",
                f"{one.worst_loss:.2%}",
            )
            for one in self.list()
        ]
        cells = [[f"<th>{escape(cell)}</th>" for cell in head]]
        cells += [[f"<td>{escape(cell)}</td>" for cell in row] for row in rows]
        lines = (f"<tr>{''.join(row)}</tr>" for row in cells)
        return f"<table>{''.join(lines)}</table>"

    def __iter__(self) -> Iterator[str]:
        """Names, sorted."""
        return iter(adapters_in(self._out))

    def __len__(self) -> int:
        return len(list(iter(self)))

    def __contains__(self, name: object) -> bool:
        return name in list(iter(self))

    @property
    def base(self) -> str:
        """Hash that identifies what is engraved."""
        return base_hash(self.program.parameters)

    def add(
        self, name: str, file: str | Path, progress: Progress = lambda message: None
    ) -> AdapterSummary:
        """Reads an adapter, converts it to the chip's format, and keeps it under a name.

        Args:
            name: letters, digits, dots, dashes and underscores.
            file: see `runtime/adapters/files.py`.
            progress: called with a line for each site; ternary ones take some time.

        Returns:
            What `list` will say of it, with the loss of the conversion, and warnings of what has no
            effect or is missing.

        Raises:
            UserError: the name is taken or no file name, or the adapter cannot be used on this
                chip. The output folder is as before.
        """
        self._check_name(name)
        if name in self:
            raise UserError(
                f"there is an adapter '{name}' already",
                file=str(self._out),
                hint=f"choose another name, or `intaglio adapter remove {self._out} {name}` first",
            )
        sites = self._sites()
        read = read_adapter(file)
        self._check_base(read)
        matched = match(read, sites)
        code = self.program.machine.adapter
        stored: dict[str, SiteImage] = {}
        for site, one in matched.items():
            progress(f"converting {site} to {code}")
            stored[site] = encode_site(one.a, one.b, code, sites[site].rank)
        image = AdapterImage(name, self.base, stored)
        self._write(name, image, matched, {"source": read.form})
        warnings = (*adapter_warnings(read, matched, sites), *_lost_lines(image))
        return replace(self._summary(image), warnings=warnings)

    def _check_name(self, name: str) -> None:
        if not ADAPTER_NAME.fullmatch(name):
            raise UserError(
                f"'{name}' is no name for an adapter",
                hint="up to 64 letters, digits, dots, dashes and underscores, the first a letter "
                "or digit",
            )

    def _sites(self) -> Mapping[str, Site]:
        if not self.program.sites:
            raise UserError(
                "the chip has no adapter slots",
                file=str(self._out),
                hint="compile with --adapter-slots RANK[:modules], such as --adapter-slots "
                "16:q_proj,v_proj",
            )
        return self.program.sites

    def _check_base(self, read: AdapterFile) -> None:
        if read.base is None or read.base.lower() in self._known_bases():
            return
        raise UserError(
            f"the adapter was trained on another base: it names {read.base}, the engraved one is "
            f"{self.base}",
            file=str(read.path),
            hint="a base is named as `intaglio adapter list --json` names it, or by the SHA-256 of "
            "the model's file or of its external data",
        )

    def _known_bases(self) -> Iterator[str]:
        """What is engraved, and the model's own files, which a training script can hash."""
        from intaglio.backend.compile import COMPANIONS

        yield self.base
        manifest = read_manifest(self._out)
        for name, digest in manifest["inputs"].items():
            if Path(name).name not in COMPANIONS:
                yield digest.text()

    def _write(
        self,
        name: str,
        image: AdapterImage,
        matched: Mapping[str, FloatSite],
        notes: Mapping[str, JSON],
    ) -> None:
        place = self._folder / name
        try:
            with whole_folder(place, place) as partial:
                floats = partial / ADAPTER_FLOATS
                write_floats(matched, floats)
                write_image(image, partial, {**notes, "floats_sha256": sha256_of(floats)})
        except OSError as error:
            raise UserError(
                f"the adapter cannot be written: {error.strerror}", file=str(self._folder)
            ) from error
        finally:
            remove_if_empty(self._folder)

    def list(self) -> list[AdapterSummary]:
        """All adapters, by name."""
        return [self._summary(read_image(self._folder / name)) for name in self]

    def _summary(self, image: AdapterImage) -> AdapterSummary:
        ranks = {
            site: image.sites[site].rank if site in image.sites else 0
            for site in self.program.sites
        }
        worst = max(image.sites, key=lambda site: image.sites[site].loss)
        return AdapterSummary(
            name=image.name,
            format=self.program.machine.adapter,
            ranks=ranks,
            size=image.size,
            load_cycles=load_cycles(self.program, image),
            worst_loss=image.worst_loss,
            mean_loss=image.mean_loss,
            worst_site=worst,
            worst_line=_worst_line(image),
            is_for_base=image.base_sha256 == self.base,
        )

    def remove(self, name: str) -> None:
        """Forgets an adapter.

        Raises:
            UserError: there is none of this name.
        """
        remove_folder(self._existing(name))
        remove_if_empty(self._folder)

    def load(self, name: str) -> AdapterImage:
        """An adapter's SRAM image.

        Raises:
            UserError: there is none of this name, it is damaged, or was made for another base.
        """
        image = read_image(self._existing(name))
        if image.base_sha256 != self.base:
            raise UserError(
                f"the adapter '{name}' was converted for another base: {image.base_sha256}, the "
                f"engraved one is {self.base}",
                file=str(self._folder / name),
                hint="remove it, and add an adapter that was trained on this base",
            )
        check_fits(self.program, image)
        return image

    def floats(self, name: str) -> Path:
        """The float adapter of a name, as an `.onnx_adapter` file.

        Raises:
            UserError: there is none of this name, or it is damaged.
        """
        folder = self._existing(name)
        path = folder / ADAPTER_FLOATS
        stated = JSONFile.read(folder / ADAPTER_DESCRIPTION).get("floats_sha256")
        # Adapters that an earlier version added have no hash of it.
        if stated is not None and path.is_file() and sha256_of(path) != stated.digest():
            raise UserError(
                "is damaged", file=str(path), hint="remove the adapter and add it again"
            )
        return path

    def _existing(self, name: str) -> Path:
        if name not in self or (self._folder / name).is_symlink():
            names = ", ".join(self)
            raise UserError(
                f"there is no adapter '{name}'",
                file=str(self._out),
                hint=f"there are {names}" if names else "`intaglio adapter add` adds one",
            )
        return self._folder / name


def _worst_line(image: AdapterImage) -> tuple[str, float]:
    """The output or input of a site whose part of B A loses most."""
    found = [
        line
        for name, site in image.sites.items()
        if site.lines is not None
        for line in (
            (f"output {site.lines.row} of {name}", site.lines.row_loss),
            (f"input {site.lines.column} of {name}", site.lines.column_loss),
        )
    ]
    return max(found, key=lambda line: line[1], default=("", 0.0))


def _lost_lines(image: AdapterImage) -> list[str]:
    """A warning where outputs or inputs lose what their format need not lose."""
    lost = [
        Loss(name, share, place)
        for name, site in image.sites.items()
        if site.lines is not None
        for place, share in site.lines.noteworthy(site.b.code)
    ]
    because = f"of its part of B A in {next(iter(image.sites.values())).b.code}"
    remedy = (
        "an element or a row of A or B is so much larger than the others that the chip's codes "
        "cannot hold both; train with weight decay or a smaller learning rate, or clip it"
    )
    return loss_warnings(lost, because, remedy, kind="site", listed=ADAPTER_DESCRIPTION)


# --- reports ------------------------------------------------------------------------------------


def list_content(adapters: Adapters) -> dict[str, JSON]:
    """The content of `intaglio adapter list --json`."""
    program = adapters.program
    return {
        "schema": SCHEMA,
        "base_sha256": adapters.base,
        "format": program.machine.adapter,
        "slots": {
            name: {"rank": site.rank, "rows": site.rows, "columns": site.columns}
            for name, site in program.sites.items()
        },
        "residents": program.residents,
        "load_bytes_per_cycle": program.machine.load_bytes,
        "adapters": [summary.content() for summary in adapters.list()],
    }


def list_lines(adapters: Adapters) -> Iterator[str]:
    """The same for people."""
    sites = adapters.program.sites
    if not sites:
        yield "no adapter slots: compile with --adapter-slots RANK[:modules]"
        return
    roles = dict.fromkeys(name.split(".")[-1] for name in sites)
    yield (
        f"{len(sites)} slots of rank {max(site.rank for site in sites.values())} in "
        f"{adapters.program.machine.adapter}: {', '.join(roles)}"
    )
    residents = adapters.program.residents
    switch = ", one of them active; to switch takes a cycle" if residents > 1 else ""
    yield f"the chip holds {counted(residents, 'adapter')} at once{switch}"
    summaries = adapters.list()
    if not summaries:
        yield "no adapters; `intaglio adapter add` adds one"
    for summary in summaries:
        yield from summary_lines(summary)


def summary_lines(summary: AdapterSummary) -> Iterator[str]:
    """An adapter for people."""
    ranks = sorted({rank for rank in summary.ranks.values() if rank})
    count = sum(rank > 0 for rank in summary.ranks.values())
    rank_text = f"rank {ranks[0]}" + (f" to {ranks[-1]}" if len(ranks) > 1 else "")
    yield (
        f"{summary.name}: {rank_text} at {count} of {len(summary.ranks)} sites, "
        f"{summary.size:,} bytes, loaded in {summary.load_cycles:,} cycles"
    )
    yield (
        f"  {summary.format} loses {summary.mean_loss:.2%} of B A in the mean, at most "
        f"{summary.worst_loss:.2%} ({summary.worst_site})"
    )
    name, loss = summary.worst_line
    if name and loss > 0:
        yield f"  {name} loses most of its own part: {loss:.2%}"
    if not summary.is_for_base:
        yield "  was converted for another base and cannot be used"


def write_floats(sites: Mapping[str, FloatSite], path: Path) -> None:
    """Writes a float adapter for onnxruntime: A [K, r] and B [r, N] of each site.

    Tensors are named as the inputs of the graph that `lowering/onnx/weights/adapter_graph.py`
    writes.
    """
    import onnxruntime

    tensors = tensors_of((site, one.a, one.b) for site, one in sites.items())
    file = onnxruntime.AdapterFormat()
    file.set_adapter_version(1)
    file.set_model_version(1)
    file.set_parameters(
        {
            name: onnxruntime.OrtValue.ortvalue_from_numpy(tensor)
            for name, tensor in sorted(tensors.items())
        }
    )
    # The binding takes text, whatever its annotation says.
    file.export_adapter(str(path))  # pyright: ignore[reportArgumentType]


def judged_with(folder: Path, manifest: JSONFile) -> Path:
    """The graph of an output folder that judges adapters.

    Raises:
        UserError: there is none.
    """
    from intaglio.lowering.onnx.weights.adapter_graph import GRAPH_FILE

    model = Path(manifest["model"].text())
    # Earlier versions wrote it under one name and did not say so.
    stated = manifest.get("adapter_graph")
    name = stated.text() if stated is not None else None
    if "adapter_graph" not in manifest.names():
        name = model.with_name(GRAPH_FILE).as_posix()
    if name is not None and (path := inside(folder, name, MANIFEST)).is_file():
        return path
    raise UserError(
        "the graph by which onnxruntime judges adapters is missing",
        file=str(folder / (name or model.parent)),
        hint="compile the model again, with --adapter-slots",
    )


# --- modules and sites --------------------------------------------------------------------------


def match(read: AdapterFile, sites: Mapping[str, Site]) -> dict[str, FloatSite]:
    """The sites of a chip that an adapter is for, in the chip's order.

    A module that packs several roles (`qkv_proj`) shares its A among their sites and gives each
    its rows of B.

    Raises:
        UserError: a module has no site, or its matrices do not fit the slot.
    """
    _check_modules(read, sites)
    found: dict[str, FloatSite] = {}
    for pair in read.pairs:
        names = _sites_of(read, pair, sites)
        rows = sum(sites[name].rows for name in names)
        columns = sites[names[0]].columns
        if pair.a.shape[1] != columns or pair.b.shape[0] != rows:
            raise UserError(
                f"'{pair.module}' is for a matrix of {pair.b.shape[0]} x {pair.a.shape[1]}; "
                f"{', '.join(names)} of the chip has {rows} x {columns}",
                file=str(read.path),
                hint="the adapter belongs to another model",
            )
        first = 0
        for name in names:
            site = sites[name]
            if pair.rank > site.rank:
                raise UserError(
                    f"'{pair.module}' has rank {pair.rank}, the slot of {name} holds {site.rank}",
                    file=str(read.path),
                    hint=f"compile with --adapter-slots {pair.rank}, or train with a smaller rank",
                )
            if name in found:
                raise UserError(f"more than one module is for {name}", file=str(read.path))
            found[name] = FloatSite(pair.a, pair.b[first : first + site.rows])
            first += site.rows
    return {name: found[name] for name in sites if name in found}


def _sites_of(read: AdapterFile, pair: Pair, sites: Mapping[str, Site]) -> Sequence[str]:
    names = site_names(pair.module)
    missing = [name for name in names if name not in sites]
    if names and not missing:
        return names
    what = f"'{pair.module}' has no adapter slot: there is none at {', '.join(missing)}"
    raise UserError(what, file=str(read.path), hint=_slots_hint(sites))


def _check_modules(read: AdapterFile, sites: Mapping[str, Site]) -> None:
    """Whether every module is of a decoder's layer.

    Raises:
        UserError: names those that are not, and says what they are instead.
    """
    kinds: dict[str | None, list[str]] = {}
    for pair in read.pairs:
        named = read_name(pair.module)
        if not named.sites:
            kinds.setdefault(named.why, []).append(pair.module)
    if not kinds:
        return
    parts: list[str] = []
    for why, modules in kinds.items():
        first = f"'{modules[0]}'"
        if len(modules) > 1:
            rest = some_of([f"'{module}'" for module in modules[1:]])
            first += f" (and {rest})"
        parts.append(
            f"{first} is no module that a chip has adapter slots for"
            + ("" if why is None else f": {why}")
        )
    raise UserError("; ".join(parts), file=str(read.path), hint=_slots_hint(sites))


def _slots_hint(sites: Mapping[str, Site]) -> str:
    layers = sorted({int(name.split(".")[1]) for name in sites})
    roles = list(dict.fromkeys(name.split(".")[-1] for name in sites))
    return (
        f"the chip has slots at {', '.join(roles)} of layers {layers[0]} to {layers[-1]} of the "
        "decoder; --adapter-slots RANK:modules chooses them"
    )
