"""`intaglio-opt`: any pass on any stage, as `xdsl-opt` does it.

The dialects, passes and targets come by the `xdsl.universe` entry point, which stock `xdsl-opt`
reads as well. This adds `.onnx` input, file and line of what does not verify, and errors without
tracebacks: exit code 1 with a message on standard error, or, with `--verify-diagnostics`, 0 with
the message on standard output. What a signal ends is told as `intaglio` tells it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib.metadata import entry_points
from typing import IO

from xdsl.dialects.builtin import ModuleOp
from xdsl.passes import ModulePass, get_pass_option_infos
from xdsl.utils.arg_spec import parse_pipeline
from xdsl.utils.exceptions import DiagnosticException, ParseError, VerifyException
from xdsl.xdsl_opt_main import xDSLOptMain

from intaglio.dialects.errors import UserError, meant
from intaglio.runtime.interrupts import Stopped, stopping
from intaglio.runtime.text_places import PlacingParser, TextPlaces

_OPTIONS_HELP = (
    "options of a pass are in {}, and a text of more than letters, digits, '-' and '_' is in "
    'quotes, as in attach-target{target="my.toml"}'
)


def _pass_lines() -> str:
    """A line on each of our passes."""
    (ours,) = entry_points(group="xdsl.universe", name="intaglio")
    passes = {name: load() for name, load in ours.load().all_passes.items()}
    lines = [f"  {name:20}  {_first_line(one)}" for name, one in passes.items()]
    return "\n".join(["Intaglio's passes, in the order of a compile:", *lines])


def _first_line(one: type[ModulePass]) -> str:
    return (one.__doc__ or "").partition("\n")[0]


class IntaglioOpt(xDSLOptMain):
    """The driver; `args` as on the command line, without the program's name."""

    def __init__(self, args: Sequence[str] | None = None) -> None:
        self._places = TextPlaces()
        self._asked_for_help = not {"-h", "--help"}.isdisjoint(sys.argv if args is None else args)
        super().__init__("Runs passes on any stage of a model; takes .mlir and .onnx.", args)

    def register_all_arguments(self, arg_parser: argparse.ArgumentParser) -> None:
        """Adds what `.onnx` input needs."""
        super().register_all_arguments(arg_parser)
        onnx = arg_parser.add_argument_group("ONNX input")
        onnx.add_argument("--context", type=int, help="tokens that the KV caches hold")
        onnx.add_argument("--weights", help="quantise float weights, such as int4:128")
        onnx.add_argument(
            "--allow-links",
            action="store_true",
            help="follow links of external data inside a model hub's cache",
        )
        arg_parser.add_argument("--debug", action="store_true", help="show tracebacks of errors")
        if self._asked_for_help:
            # Not otherwise: a line on each pass imports them all.
            arg_parser.formatter_class = argparse.RawDescriptionHelpFormatter
            arg_parser.epilog = _pass_lines()

    def register_all_dialects(self) -> None:
        """Adds the operations of CIRCT that xDSL's hw, comb and seq do not have."""
        super().register_all_dialects()
        from intaglio.backend.hw.wires import circt_ops

        circt_ops.load(self.ctx)

    def register_all_frontends(self) -> None:
        """Adds the import of `.onnx` files, which leads to the float stage of rom.

        Where an operation stands in a text is remembered for errors.
        """
        super().register_all_frontends()

        def parse_mlir(stream: IO[bytes]) -> ModuleOp:
            self._refuse_onnx_options()
            parser = PlacingParser(self.ctx, stream.read(), self.get_input_name(), self._places)
            return parser.parse_module(not self.args.no_implicit_module)

        self.available_frontends["mlir"] = parse_mlir

        def import_onnx(stream: IO[bytes]) -> ModuleOp:
            from intaglio.lowering.onnx.importer import import_model

            if self.args.input_file is None or self.args.split_input_file:
                raise UserError("an ONNX model is read from one file, by name")
            imported = import_model(
                self.args.input_file,
                allow_links=self.args.allow_links,
                weights=self.args.weights,
                context=self.args.context,
            )
            for warning in imported.warnings:
                sys.stderr.write(f"warning: {warning}\n")
            return imported.module

        self.available_frontends["onnx"] = import_onnx

    def _refuse_onnx_options(self) -> None:
        for option in ("context", "weights", "allow_links"):
            if getattr(self.args, option) not in (None, False):
                raise UserError(
                    f"--{option.replace('_', '-')} is for ONNX input; this is the text of a module",
                    hint="give the .onnx file, or leave the option out",
                )

    def setup_pipeline(self) -> None:
        """As the base class; unknown passes and options are named, with what may be meant.

        Raises:
            UserError: a pass or an option is unknown, or has a value that it cannot have.
        """
        for spec in parse_pipeline(self.args.passes):
            if spec.name not in self.available_passes:
                close = meant(spec.name, self.available_passes)
                raise UserError(
                    f"no pass is called '{spec.name}'",
                    hint=f"{close}`intaglio-opt --help` lists all",
                )
            options = get_pass_option_infos(one := self.available_passes[spec.name]())
            # Postponed annotations are texts, which xDSL shows in quotes.
            told = ", ".join(f"{o.name} ({o.expected_type})" for o in options).replace("'", "")
            known = [option.name for option in options]
            hint = f"options: {told}" if told else "it has no options"
            for key in spec.normalize_parameter_names().parameters:
                if key not in known:
                    raise UserError(
                        f"{spec.name} has no option '{key}'", hint=f"{meant(key, known)}{hint}"
                    )
            try:
                one.from_spec(spec)
            except ValueError as error:
                told = str(error).removeprefix(f"{spec.name} ")
                raise UserError(f"{spec.name}: {told}", hint=hint) from error
        super().setup_pipeline()

    def parse_chunk(
        self, chunk: IO[bytes], file_extension: str, start_offset: int = 0
    ) -> ModuleOp | None:
        """As the base class; a user's error is a diagnostic."""
        self._places = TextPlaces(start_offset)
        try:
            return super().parse_chunk(chunk, file_extension, start_offset)
        except UserError as error:
            raise self._diagnostic(error) from error

    def apply_passes(self, prog: ModuleOp) -> None:
        """As the base class; a user's error is a diagnostic, and what does not verify has a place.

        Of what passes made there is no text.
        """
        try:
            super().apply_passes(prog)
        except UserError as error:
            raise self._diagnostic(error) from error
        except VerifyException as error:
            if (place := self._places.of_error(prog, error)) is None:
                raise
            placed = VerifyException(f"{place}: {error}")
            for note in getattr(error, "__notes__", ()):
                placed.add_note(note)
            raise placed from error

    def _diagnostic(self, error: UserError) -> Exception:
        return DiagnosticException(str(error)) if self.args.verify_diagnostics else error


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the driver and returns the exit code."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    try:
        with stopping():
            IntaglioOpt(arguments).run()
    except Stopped as error:
        return _fail("stopped", 128 + error.signal)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except (UserError, DiagnosticException, ParseError, OSError, ValueError) as error:
        if "--debug" in arguments:
            raise
        text = str(error)
        if isinstance(error, OSError) and error.filename:
            text = f"{error.filename}: {error.strerror}"
        return _fail(text, 1)
    except BaseException as error:
        # xDSL's error of a pass's options is no `Exception`.
        if "--debug" in arguments or isinstance(error, Exception | SystemExit | GeneratorExit):
            raise
        return _fail(f"{str(error).rstrip()}\n  help: {_OPTIONS_HELP}", 1)
    return 0


def _fail(text: str, code: int) -> int:
    sys.stderr.write(f"{text}\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
