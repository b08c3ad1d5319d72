"""Kills compiles and adapter commands at random moments, and at each rename, and looks at OUT.

    python bench/kills.py [--kills 200] [--seed 0] [--work build/kills]

Each trial takes an output folder with an adapter and starts one of three commands on it: a compile
over it, `adapter add` of a second adapter, `adapter remove` of the first. The command is ended by
SIGKILL or SIGTERM at a moment drawn at random from the time that it takes, and then, apart from
that, after each of its renames and exchanges (SIGKILL, both when the system exchanges folders and
when it has to rename twice). Then the next command looks at the folder. A trial is good if

- the next command succeeds, and every file has the hash that the manifest states;
- OUT is the earlier one or the new one, whole: its files are those of one of the two compiles;
- adapters are there as before or after the command, whole; those of the earlier compile go with it
  only where the new one has taken its place;
- nothing lies beside OUT or in its folder of adapters.

Prints figures as JSON; exits with 1 if a trial is not good.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from intaglio.backend.output.output import ADAPTERS, MANIFEST
from intaglio.backend.program.program import load_program

RANK = 4
COMMANDS = ("compile", "add", "remove")
_WRAPPER = """
import os, shutil, signal, sys
from intaglio.backend import whole
at, exchanges = int(sys.argv[1]), sys.argv[2] == "exchange"
count = 0
def after(function):
    def counted(*arguments, **options):
        global count
        result = function(*arguments, **options)
        count += 1
        if count == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    return counted
