"""What the recipes of the examples share: the text, the training loop, the judging.

The recipes themselves are ``demo/train.py`` (an int4 Llama), ``demo/adapters.py`` (adapters
for it), ``bitnet/train.py`` (a BitNet b1.58), ``experts/train.py`` (a mixture of experts) and
``states/train.py`` (linear attention). The vocabulary of all of them is the 256 bytes. Everything
is counted in steps and drawn from one seed, on one thread: the same machine and the same versions
give the same weights again.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import math
import subprocess
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import onnxruntime as ort
    import torch
    from onnx import ModelProto
    from transformers import PreTrainedModel

BIBLE_SHA256 = "a26264076eedfef0d541471bda9e2768d84993069c10694c0298fa402d1810e7"
PYTHON_SHA256 = "50a725baf5159ebd60ad471302261270b9a1ae9777598ffa02d647094560b189"

HELD_OUT_SHARE = 0.05
"""The tail of the Bible that is never trained on (cut at the start of a chapter)."""
HELD_OUT_BYTES = 96 * 1024
"""At most so much of that tail is ``held_out.txt``; the rest is for choosing settings."""

CONTEXT = 512
CACHE, STATE = "past_key_values.", "past."
"""What the names of a graph's inputs begin with."""
PROMPTS = ("The LORD is my shepherd; ", "Then Moses ")


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
    """Share of the steps, at the end, that go through the rounding of the weights."""
    warmup: int = 100
    final_rate: float = 0.02
    weight_decay: float = 0.1
    clip: float = 1.0
    other_share: float = 1 / 16
    """Share of the windows that come from the other text (for the base models Python source)."""
    keep_every: int = 0
    """Leave a checkpoint after each so many steps too, not only at the end."""

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


def package_folder(name: str) -> Path:
    """Where a Python package that serves as text is installed."""
    found = importlib.util.find_spec(name)
    if found is None or found.origin is None:
        raise SystemExit(f"{name} is missing: pip install -r requirements.txt")
    return Path(found.origin).parent


def python_text(package: str, names: Iterable[str]) -> bytes:
    """Python source, the modules of a package one after the other, in ASCII."""
    folder = package_folder(package)
    source = b"\n".join((folder / name).read_bytes() for name in names)
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


def prepare(work: Path, program: str, data: str | None) -> None:
    """Write the text to train on, to choose settings on, and to judge by."""
    bible = checked(bible_text(program, data), BIBLE_SHA256, "the text of the Bible")
    # A little Python for variety: the two modules of more-itertools (MIT licence).
    other = python_text("more_itertools", ("recipes.py", "more.py"))
    checked(other, PYTHON_SHA256, "more-itertools")
    tail = chapter_after(bible, int(len(bible) * (1 - HELD_OUT_SHARE)))
    judged = chapter_after(bible, len(bible) - HELD_OUT_BYTES)
    (work / "train.txt").write_bytes(bible[:tail])
    (work / "other.txt").write_bytes(other)
    (work / "choose.txt").write_bytes(bible[tail:judged])
    (work / "held_out.txt").write_bytes(bible[judged:])
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


def round_weights(
    model: PreTrainedModel,
    function: Callable[[torch.Tensor], torch.Tensor],
    but: str | tuple[str, ...] = (),
) -> None:
    """Have every matrix go through a function of its weights.

    But the embedding, and those whose names end as ``but`` says.
    """
    import torch
    from torch.nn.utils import parametrize

    class Rounded(torch.nn.Module):
        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            return function(weight)

    for name, layer in list(model.named_modules()):
        if isinstance(layer, torch.nn.Linear) and not name.endswith(but):
            parametrize.register_parametrization(layer, "weight", Rounded())


def plain(model: PreTrainedModel) -> PreTrainedModel:
    """A copy of the model that is ready to save, with float weights as before the rounding."""
    state = {
        name.replace("parametrizations.weight.original", "weight"): value
        for name, value in model.state_dict().items()
    }
    copied = type(model)(model.config)
    copied.load_state_dict(state)
    return copied.eval()


def torch_logits(model: torch.nn.Module) -> Callable[[np.ndarray], np.ndarray]:
    """The model as a function from byte ids [B, S] to logits [B, S, 256]."""
    import torch

    def logits(ids: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return model(input_ids=torch.from_numpy(ids), use_cache=False).logits.numpy()

    return logits


def begin(seed: int) -> np.random.Generator:
    """One thread, one seed, no operator whose result depends on the weather."""
    import numpy as np
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True)
    return np.random.default_rng(seed)


