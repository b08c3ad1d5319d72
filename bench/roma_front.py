"""The front of `roma` for Llama-3.2-3B's shape in 4 bits, as docs/sweep.md has it.

python bench/roma_front.py [--work FOLDER]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from decoder_model import LLAMA_3_2_3B
from papers_work import Work

from intaglio.runtime.sweep.evaluate import title_of
from intaglio.runtime.sweep.tables import value_text

VARY = (
    "l_unit.lanes=16,32,64,128",
    "vector.lanes=16,32,64,128",
    "network.wire_ps_per_mm=60,100,150",
    "kv=half8,int8",
)


def main() -> None:
    """Runs the sweep, writes record and page into the work folder, and prints the front."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("build/papers"))
    args = parser.parse_args()
    model = Work(args.work).model("llama-3.2-3b-int4", replace(LLAMA_3_2_3B, block=128))
    command = [sys.executable, "-m", "intaglio.runtime.cli", "sweep", str(model), "--json"]
    command += ["--target", "roma", "--context", "1024", "--resume"]
    command += ["-o", str(args.work / "roma.jsonl"), "--html", str(args.work / "roma.html")]
    for one in VARY:
        command += ["--vary", one]
    said = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    rows = {row["key"]: row for row in said["points"]}
    keys = [one.partition("=")[0] for one in VARY]
    names = [*said["objectives"], "first_token_ms"]
    print(f"| {' | '.join([*keys, *map(title_of, names)])} |")
    print("|---" * (len(keys) + len(names)) + "|")
    for key in said["front"]:
        row = rows[key]
        cells = [row["point"][one] for one in keys]
        cells += [value_text(name, row["figures"][name]) for name in names]
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
