"""From an ONNX file to an output folder: runs the stages and writes what each leaves behind."""

from __future__ import annotations

import io
import platform
from collections.abc import Callable, Collection, Generator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from xdsl.context import Context
from xdsl.dialects.builtin import ModuleOp
from xdsl.utils.exceptions import VerifyException

from intaglio.backend import circt
from intaglio.backend.hw.units.vector.constants import misfits
from intaglio.backend.images.write import WrittenImages, clipped_warnings, write_images
from intaglio.backend.measure import Stopwatch
from intaglio.backend.output.hardware_files import EXTERNAL_BANKS
from intaglio.backend.output.output import (
    MANIFEST,
    MAPPING,
    REFERENCE,
    TIMINGS,
    adapters_in,
    check_replaceable,
    copy,
    sha256_of,
    tidy_output,
    whole_or_nothing,
    write_json,
)
from intaglio.backend.output.reference_files import ReferenceNames
from intaglio.backend.output.verified import OutputFiles
from intaglio.backend.output.whole import write_text
from intaglio.backend.printer import TextPrinter
from intaglio.backend.program.file import program_content
from intaglio.backend.program.program import program_of
from intaglio.backend.stages import HARDWARE_STAGES, IR_STAGES, Options, passes
from intaglio.backend.target.file import write_target
from intaglio.backend.target.target import load_target
from intaglio.backend.ways_out import tried
from intaglio.dialects.errors import CompilerBug, DoesNotFit, UserError, UserErrors, gathered
from intaglio.dialects.fabric import machine_of
from intaglio.dialects.json_file import JSON
from intaglio.dialects.latency_bound import Chain
from intaglio.lowering.folded_latencies import pipelines_of
from intaglio.lowering.latency_bound import chain_of
from intaglio.lowering.onnx.graph.external_data import companion_file
from intaglio.lowering.onnx.weights.quantised_graph import BLOCKS, DATA_FILE, write_quantised
from intaglio.lowering.onnx.weights.rounding import HEAD_ROUNDING, parse_rounding
from intaglio.lowering.onnx.weights.weights import FLOAT_WEIGHTS_HINT
from intaglio.lowering.place.mapping import engraved, left_out_warnings, mapping_of
from intaglio.lowering.step.adapter_slots import RomAdapterSlots
from intaglio.lowering.step.fractions import Stream, stream_warnings
from intaglio.lowering.step.input_formats import unheard
from intaglio.lowering.step.legalize import RomLegalize, legalize, substituted
from intaglio.lowering.step.loss_warning import NOTEWORTHY, loss_warnings
from intaglio.lowering.step.sites import SiteShape, site_shapes, without_slots

if TYPE_CHECKING:
    from intaglio.backend.program.program import Program
    from intaglio.backend.target.target import Target
    from intaglio.backend.testbench import Expected
    from intaglio.lowering.onnx.importer import ImportedModel

SCHEMA = 1
EMBEDDING_GROUP = 64
COMPANIONS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "special_tokens_map.json",
    "added_tokens.json",
    "genai_config.json",
    "generation_config.json",
    "config.json",
)
"""Files beside the model that go into the output folder with it."""
MANTISSAS = "as integers that share an exponent with much larger values of the tensor"
MANTISSAS_HELP = "`intaglio check` measures what it costs; values nearer to each other lose less"
TOOLS = ("intaglio", "xdsl", "onnx", "onnx-ir", "numpy", "pycde")

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Compiled:
    """What a compile found out, besides the files it wrote.

    Attributes:
        folder: with the files.
        warnings: in order.
        images: what was written of them.
        program: that of the folder; None where the compile stopped before.
    """

    folder: Path
    warnings: tuple[str, ...]
    images: WrittenImages
    program: Program | None = None