def train(
    model: torch.nn.Module,
    text: Path,
    recipe: Recipe,
    random: np.random.Generator,
    round_now: Callable[[], None],
    save: Callable[[], None],
    penalty: Callable[[], torch.Tensor] | None = None,
) -> list[dict[str, float]]:
    """Train all parameters that want a gradient; returns the course of the loss.

    ``text`` is a folder with ``train.txt``, ``choose.txt`` and, if the recipe mixes, ``other.txt``.
    ``round_now`` is called once, where the steps begin that go through the rounding. ``penalty`` is
    of the step's forward pass, and added to its loss.
    """
    import numpy as np
    import torch
    from torch.nn import functional

    main = Windows((text / "train.txt").read_bytes())
    other = Windows((text / "other.txt").read_bytes()) if recipe.other_share else main
    choose = (text / "choose.txt").read_bytes()

    wanted = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in wanted if p.ndim >= 2], "weight_decay": recipe.weight_decay},
        {"params": [p for p in wanted if p.ndim < 2], "weight_decay": 0.0},
    ]
    adam = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.98), fused=True)
    count = sum(parameter.numel() for parameter in wanted)
    say(f"train: {count} parameters, steps of {recipe.tokens_a_step} bytes")

    rounding = False
    begun = time.perf_counter()
    mean, course = 0.0, []
    last = min(recipe.steps, recipe.stop)
    for step in range(last):
        if not rounding and step >= (1 - recipe.rounded_share) * recipe.steps:
            round_now()
            rounding = True
        length = recipe.window(step)
        rows = [
            (other if random.random() < recipe.other_share else main).draw(random, length)
            for _ in range(recipe.tokens_a_step // length)
        ]
        batch = torch.from_numpy(np.stack(rows).astype(np.int64))
        logits = model(input_ids=batch[:, :-1], use_cache=False).logits
        loss = functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        adam.zero_grad()
        (loss if penalty is None else loss + penalty()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        for group in adam.param_groups:
            group["lr"] = recipe.rate(step)
        adam.step()

        mean = loss.item() if step == 0 else 0.98 * mean + 0.02 * loss.item()
        done, ended = step + 1, step + 1 == last
        if done % 100 == 0 or ended:
            seconds = time.perf_counter() - begun
            say(f"step {done}: loss {mean:.4f} nats a byte, {seconds:.0f} s")
            course.append({"step": done, "loss": round(mean, 4), "seconds": round(seconds)})
        if done % 500 == 0 or ended:
            nats = nats_a_byte(torch_logits(model), choose[: 32 * CONTEXT])
            say(f"step {done}: {nats:.4f} nats a byte on text not trained on")
        if ended or (recipe.keep_every and done % recipe.keep_every == 0):
            save()
    return course


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


def verdict(what: str, nats: float) -> str:
    """A cross entropy in words."""
    bits, perplexity = nats / math.log(2), math.exp(nats)
    return f"{what}: {nats:.4f} nats, {bits:.4f} bits a byte, perplexity {perplexity:.4f}"


class Graph:
    """A language model in onnxruntime: ``input_ids``, ``attention_mask``, caches and states.

    Caches grow along their third axis; states (``past.N.conv``, ``past.N.recurrent``) keep their
    size. ``head_size`` is for graphs that give that dimension of the caches no number.
    """

    def __init__(self, model: ModelProto, head_size: int | None = None) -> None:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.session: ort.InferenceSession = ort.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        inputs = self.session.get_inputs()
        self.position_axes: list[int] = [
            len(entry.shape) for entry in inputs if entry.name == "position_ids"
        ]
        self.caches: dict[str, tuple[int, ...]] = {
            entry.name: (entry.shape[1], 0, head_size or entry.shape[3])
            for entry in inputs
            if entry.name.startswith(CACHE)
        }
        self.states: dict[str, tuple[int, ...]] = {
            entry.name: tuple(entry.shape[1:]) for entry in inputs if entry.name.startswith(STATE)
        }

    def run(self, ids: np.ndarray, past: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """One call: logits and the caches and states, under the names of the graph's outputs."""
        import numpy as np

        seen = past[next(iter(self.caches))].shape[2]
        mask = np.ones((ids.shape[0], seen + ids.shape[1]), np.int64)
        feeds = {"input_ids": ids, "attention_mask": mask, **past}
        for axes in self.position_axes:
            # Along three axes for models that see images too; equal ones, for text.
            positions = np.arange(seen, mask.shape[1])[None].repeat(len(ids), 0)
            feeds["position_ids"] = positions if axes == 2 else np.stack([positions] * 3)
        names = [output.name for output in self.session.get_outputs()]
        results = [np.asarray(result) for result in self.session.run(names, feeds)]
        return dict(zip(names, results, strict=True))

    def empty(self, batch: int) -> dict[str, np.ndarray]:
        """Caches that hold nothing yet, and states of zeros."""
        import numpy as np

        both = self.caches | self.states
        return {name: np.zeros((batch, *shape), np.float32) for name, shape in both.items()}

    def logits(self, ids: np.ndarray) -> np.ndarray:
        """Logits [B, S, 256] of whole windows."""
        return self.run(ids, self.empty(len(ids)))["logits"]

    def continued(self, prompt: str, count: int, temperature: float = 0.0, seed: int = 0) -> str:
        """A prompt, continued by so many bytes: the likeliest ones, or drawn."""
        import numpy as np

        past = self.empty(1)

        def next_logits(ids: np.ndarray) -> np.ndarray:
            results = self.run(ids, past)
            past.update(
                {
                    name: results["present." + name.removeprefix(CACHE).removeprefix(STATE)]
                    for name in past
                }
            )
            return results["logits"][0, -1]

        random = np.random.default_rng(seed)
        return continued(next_logits, prompt, count, temperature, random)


def continued(
    next_logits: Callable[[np.ndarray], np.ndarray],
    prompt: str,
    count: int,
    temperature: float,
    random: np.random.Generator,
) -> str:
    """A prompt, continued by so many bytes.

    ``next_logits`` takes the ids [1, S] that follow those it has seen, and gives the logits [256]
    of the byte after them. At temperature 0 that byte is the likeliest one, otherwise it is drawn.
    """
    import numpy as np

    text = bytearray(prompt.encode())
    step = np.array([list(text)], np.int64)
    for _ in range(count):
        last = next_logits(step).astype(np.float64)
        if temperature:
            chances = np.exp((last - last.max()) / temperature)
            text.append(int(random.choice(256, p=chances / chances.sum())))
        else:
            text.append(int(last.argmax()))
        step = np.array([[text[-1]]], np.int64)
    return text.decode("ascii", "backslashreplace")


def report(
    work: Path, figures: dict[str, float], greedy: Callable[[str], str], drawn: Callable[[str], str]
) -> None:
    """Print figures and samples, and keep them in ``figures.json``."""
    for what, nats in figures.items():
        say(verdict(what, nats))
    samples = {"samples": {p: greedy(p) for p in PROMPTS}, "drawn": {p: drawn(p) for p in PROMPTS}}
    for group in samples.values():
        for sample in group.values():
            say(f"---\n{sample}")
    content = {"nats_a_byte": figures, **samples}
    (work / "figures.json").write_text(json.dumps(content, indent=2) + "\n")


# ---------------------------------------------------------------------------------------- main


def command_line(
    about: str | None, stages: tuple[str, ...], out: Path, work: Path
) -> argparse.ArgumentParser:
    """The options that the recipes have in common."""
    parser = argparse.ArgumentParser(
        description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=stages, action="append", help="run these stages only")
    parser.add_argument("--out", type=Path, default=out, help="for what is shipped")
    parser.add_argument("--work", type=Path, default=work, help="for all else (%(default)s)")
    parser.add_argument("--bible", default="bible", help="Debian's bible program (%(default)s)")
    parser.add_argument("--bible-data", help="folder of bible.data, when not the usual one")
    return parser


def schedule_options(parser: argparse.ArgumentParser, recipe: Recipe) -> None:
    """The options that change the numbers of a training run."""
    add = parser.add_argument
    add("--steps", type=int, default=recipe.steps, help="length of the schedule (%(default)s)")
    add("--stop", type=int, default=recipe.stop, help="steps of it to run (%(default)s)")
    add("--seed", type=int, default=recipe.seed, help="the seed (%(default)s)")
    add("--rate", type=float, default=recipe.peak_rate, help="peak learning rate (%(default)s)")


def scheduled(options: argparse.Namespace) -> Recipe:
    """The training run that `schedule_options` ask for."""
    return Recipe(options.steps, options.stop, options.seed, options.rate)