os.rename, os.replace = after(os.rename), after(os.replace)
whole._exchange = after(whole._exchange) if exchanges else lambda one, other: False
from intaglio.runtime import cli
sys.exit(cli.main(sys.argv[3:]))
"""


class Trials:
    """Folders, commands and what was found."""

    def __init__(self, work: Path, seed: int) -> None:
        self.work = work
        self.random = random.Random(seed)
        self.counts: Counter[str] = Counter()
        self.bad: list[str] = []
        self.place = work / "place"
        self.out = self.place / "out"
        root = Path(__file__).parents[1]
        self.model = root / "examples" / "demo" / "model" / "model.onnx"
        self.adapter = work / "peft"
        self.before = work / "before"
        self.compile_options = ("--target", "roma-mini", "--adapter-slots", str(RANK))

    def prepare(self) -> None:
        """Makes the folder that every trial begins with."""
        shutil.rmtree(self.work, ignore_errors=True)
        self.place.mkdir(parents=True)
        self.ran(self.compile(context=32))
        write_adapter(self.out, self.adapter)
        self.ran(["adapter", "add", str(self.out), "one", str(self.adapter)])
        shutil.copytree(self.out, self.before)

    def compile(self, context: int) -> list[str]:
        """The command that compiles into the folder."""
        options = [*self.compile_options, "--context", str(context), "--emit", "program"]
        return ["compile", str(self.model), *options, "-o", str(self.out)]

    def command(self, name: str) -> list[str]:
        """One of `COMMANDS`."""
        if name == "compile":
            return self.compile(context=16)
        file = [str(self.adapter)] if name == "add" else []
        return ["adapter", name, str(self.out), {"add": "two", "remove": "one"}[name], *file]

    def ran(self, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
        """Runs a command to its end."""
        done = subprocess.run(_intaglio(command), capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr}")
        return done

    def reset(self) -> None:
        """The folder as it was."""
        shutil.rmtree(self.place)
        self.place.mkdir()
        shutil.copytree(self.before, self.out)

    def seconds(self, name: str) -> float:
        """How long a command takes."""
        self.reset()
        start = time.monotonic()
        self.ran(self.command(name))
        return time.monotonic() - start

    def at_random(self, name: str, longest: float) -> None:
        """One kill at a random moment."""
        self.reset()
        number = self.random.choice((signal.SIGKILL, signal.SIGTERM))
        wait = self.random.uniform(0, longest)
        process = subprocess.Popen(
            _intaglio(self.command(name)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        time.sleep(wait)
        ended = process.poll() is not None
        process.send_signal(number)
        process.wait()
        self.counts["too late" if ended else number.name] += 1
        self.judge(name, f"{name}, {number.name} after {wait:.3f} s")

    def at_renames(self, name: str, how: str) -> None:
        """A kill after each rename of a command."""
        for at in range(1, 100):
            self.reset()
            wrapped = [sys.executable, "-c", _WRAPPER, str(at), how, *self.command(name)]
            done = subprocess.run(wrapped, capture_output=True, text=True, check=False)
            if done.returncode == 0:
                return
            self.counts[f"at a rename ({how})"] += 1
            self.judge(name, f"{name}, after rename {at} ({how})")

    def judge(self, name: str, what: str) -> None:
        """Whether the folder is as it must be after the next command."""
        try:
            said = self.ran(["adapter", "list", str(self.out), "--json", "--verify"])
        except RuntimeError as error:
            self.bad.append(f"{what}: {error}")
            return
        listed = sorted(one["name"] for one in json.loads(said.stdout)["adapters"])
        manifest = json.loads((self.out / MANIFEST).read_text())
        is_new = manifest["context"] == 16
        allowed = {
            "compile": [[]] if is_new else [["one"]],
            "add": [["one"], ["one", "two"]],
            "remove": [["one"], []],
        }[name]
        if listed not in allowed:
            self.bad.append(f"{what}: adapters {listed}")
        files = {
            path.relative_to(self.out).as_posix()
            for path in self.out.rglob("*")
            if path.is_file() and path.relative_to(self.out).parts[0] != ADAPTERS
        }
        known = {MANIFEST, "timings.json", *manifest["inputs"], *manifest["outputs"]}
        if files != known:
            self.bad.append(f"{what}: files {sorted(files ^ known)}")
        beside = sorted(path.name for path in self.place.iterdir() if path != self.out)
        hidden = sorted(path.name for path in self.out.rglob(".*"))
        if beside or hidden:
            self.bad.append(f"{what}: left behind {beside + hidden}")
        self.counts["new" if is_new or listed not in (["one"],) else "as before"] += 1


def _intaglio(arguments: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", "intaglio.runtime.cli", *arguments]


def write_adapter(out: Path, folder: Path) -> None:
    """A PEFT folder of random matrices for every site of a compiled model."""
    draw = np.random.default_rng(0)
    tensors: dict[str, np.ndarray] = {}
    for name, site in load_program(out).sites.items():
        part = "mlp" if name.endswith(("gate_proj", "up_proj", "down_proj")) else "self_attn"
        _, layer, role = name.split(".")
        module = f"base_model.model.model.layers.{layer}.{part}.{role}"
        shapes = {"lora_A": (RANK, site.columns), "lora_B": (site.rows, RANK)}
        for half, shape in shapes.items():
            tensors[f"{module}.{half}.weight"] = draw.normal(size=shape).astype(np.float32)
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    targets = sorted({name.split(".")[-3] for name in tensors})
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": RANK, "target_modules": targets}
    (folder / "adapter_config.json").write_text(json.dumps(config))


def main() -> int:
    """Runs all trials; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path("build/kills"))
    arguments = parser.parse_args()
    trials = Trials(arguments.work.absolute(), arguments.seed)
    trials.prepare()
    for name in COMMANDS:
        for how in ("exchange", "renames"):
            trials.at_renames(name, how)
    longest = {name: trials.seconds(name) for name in COMMANDS}
    for number in range(arguments.kills):
        # Half of them compiles: there is most to lose.
        name = ("compile", "add", "compile", "remove")[number % 4]
        trials.at_random(name, longest[name])
    found = {"trials": dict(trials.counts), "bad": trials.bad, "seconds": longest}
    print(json.dumps(found, indent=1))
    return 1 if trials.bad else 0


if __name__ == "__main__":
    sys.exit(main())