def compile_model(
    model: str | Path,
    out: str | Path,
    options: Options,
    progress: Progress = lambda message: None,
    expected: Callable[[Program, Path], Sequence[Expected]] = lambda program, folder: (),
) -> Compiled:
    """Compiles an ONNX model for a target and writes the output folder, whole or not at all.

    Args:
        model: path to the .onnx file.
        out: folder to write; an earlier output there is replaced.
        options: target, settings and the last stage.
        progress: called with a line for each step of long work.
        expected: what the chip of a program, whose images lie in a folder, answers to the first
            token of the test bench; asked where one is written.

    Raises:
        UserError: the model cannot be compiled for the target; says why and what would help.
    """
    model, out = Path(model), Path(out)
    said = tidy_output(out)
    # Before a large model is read.
    check_replaceable(out)
    if options.emit in HARDWARE_STAGES:
        circt.check_installed()
    watch = Stopwatch()
    progress(f"reading {model}")
    with watch.stage("import"):
        imported = import_for(model, options)
    found = _Found([*said, *_replaced(options.settings), *imported.warnings])
    with whole_or_nothing(out) as folder, _ways_out(model, options, progress):
        _run_stages(imported, folder, options, found, watch, progress)
        if options.emit not in IR_STAGES[:-1]:
            content = program_content(imported.module)
            write_json(folder / "program.json", content)
            with watch.stage("hardware"), _about(model):
                found.program = program_of(content)
                found.warnings += _hardware(folder, found.program, options, progress, expected)
        write_target(folder, _target(options))
        with watch.stage("reference"):
            reference, names = _reference(imported, folder, options, progress)
            if options.reference:
                reference, said = _adapter_graph(imported.module, folder, reference, names)
                found.warnings += said
        with watch.stage("hash"):
            progress("hashing")
            manifest = _manifest(options, imported, reference, found, folder)
        write_json(folder / MANIFEST, manifest)
        write_json(folder / TIMINGS, {"schema": SCHEMA, "stages": watch.stages})
        found.warnings += _gone(out)
    OutputFiles(out).note_all()
    return Compiled(out, tuple(gathered(found.warnings)), found.images, found.program)


@dataclass
class _Found:
    """What stages find out, besides the files that they write.

    Attributes:
        warnings: in the order of the stages.
        images: written after the stage fabric.
        streams: embeddings in the formats that they enter.
        sites: matrices beside which adapters can stand.
        products: of a token, one after another, whose time is bounded from below.
        program: as program.json has it.
    """

    warnings: list[str]
    images: WrittenImages = field(default_factory=WrittenImages)
    streams: tuple[Stream, ...] = ()
    sites: Sequence[SiteShape] = ()
    products: Chain | None = None
    program: Program | None = None


def _run_stages(
    imported: ImportedModel,
    folder: Path,
    options: Options,
    found: _Found,
    watch: Stopwatch,
    progress: Progress,
) -> None:
    """Runs the passes; writes the module after each stage, and what belongs to the stage."""
    module, model = imported.module, imported.model_path
    for stage, stage_passes in passes(options):
        progress(f"{stage}: {', '.join(one.name for one in stage_passes)}")
        with watch.stage(stage):
            for one in stage_passes:
                with _about(model):
                    if isinstance(one, RomLegalize):
                        _legalize(module, found)
                    else:
                        one.apply(Context(), module)
                        if isinstance(one, RomAdapterSlots):
                            found.warnings += without_slots(module)
                _verify(module, one.name)
        if stage == "rom":
            found.sites = site_shapes(module)
        if stage == "fabric":
            progress("writing ROM images")
            with watch.stage("images"), _about(model):
                found.images = write_images(
                    module,
                    imported.parameters,
                    folder,
                    lambda name, size: progress(f"engraved {name} ({size / 1e6:.1f} MB)"),
                )
            found.warnings += _fabric_warnings(module, found.images, options)
            found.products = chain_of(module, pipelines_of(_target(options).integer))
        if stage in ("fabric", "program"):
            # Again after the schedule, which adds the memories of values.
            write_json(folder / MAPPING, mapping_of(module, machine_of(module)))
        with watch.stage(f"print {stage}"):
            _write_ir(module, folder / "ir" / f"{stage}.mlir")


def _replaced(settings: Sequence[str]) -> list[str]:
    """Says which settings hold no longer, since a later one is of the same key."""
    last = {key.strip(): value.strip() for key, _, value in (s.partition("=") for s in settings)}
    return [
        f"--set {one} is replaced by --set {key.strip()}={last[key.strip()]}, which comes later"
        for one in settings
        for key, _, value in (one.partition("="),)
        if value.strip() != last[key.strip()]
    ]


