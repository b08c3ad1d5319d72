"""The table of docs/models.md: architectures with their error beside onnxruntime.

    python bench/models_page.py [FOLDER]...            prints the lines that differ
    python bench/models_page.py [FOLDER]... --write    writes them into the page

Each row is of a model of test/models, or of one that an exporter wrote: a folder of that name in
one of the FOLDERs. Rows whose model is in none of them stay as they are. A model takes some ten
seconds: it is compiled for `roma-mini` twice, at int8 and at int16, and judged over 96 tokens.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from conformance import FIRST, compiled

from intaglio.runtime.chip import load

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "models.md"
TARGET, WEIGHTS, TOKENS = "roma-mini", "int4:32", 96
INT16 = ("activations=int16", "kv=int16")
OWN = "test/models"
"""The exporter of models that the tests make."""
HEADINGS = (
    *("architecture", "exporter", "what it needs", "weights"),
    *("int8: error of range", "top-1 counted", "int16: error of range", "top-1 counted"),
)

TORCH, TORCH_5 = "torch 2.13", "torch 2.14, transformers 5"
TORCH_13 = "torch 2.13, transformers 5"
GENAI, MOBIUS = "genai 0.18", "mobius 0.1"


@dataclass(frozen=True)
class Row:
    """A model of the table.

    Attributes:
        architecture: by what sets it apart.
        exporter: who wrote it, with version.
        needs: what sets it apart from a Llama.
        folder: its name.
        weights: how its floating-point weights are rounded.
        told: what the page says of its weights; "": so, or as stored.
        tokens: that it is judged over.
    """

    architecture: str
    exporter: str
    needs: str
    folder: str
    weights: str = WEIGHTS
    told: str = ""
    tokens: int = TOKENS

    @property
    def key(self) -> tuple[str, str]:
        """What names the line of the page."""
        return self.architecture, self.exporter


ROWS = (
    Row("GPT-2", TORCH, "learned positions", "torch_gpt2_dyn"),
    Row("OPT", TORCH_5, "learned positions from row 2 on", "torch_opt"),
    Row("BioGPT", TORCH_5, "learned positions from row 2 on", "torch_biogpt"),
    Row(
        *("GPT-NeoX, Pythia", TORCH),
        *("packed by head, part of each head turned", "torch_gpt_neox_dyn"),
    ),
    Row("GPT-NeoX, Pythia", TORCH_5, "the same", "torch_gpt_neox"),
    Row("CodeGen", TORCH_5, "packed by groups of heads, in another order", "torch_codegen"),
    Row(
        *("Falcon (one key head)", TORCH_5),
        *("packed by head, chosen with GatherND", "torch_falcon"),
    ),
    Row("GPT-BigCode", TORCH_5, "learned positions, packed", "torch_gpt_bigcode"),
    Row("GPT-J", TORCH_5, "part of each head turned in pairs", "torch_gptj"),
    Row("Bloom", TORCH_13, "ALiBi, packed by head, batch merged with heads", "torch_bloom"),
    Row("Bloom, 6 heads", TORCH_13, "the same, slopes that are no powers of two", "torch_bloom6"),
    Row(
        *("XGLM", TORCH_13),
        *("positions by sine, batch merged with heads, a bound below masked scores", "torch_xglm"),
    ),
    Row("Apertus", TORCH_13, "xIELU", "torch_apertus"),
    Row("Apertus", MOBIUS, "the same, its numbers in Softplus", "mobius_apertus"),
    Row("Llama, GGUF Q4_0", MOBIUS, "4 bits in blocks of 32", "gguf_llama_Q4_0"),
    Row("Llama, GGUF Q4_1", MOBIUS, "the same with zero points", "gguf_llama_Q4_1"),
    Row("Llama, GGUF Q8_0", MOBIUS, "8 bits in blocks of 32", "gguf_llama_Q8_0"),
    Row(
        *("Llama, GGUF Q4_K", MOBIUS),
        *("4 bits in blocks of 32, two scales each; float embedding and head", "gguf_llama_Q4_K"),
    ),
    Row(
        *("Llama, GGUF Q4_0, static caches", MOBIUS),
        *("buffers of 64 tokens (TensorScatter)", "gguf_llama_Q4_0_static"),
    ),
    Row(
        *("Apertus, static caches", MOBIUS),
        *("xIELU, buffers of 64 tokens", "mobius_apertus_static"),
    ),
    Row("Qwen2.5-VL, text", GENAI, "positions along three axes", "genai_qwen25vl_int4"),
    Row("Ministral 3", TORCH, "a number of the position on the query", "torch_ministral3_dyn"),
    Row("Ministral 3", TORCH_5, "the same", "torch_ministral3"),
    Row(
        *("Gemma-4 E2B style", MOBIUS),
        *("embeddings of each layer; attention with scale 1", "mobius_gemma4"),
    ),
    Row(
        *("Qwen3.5", GENAI),
        "linear attention (gated delta rule) in every second layer, gates, convolution over 4 "
        "tokens; packed queries and gates; positions along three axes",
        "genai_qwen3_5_int4",
        weights="int8:32",
        told="as stored, `a_proj` and `b_proj` int8:32",
        tokens=120,
    ),
    Row("as Qwen3.5", OWN, "the same with slow decays", "qwen35", tokens=120),
    Row(
        *("states alone", OWN),
        *("two layers of linear attention, no keys and values", "recurrent"),
        tokens=120,
    ),
    Row("LFM2", GENAI, "convolution over the last 3 tokens", "genai_lfm2_int4"),
    Row("as gpt-oss, without experts", OWN, "sinks, windows", "sinks"),
    Row("as Gemma-4 E2B", OWN, "attention on another layer's cache", "shared"),
    Row("as OPT", OWN, "learned positions", "learned"),
    Row("as OPT, static caches", OWN, "buffers of 24 tokens (TensorScatter)", "static"),
    Row("as Bloom", OWN, "ALiBi, also beside sinks, a window and a soft cap", "alibi"),
)


def model_of(row: Row, folders: Sequence[Path], work: Path) -> Path | None:
    """The .onnx file of a row; None: there is none here."""
    if row.exporter == OWN:
        sys.path.insert(0, str(ROOT / "test" / "models"))
        from make_models import make_model

        return make_model(row.folder, work / row.folder)
    for folder in folders:
        files = sorted((folder / row.folder).glob("*.onnx"))
        for name in FIRST:
            if folder / row.folder / name in files:
                return folder / row.folder / name
        if files:
            return files[0]
    return None


def percent(share: float) -> str:
    """A share as the page writes it."""
    return f"{share:.2%}".replace("%", " %")


def measured(row: Row, model: Path, work: Path) -> str:
    """The line of a row, its figures found now."""
    cells: list[str] = []
    told = row.told
    for number, settings in enumerate(((), INT16)):
        out, _, weights = compiled(model, work / str(number), [TARGET], row.weights, settings)
        told = told or weights or "as stored"
        found = load(out).check(tokens=row.tokens)
        shares = found["max_error_of_range"], found["top1_agreement_counted"]
        cells += [percent(one) for one in shares]
    return line((row.architecture, row.exporter, row.needs, told, *cells))


def line(cells: Sequence[str]) -> str:
    """Cells as a line of a table."""
    return f"| {' | '.join(cells)} |"


def lines_of(page: str) -> dict[tuple[str, str], str]:
    """The lines of the table on the page, by architecture and exporter.

    Raises:
        ValueError: the page has no such table.
    """
    head = line(HEADINGS)
    if page.count(head) != 1:
        raise ValueError(f"the page has no line {head}")
    found: dict[tuple[str, str], str] = {}
    for one in page[page.index(head) :].splitlines()[2:]:
        if not one.startswith("| "):
            break
        architecture, exporter, *_ = (cell.strip() for cell in one.strip("|").split("|"))
        found[architecture, exporter] = one
    return found


def written(page: str, lines: dict[tuple[str, str], str]) -> str:
    """The page with the lines that there are, in the order of `ROWS`."""
    old = lines_of(page)
    rows = [lines[row.key] for row in ROWS if row.key in lines]
    return page.replace("\n".join(old.values()), "\n".join(rows))


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the lines that differ; 1 if any does and is not written."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folders", type=Path, nargs="*")
    parser.add_argument("--write", action="store_true", help="write into the page")
    given = parser.parse_args(arguments)
    page = PAGE.read_text()
    before = lines_of(page)
    lines, differs = dict(before), False
    for row in ROWS:
        with tempfile.TemporaryDirectory() as work:
            model = model_of(row, given.folders, Path(work))
            if model is None:
                continue
            lines[row.key] = measured(row, model, Path(work) / "out")
        if lines[row.key] != before.get(row.key):
            differs = True
            print(lines[row.key], flush=True)
    if given.write:
        PAGE.write_text(written(page, lines))
    return int(differs and not given.write)


if __name__ == "__main__":
    sys.exit(main())
