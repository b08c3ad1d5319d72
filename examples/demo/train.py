"""Make the demo model: a byte-level Llama, trained on the King James Bible, as an int4 ONNX.

Four stages, each of which leaves files for the next one:

    text    the Bible (from Debian's ``bible-kjv``) and a little Python source, split in three
    train   a float checkpoint; its last quarter is trained through the int4 rounding
    export  onnxruntime-genai's builder writes the int4 ONNX
    judge   nats a byte of the held-out text under torch and onnxruntime, and samples

Everything is counted in steps and drawn from one seed, on one thread: the same machine and the same
versions give the same weights again.

    apt-get install bible-kjv && pip install -r requirements.txt && python train.py
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import math
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import onnxruntime as ort
    import torch
    from transformers import LlamaForCausalLM

HERE = Path(__file__).resolve().parent
STAGES = ("text", "train", "export", "judge")

BIBLE_SHA256 = "a26264076eedfef0d541471bda9e2768d84993069c10694c0298fa402d1810e7"
PYTHON_SHA256 = "50a725baf5159ebd60ad471302261270b9a1ae9777598ffa02d647094560b189"

HELD_OUT_SHARE = 0.05
"""The tail of the Bible that is never trained on (cut at the start of a chapter)."""
HELD_OUT_BYTES = 96 * 1024
"""At most so much of that tail is ``held_out.txt``; the rest is for choosing settings."""

CONTEXT = 512
BLOCK = 32
PROMPTS = ("The LORD is my shepherd; ", "Then Moses ")
SHIPPED = ("model.onnx", "model.onnx.data", "genai_config.json")


@dataclass(frozen=True)
class Recipe:
    """The numbers of a training run."""

    steps: int
    """Length of the schedule."""
    stop: int
    """The run ends after so many steps of it."""
    seed: int
    peak_rate: float
    tokens_a_step: int = 2048
    short_window: int = 256
    short_share: float = 0.6
    """Share of the steps that read windows of ``short_window``; the others read ``CONTEXT``."""
    rounded_share: float = 0.25
    """Share of the steps, at the end, that go through the int4 rounding."""
    warmup: int = 100
    final_rate: float = 0.02
    weight_decay: float = 0.1
    clip: float = 1.0
    other_share: float = 1 / 16
    """Share of the windows that come from the Python source."""

    def rate(self, step: int) -> float:
        """Learning rate: a linear warm-up, then a cosine down to ``final_rate`` of the peak."""
        if step < self.warmup:
            return self.peak_rate * (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        cosine = 0.5 * (1 + math.cos(math.pi * done))
        return self.peak_rate * (self.final_rate + (1 - self.final_rate) * cosine)

    def window(self, step: int) -> int:
        """Length of the windows of a step."""
        return self.short_window if step < self.short_share * self.steps else CONTEXT


def say(text: str) -> None:
    """Print a line at once, also into a pipe."""
    print(text, flush=True)


# ---------------------------------------------------------------------------------------- text


def bible_text(program: str, data: str | None) -> bytes:
    """The King James Bible as Debian's ``bible`` prints it, without verse numbers.

    A chapter is its name on a line of its own, a blank line, and one line for each verse.
    """
    place = ["-p", data] if data else []
    command = [program, *place, "-l9000", "Gen1:1-Rev22:21"]
    printed = subprocess.run(command, check=True, capture_output=True).stdout.decode("ascii")
    lines = [line.strip() for line in printed.splitlines()]
    text: list[str] = []
    for line in lines:
        number, _, verse = line.partition(" ")
        if not line:
            continue
        if number.isdigit() and not (verse[:1].isupper() and verse.split()[-1].isdigit()):
            text.append(verse.strip())
        else:
            text += ["", line, ""]
    return ("\n".join(text).strip() + "\n").encode("ascii")


def python_text() -> bytes:
    """Python source, for a little variety: the two modules of more-itertools (MIT licence)."""
    found = importlib.util.find_spec("more_itertools")
    if found is None or found.origin is None:
        raise SystemExit("train.py: more-itertools is missing: pip install -r requirements.txt")
    folder = Path(found.origin).parent
    source = b"\n".join((folder / name).read_bytes() for name in ("recipes.py", "more.py"))
    return source.replace(b"\r\n", b"\n").decode().encode("ascii", "ignore")


def checked(text: bytes, sha256: str, what: str) -> bytes:
    """The text, with a warning when it is not the one that the committed model has read."""
    found = hashlib.sha256(text).hexdigest()
    if found != sha256:
        say(f"warning: {what} differs from the committed model's (sha256 {found})")
    return text


def chapter_after(text: bytes, place: int) -> int:
    """Where the first chapter that begins at or after a place begins."""
    while True:
        place = text.index(b"\n\n", place) + 2
        heading, _, rest = text[place:].partition(b"\n")
        if heading.split()[-1].isdigit() and rest.startswith(b"\n"):
            return place


def prepare(work: Path, out: Path, program: str, data: str | None) -> None:
    """Write the text to train on, to choose settings on, and to judge by."""
    bible = checked(bible_text(program, data), BIBLE_SHA256, "the text of the Bible")
    other = checked(python_text(), PYTHON_SHA256, "more-itertools")
    tail = chapter_after(bible, int(len(bible) * (1 - HELD_OUT_SHARE)))
    judged = chapter_after(bible, len(bible) - HELD_OUT_BYTES)
    (work / "train.txt").write_bytes(bible[:tail])
    (work / "other.txt").write_bytes(other)
    (work / "choose.txt").write_bytes(bible[tail:judged])
    (out / "held_out.txt").write_bytes(bible[judged:])
    say(
        f"text: {tail} bytes of the Bible and {len(other)} of Python to train on, "
        f"{judged - tail} to choose by, {len(bible) - judged} held out"
    )


# --------------------------------------------------------------------------------------- train


class Windows:
    """Draws windows of text: half begin where a line begins, half anywhere."""

    def __init__(self, text: bytes) -> None:
        import numpy as np

        self.text = np.frombuffer(text, dtype=np.uint8)
        self.lines = np.flatnonzero(np.concatenate(([10], self.text[:-1])) == 10)

    def draw(self, random: np.random.Generator, length: int) -> np.ndarray:
        """A window and the byte after it."""
        last = len(self.text) - length - 1
        if random.random() < 0.5:
            start = int(random.integers(last))
        else:
            start = min(int(random.choice(self.lines)), last)
        return self.text[start : start + length + 1]


def rounded(weight: torch.Tensor) -> torch.Tensor:
    """What the builder's default int4 makes of a weight matrix [N, K]; the gradient passes through.

    A block of 32 along K has one scale, such that the largest value is code -8 exactly.
    """
    import torch

    blocks = weight.detach().unflatten(1, (-1, BLOCK))
    largest = blocks.gather(2, blocks.abs().argmax(2, keepdim=True))
    scale = torch.where(largest == 0, torch.ones_like(largest), largest / -8)
    values = (torch.clamp(torch.round(blocks / scale), -8, 7) * scale).flatten(1)
    return weight + (values - weight).detach()


def round_weights(model: LlamaForCausalLM) -> Callable[[], None]:
    """Have every matrix but the embedding go through ``rounded``; returns how to undo it."""
    import torch
    from torch.nn.utils import parametrize

    class Rounded(torch.nn.Module):
        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            return rounded(weight)

    layers = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    for layer in layers:
        parametrize.register_parametrization(layer, "weight", Rounded())

    def undo() -> None:
        for layer in layers:
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)

    return undo


def new_model() -> LlamaForCausalLM:
    """The untrained model."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=256,
        hidden_size=192,
        intermediate_size=384,
        num_hidden_layers=5,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=CONTEXT,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
        initializer_range=0.04,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config)