def _legalize(module: ModuleOp, found: _Found) -> None:
    """`rom-legalize`, which says what it chose."""
    machine = machine_of(module)
    found.warnings += [*substituted(module, machine), *unheard(module, machine)]
    found.streams = legalize(module).streams
    found.warnings += stream_warnings(found.streams)


def _fabric_warnings(module: ModuleOp, images: WrittenImages, options: Options) -> list[str]:
    """What tensors lose as they are written, and what a mapping file leaves to the compiler."""
    warnings = loss_warnings(images.losses.values(), MANTISSAS, MANTISSAS_HELP)
    if options.mapping is not None:
        warnings += left_out_warnings(options.mapping, engraved(module), machine_of(module))
    return [*warnings, *clipped_warnings(images)]


def _gone(out: Path) -> list[str]:
    """The adapters of an earlier output, which this one replaces."""
    gone = adapters_in(out)
    if not gone:
        return []
    return [f"the adapters of the earlier compile are gone: {', '.join(gone)}; add them again"]


def import_for(model: Path, options: Options) -> ImportedModel:
    """Reads a model in the float stage, as a compile does.

    Raises:
        UserError: the model cannot be read, or not for this target.
    """
    from intaglio.lowering.onnx.importer import import_model

    reading = reading_of(options)
    return import_model(
        model,
        allow_links=options.allow_links,
        weights=reading.weights,
        context=reading.context,
        embedding=reading.embedding,
        codes=reading.codes,
        head=reading.head,
        float_weights_hint=lambda columns: float_weights_hint(options, columns),
    )


@dataclass(frozen=True)
class Reading:
    """All that what is read of a model hangs on, beside its file; see `import_model`."""

    weights: str | None
    context: int | None
    embedding: str | None
    codes: tuple[str, ...]
    head: str


def reading_of(options: Options) -> Reading:
    """How the options of a compile have a model read.

    Raises:
        UserError: the settings are no chip, or the target states no weights.
    """
    return Reading(
        requested_weights(options),
        options.context,
        _embedding_rounding(options),
        cells(options),
        head_rounding(options),
    )


@contextmanager
def _ways_out(model: Path, options: Options, progress: Progress) -> Generator[None]:
    """What an error says would make a model fit is tried, and only what does is said."""
    try:
        yield
    except DoesNotFit as error:
        progress("trying what would fit")
        raise tried(error, options, lambda other: _attempt(model, other)) from error


def _attempt(model: Path, options: Options) -> None:
    """Compiles without writing anything.

    Raises:
        UserError: as a compile would.
    """
    module = import_for(model, options).module
    for _, stage_passes in passes(options):
        for one in stage_passes:
            one.apply(Context(), module)
    if options.emit in HARDWARE_STAGES:
        from intaglio.backend.hw.chip.layout import layout_of

        _ = layout_of(program_of(program_content(module)))


def _hardware(
    folder: Path,
    program: Program,
    options: Options,
    progress: Progress,
    expected: Callable[[Program, Path], Sequence[Expected]],
) -> list[str]:
    """Emits the hardware that is wanted; gives a warning where only the target wanted it.

    Where none is wanted, it is said what could not become hardware.
    """
    stage = options.emit or load_target(options.target).text("policy.emit")
    if stage not in HARDWARE_STAGES:
        return [f"this program has no hardware: {misfit}" for misfit in misfits(program)]
    from intaglio.backend.emit_hardware import emit_hardware
    from intaglio.backend.images.read import Images

    try:
        written = emit_hardware(
            program,
            Images(program, folder),
            folder,
            stage,
            progress,
            expected=lambda: expected(program, folder),
        )
    except UserError as error:
        if options.emit is not None:
            raise
        return [str(UserError(f"no hardware is written: {error.what}", hint=error.hint))]
    if EXTERNAL_BANKS not in written:
        return []
    # Less the head line.
    count = (folder / EXTERNAL_BANKS).read_text().count("\n") - 1
    what = f"the hardware has {count:,} external modules, ROM banks whose logic is left out"
    return [f"{what} ({EXTERNAL_BANKS} lists them); docs/synthesis.md says how it is written"]