def torch_logits(model: LlamaForCausalLM) -> Callable[[np.ndarray], np.ndarray]:
    """The model as a function from byte ids [B, S] to logits [B, S, 256]."""
    import torch

    def logits(ids: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return model(input_ids=torch.from_numpy(ids), use_cache=False).logits.numpy()

    return logits


def train(work: Path, recipe: Recipe) -> None:
    """Train from nothing, and leave a float checkpoint and the course of the loss."""
    import numpy as np
    import torch
    from torch.nn import functional

    torch.set_num_threads(1)
    torch.manual_seed(recipe.seed)
    torch.use_deterministic_algorithms(True)
    random = np.random.default_rng(recipe.seed)
    bible = Windows((work / "train.txt").read_bytes())
    other = Windows((work / "other.txt").read_bytes())
    choose = (work / "choose.txt").read_bytes()

    model = new_model()
    count = sum(parameter.numel() for parameter in model.parameters())
    matrices = [p for p in model.parameters() if p.ndim == 2]
    vectors = [p for p in model.parameters() if p.ndim != 2]
    groups = [
        {"params": matrices, "weight_decay": recipe.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    adam = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.98), fused=True)
    say(f"train: {count} parameters, steps of {recipe.tokens_a_step} bytes")

    undo: Callable[[], None] | None = None
    begun = time.perf_counter()
    mean, course = 0.0, []
    last = min(recipe.steps, recipe.stop)
    for step in range(last):
        if undo is None and step >= (1 - recipe.rounded_share) * recipe.steps:
            undo = round_weights(model)
        length = recipe.window(step)
        rows = [
            (other if random.random() < recipe.other_share else bible).draw(random, length)
            for _ in range(recipe.tokens_a_step // length)
        ]
        batch = torch.from_numpy(np.stack(rows).astype(np.int64))
        logits = model(input_ids=batch[:, :-1], use_cache=False).logits
        loss = functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        adam.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        for group in adam.param_groups:
            group["lr"] = recipe.rate(step)
        adam.step()

        mean = loss.item() if step == 0 else 0.98 * mean + 0.02 * loss.item()
        if (step + 1) % 100 == 0 or step + 1 == last:
            seconds = time.perf_counter() - begun
            say(f"step {step + 1}: loss {mean:.4f} nats a byte, {seconds:.0f} s")
            course.append({"step": step + 1, "loss": round(mean, 4), "seconds": round(seconds)})
        if (step + 1) % 500 == 0 or step + 1 == last:
            nats = nats_a_byte(torch_logits(model), choose[: 32 * CONTEXT])
            say(f"step {step + 1}: {nats:.4f} nats a byte on text not trained on")
    if undo is not None:
        undo()
    model.eval().save_pretrained(work / "checkpoint")
    (work / "course.json").write_text(json.dumps({"parameters": count, "course": course}))


# -------------------------------------------------------------------------------------- export


def stand_in_tokenizer(folder: Path) -> None:
    """A tokenizer beside the checkpoint: the builder insists on one. It is not shipped."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({f"<{n:02x}>": n for n in range(256)}, unk_token="<00>"))
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<00>").save_pretrained(folder)


def export(work: Path, out: Path) -> None:
    """Run onnxruntime-genai's builder on the checkpoint; keep the graph, its data, its config."""
    checkpoint, built, cache = work / "checkpoint", work / "built", work / "cache"
    stand_in_tokenizer(checkpoint)
    shutil.rmtree(built, ignore_errors=True)
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder"]
    command += ["-i", str(checkpoint), "-o", str(built), "-c", str(cache)]
    command += ["-p", "int4", "-e", "cpu", "--extra_options", "hf_token=false"]
    subprocess.run(command, check=True)
    (out / "model").mkdir(exist_ok=True)
    for name in SHIPPED:
        shutil.copyfile(built / name, out / "model" / name)
        say(f"export: {name}, {(built / name).stat().st_size} bytes")


# --------------------------------------------------------------------------------------- judge


def nats_a_byte(logits: Callable[[np.ndarray], np.ndarray], text: bytes) -> float:
    """Mean cross entropy of a text, in windows of ``CONTEXT`` bytes that do not overlap.

    A window knows nothing of the ones before it; its first byte is given, not scored. A rest that
    does not fill a window is left out.
    """
    import numpy as np

    ids = np.frombuffer(text, dtype=np.uint8).astype(np.int64)
    ids = ids[: len(ids) // CONTEXT * CONTEXT].reshape(-1, CONTEXT)
    total = 0.0
    for rows in np.array_split(ids, math.ceil(len(ids) / 16)):
        values = logits(rows)[:, :-1].astype(np.float64)
        values -= values.max(-1, keepdims=True)
        chosen = np.take_along_axis(values, rows[:, 1:, None], -1)[..., 0]
        total += float((np.log(np.exp(values).sum(-1)) - chosen).sum())
    return total / (ids.shape[0] * (CONTEXT - 1))


class Graph:
    """The exported model in onnxruntime."""

    def __init__(self, model: Path, float_activations: bool) -> None:
        import onnx
        import onnxruntime as ort

        proto = onnx.load(model)
        if float_activations:
            for node in proto.graph.node:
                for attribute in node.attribute:
                    if attribute.name == "accuracy_level":
                        attribute.i = 0
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        data = proto.SerializeToString()
        self.session: ort.InferenceSession = ort.InferenceSession(
            data, options, providers=["CPUExecutionProvider"]
        )
        config = json.loads((model.parent / "genai_config.json").read_text())["model"]["decoder"]
        self.layers: int = config["num_hidden_layers"]
        self.heads: int = config["num_key_value_heads"]
        self.width: int = config["head_size"]

    def run(self, ids: np.ndarray, past: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """One call: logits and the caches, under the names of the graph's outputs."""
        import numpy as np

        seen = next(iter(past.values())).shape[2]
        mask = np.ones((ids.shape[0], seen + ids.shape[1]), np.int64)
        names = [output.name for output in self.session.get_outputs()]
        feeds = {"input_ids": ids, "attention_mask": mask, **past}
        return dict(zip(names, self.session.run(names, feeds), strict=True))

    def empty(self, batch: int) -> dict[str, np.ndarray]:
        """Caches that hold nothing yet."""
        import numpy as np

        none = np.zeros((batch, self.heads, 0, self.width), np.float32)
        parts = ("key", "value")
        return {f"past_key_values.{n}.{p}": none for n in range(self.layers) for p in parts}

    def logits(self, ids: np.ndarray) -> np.ndarray:
        """Logits [B, S, 256] of whole windows."""
        return self.run(ids, self.empty(len(ids)))["logits"]

    def continued(self, prompt: str, count: int, temperature: float = 0.0, seed: int = 0) -> str:
        """A prompt, continued by so many bytes: the likeliest ones, or drawn."""
        import numpy as np

        random = np.random.default_rng(seed)
        text, past = bytearray(prompt.encode()), self.empty(1)
        step = np.array([list(text)], np.int64)
        for _ in range(count):
            results = self.run(step, past)
            last = results["logits"][0, -1].astype(np.float64)
            if temperature:
                chances = np.exp((last - last.max()) / temperature)
                text.append(int(random.choice(256, p=chances / chances.sum())))
            else:
                text.append(int(last.argmax()))
            step = np.array([[text[-1]]], np.int64)
            past = {name: results[name.replace("past_key_values", "present")] for name in past}
        return text.decode("ascii", "backslashreplace")


def judge(work: Path, out: Path) -> None:
    """Nats a byte of the held-out text, three ways, and samples; also in ``figures.json``."""
    import torch
    from transformers import LlamaForCausalLM

    text = (out / "held_out.txt").read_bytes()
    figures: dict[str, float] = {}
    torch.set_num_threads(1)
    model = LlamaForCausalLM.from_pretrained(work / "checkpoint").eval()
    figures["torch, float"] = nats_a_byte(torch_logits(model), text)
    graph = Graph(out / "model" / "model.onnx", float_activations=False)
    figures["onnxruntime, int4"] = nats_a_byte(graph.logits, text)
    exact = Graph(out / "model" / "model.onnx", float_activations=True)
    figures["onnxruntime, int4, float activations"] = nats_a_byte(exact.logits, text)
    for what, nats in figures.items():
        bits, perplexity = nats / math.log(2), math.exp(nats)
        say(f"{what}: {nats:.4f} nats, {bits:.4f} bits a byte, perplexity {perplexity:.4f}")
    samples = {prompt: graph.continued(prompt, 200) for prompt in PROMPTS}
    drawn = {prompt: graph.continued(prompt, 400, 0.7) for prompt in PROMPTS}
    for sample in [*samples.values(), *drawn.values()]:
        say(f"---\n{sample}")
    report = {"nats_a_byte": figures, "samples": samples, "drawn": drawn}
    (work / "figures.json").write_text(json.dumps(report, indent=2) + "\n")


# ---------------------------------------------------------------------------------------- main


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--steps", type=int, default=3000, help="length of the schedule (%(default)s)"
    )
    parser.add_argument("--stop", type=int, default=2800, help="steps of it to run (%(default)s)")
    parser.add_argument("--seed", type=int, default=1611, help="the seed (%(default)s)")
    parser.add_argument("--rate", type=float, default=2e-3, help="peak learning rate (%(default)s)")
    parser.add_argument("--only", choices=STAGES, action="append", help="run these stages only")
    parser.add_argument("--out", type=Path, default=HERE, help="for the model and held_out.txt")
    parser.add_argument(
        "--work", type=Path, default=Path("build/demo"), help="for all else (%(default)s)"
    )
    parser.add_argument("--bible", default="bible", help="Debian's bible program (%(default)s)")
    parser.add_argument("--bible-data", help="folder of bible.data, when not the usual one")
    options = parser.parse_args(arguments)

    stages = options.only or STAGES
    options.work.mkdir(parents=True, exist_ok=True)
    options.out.mkdir(parents=True, exist_ok=True)
    if "text" in stages:
        prepare(options.work, options.out, options.bible, options.bible_data)
    if "train" in stages:
        train(options.work, Recipe(options.steps, options.stop, options.seed, options.rate))
    if "export" in stages:
        export(options.work, options.out)
    if "judge" in stages:
        judge(options.work, options.out)


if __name__ == "__main__":
    main()