@contextmanager
def _about(model: Path) -> Generator[None]:
    """Errors of passes, which know no files, name the model's."""
    try:
        yield
    except UserError as error:
        if error.file is None and not isinstance(error, UserErrors):
            error.file = str(model)
        raise


def _verify(module: ModuleOp, after: str) -> None:
    try:
        module.verify()
    except VerifyException as error:
        first = str(error).splitlines()[0]
        raise CompilerBug(f"the module is wrong after {after}: {first}") from error


def _write_ir(module: ModuleOp, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    TextPrinter(stream=text).print_op(module)
    # xdsl-opt ends what it prints with an empty line; so does this, to be equal byte for byte.
    write_text(path, text.getvalue() + "\n\n")


def _target(options: Options) -> Target:
    return load_target(options.target).with_options(options.settings)


def _embedding_rounding(options: Options) -> str | None:
    """How a floating-point embedding is engraved: as int16 rows, or quantised in groups."""
    if options.emit == "rom":
        return None
    return f"int8:{EMBEDDING_GROUP}" if _target(options).machine().embedding == "int8" else None


def requested_weights(options: Options) -> str | None:
    """How float weights are quantised; `target` asks for the mix that the target states.

    Raises:
        UserError: the target states none.
    """
    if options.weights != "target":
        return options.weights
    target = _target(options)
    if target.mixed_weights is None:
        raise UserError(
            f"--weights target: {target.name} does not say how float weights are quantised",
            hint=f"name a format; its layers store {', '.join(target.machine().weights)}",
        )
    return target.mixed_weights


def head_rounding(options: Options) -> str:
    """What a head that a quantised model keeps in floating point is engraved as."""
    if options.emit == "rom":
        return HEAD_ROUNDING
    return _target(options).text("policy.head_weights")


def float_weights_hint(options: Options, columns: Collection[int] = ()) -> str:
    """What would help where float weights are refused: what the target's layers can hold.

    Args:
        options: of the compile.
        columns: of the matrices that were refused; the groups that are named divide all of them,
            where any that onnxruntime knows do.
    """
    if options.emit == "rom":
        return FLOAT_WEIGHTS_HINT
    target = _target(options)
    suited = parse_rounding(target.suited_weights)
    groups = [one for one in BLOCKS if one <= suited.group and not any(n % one for n in columns)]
    ask = f"{suited.code}:{groups[-1]}" if groups else target.suited_weights
    if target.mixed_weights is not None:
        ask = f"target (which is {target.mixed_weights})"
    return (
        f"quantise them while importing: --weights {ask}, or give a model with quantised weights; "
        f"the layers of {target.name} can hold {', '.join(target.machine().weights)}"
    )


def cells(options: Options) -> tuple[str, ...]:
    """Codes of weights that the chip has cells for, in the layers and outside of them."""
    if options.emit == "rom":
        return ()
    machine = _target(options).machine()
    return tuple(code for code in machine.weights if code in machine.head_weights)


@dataclass(frozen=True)
class _Reference:
    """What lies in OUT/reference, by names relative to OUT.

    Attributes:
        model: the graph that onnxruntime runs, which `--no-reference` leaves out.
        given: files of the user's, the model first where it is one of them.
        adapter_graph: the graph that judges adapters, where there is one.
    """

    model: str
    given: dict[str, Path]
    adapter_graph: str | None = None


def _reference(
    imported: ImportedModel, folder: Path, options: Options, progress: Progress
) -> tuple[_Reference, ReferenceNames]:
    """Puts the model and what belongs to it into the output folder.

    Where weights were quantised on request, the quantised graph takes the model's place. Without a
    reference only the tokenizer and its like are put there; the model is named all the same.
    """
    model = imported.model_path
    names = ReferenceNames()
    large = {
        names.take(path.relative_to(model.parent).as_posix()): path
        for path in imported.external_files
    }
    beside = {name: companion_file(model, name, options.allow_links) for name in COMPANIONS}
    small = {names.take(name): path for name, path in beside.items() if path is not None}
    own = f"{REFERENCE}/{model.name}"
    # A graph may be its own external data; a quantised one is another file.
    if imported.rounded or large.get(own) != model:
        own = names.free(model.name)
    if not imported.rounded or not options.reference:
        large = {own: model, **large}
    if options.reference:
        size = sum(path.stat().st_size for path in large.values())
        progress(f"copying the model for onnxruntime ({size / 1e6:,.1f} MB)")
        if imported.rounded:
            data = names.free(DATA_FILE)
            write_quantised(model, imported.rounded, folder / own, folder / data)
    for name, path in {**(large if options.reference else {}), **small}.items():
        try:
            copy(path, folder / name)
        except OSError as error:
            if error.filename != str(path):
                raise
            raise UserError(f"cannot be copied: {error.strerror}", file=str(path)) from error
    return _Reference(own, {**large, **small}), names


def _adapter_graph(
    module: ModuleOp, folder: Path, reference: _Reference, names: ReferenceNames
) -> tuple[_Reference, list[str]]:
    """Writes the graph that judges adapters beside the model, where there are slots for them."""
    from intaglio.lowering.onnx.weights.adapter_graph import (
        GRAPH_FILE,
        graph_sites,
        write_adapter_graph,
    )

    sites = graph_sites(module)
    if not sites:
        return reference, []
    name = names.free(GRAPH_FILE)
    try:
        write_adapter_graph(folder / reference.model, sites, folder / name)
    except UserError as error:
        return reference, [f"onnxruntime cannot judge adapters of this model: {error.what}"]
    return replace(reference, adapter_graph=name), []


def _slots(options: Options) -> dict[str, JSON] | None:
    """What `--adapter-slots` asked for; no modules leave the sites to the target."""
    if not options.adapter_rank:
        return None
    residents = options.resident_adapters
    more = {"residents": residents} if residents != 1 else {}
    return {"rank": options.adapter_rank, "modules": list(options.adapter_modules), **more}


def _version(package: str) -> str | None:
    """Of an installed package; None of one that is not, such as what only hardware needs."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _manifest(
    options: Options,
    imported: ImportedModel,
    reference: _Reference,
    found: _Found,
    folder: Path,
) -> dict[str, JSON]:
    # A model that was quantised on request stands for the one that was given.
    given = reference.given
    inputs = {reference.model, *given}
    outputs: dict[str, str] = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = path.relative_to(folder).as_posix()
        if name not in inputs:
            outputs[name] = found.images.digests.get(name) or sha256_of(path)
    return {
        "schema": SCHEMA,
        "target": load_target(options.target).name,
        "settings": list(options.settings),
        "context": options.context,
        "weights": requested_weights(options),
        "quantised": len(imported.rounded),
        "positions": imported.positions,
        "adapter_slots": _slots(options),
        "adapter_sites": [asdict(one) for one in found.sites],
        "mapping": None if options.mapping is None else sha256_of(Path(options.mapping)),
        "emit": options.emit,
        "tools": {"python": platform.python_version(), **{t: _version(t) for t in TOOLS}},
        "model": reference.model,
        "adapter_graph": reference.adapter_graph,
        "inputs": {
            name: sha256_of(folder / name if (folder / name).is_file() else given[name])
            for name in sorted(inputs)
        },
        "reference": options.reference,
        "outputs": outputs,
        "latency_bound": None if found.products is None else found.products.content(),
        "zeros": {name: asdict(zeros) for name, zeros in sorted(found.images.zeros.items())},
        "rounding": {
            "largest_relative_error": max(
                (loss.share for loss in found.images.losses.values()), default=0.0
            ),
            "tensors": {name: loss.share for name, loss in sorted(found.images.losses.items())},
            "noteworthy": {
                name: asdict(loss)
                for name, loss in sorted(found.images.losses.items())
                if loss.share > NOTEWORTHY
            },
            "clipped": dict(sorted(found.images.clipped.items())),
            "embeddings": [asdict(one) for one in found.streams],
        },
    }
