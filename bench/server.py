"""Clients that ask, leave, die and send nonsense: every answer of `intaglio serve` against `run`'s.

    python bench/server.py [--seconds 300] [--clients 8] [--seed 0] [--work build/server]

Compiles the demo with its adapters, and lets `run` say what a list of requests is to be answered:
texts with and without adapters, greedy and drawn, with stops, whole and in streams. Then it serves
the folder to so many clients at once, each a process that asks one after the other at random, and

- kills one of them every few seconds, in the middle of whatever it does, and starts another;
- lets clients leave streams after some tokens;
- sends what is no request: no JSON, bodies that are too large or stop in the middle, unknown
  models, keys and paths.

An answer is right if text, number of tokens and cycles are those of `run`; nonsense, if its status
is the one that it should have. Nothing may be lost: whoever lives has an answer to each request.
The server's memory is looked at each second; its growth is that of the last quarter's largest over
the second quarter's. Prints figures as JSON; exits with 1 if an answer is wrong or missing, the
memory grew by more than a twentieth, or the server's end is not in order.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

DEMO = Path(__file__).parents[1] / "examples" / "demo"
ADAPTERS = ("devil", "python")
USERS, QUEUE = 4, 64
LARGEST_BODY = 1 << 16
GROWTH = 0.05
"""Of the memory that counts as flat."""
_JSON = {"Content-Type": "application/json"}
_KILL_EVERY = 4.0
_TIMEOUT = 120


def requests(seed: int, count: int = 48) -> list[dict[str, Any]]:
    """What clients ask for."""
    rng = random.Random(seed)
    text = (DEMO / "held_out.txt").read_text()
    made: list[dict[str, Any]] = []
    for number in range(count):
        begin = rng.randrange(len(text) - 200)
        one: dict[str, Any] = {
            "model": ("base", *ADAPTERS)[number % 3],
            "prompt": text[begin : begin + rng.randrange(1, 120)],
            "max_tokens": rng.randrange(1, 60),
            "temperature": 0,
        }
        if rng.random() < 0.4:
            one |= {"temperature": rng.choice([0.7, 1.0]), "seed": rng.randrange(1000)}
        if rng.random() < 0.3:
            one["stop"] = rng.choice([[" the "], ["e", "q"], ["\n"]])
        made.append(one)
    return made


def expected(out: Path, asked: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What `run` says of requests."""
    import intaglio

    chip = intaglio.load(out)
    found: list[dict[str, Any]] = []
    for one in asked:
        result = chip.run(
            one["prompt"],
            one["max_tokens"],
            stop=one.get("stop", ()),
            temperature=one["temperature"],
            seed=one.get("seed", 0),
            adapter=None if one["model"] == "base" else one["model"],
        )
        found.append(
            {
                "text": result["text"],
                "tokens": len(result["tokens"]),
                "reason": "stop" if result["stopped"] == "end_token" else "length",
                "prefill_cycles": result["prefill_cycles"],
                "decode_cycles": sum(result["cycles"][1:]),
            }
        )
    return found


# --- a client, in a process of its own ----------------------------------------------------------


def nonsense(rng: random.Random) -> tuple[str, str, Any, dict[str, str], set[int]]:
    """Method, path, body, headers of what is no request, and the statuses that it may have."""
    path = rng.choice(["/v1/completions", "/v1/chat/completions"])
    good = {"model": "base", "prompt": "x", "max_tokens": 2}
    kinds: list[tuple[str, str, Any, dict[str, str], set[int]]] = [
        ("POST", path, b"{", _JSON, {400}),
        ("POST", path, rng.randbytes(rng.randrange(1, 2000)), _JSON, {400}),
        ("POST", path, b"[" * 30_000, _JSON, {400}),
        ("POST", path, b" " * (LARGEST_BODY + rng.randrange(1, 1 << 20)), _JSON, {413}),
        ("POST", path, (b" " * 9000 for _ in range(30)), _JSON, {413}),
        ("POST", path, b"{}", {"Content-Type": "text/plain"}, {400}),
        ("POST", "/v1/completions", json.dumps({**good, "model": "gpt"}), _JSON, {404}),
        ("POST", "/v1/completions", json.dumps({**good, "max_tokens": 10**9}), _JSON, {400}),
        ("POST", "/v1/completions", json.dumps({**good, "prompt": "x" * 9000}), _JSON, {400}),
        ("POST", "/v1/completions", json.dumps({**good, "n": 3}), _JSON, {422}),
        ("POST", "/v1/completions", json.dumps({**good, "colour": 3}), _JSON, {400}),
        ("POST", "/v1/chat/completions", json.dumps({**good, "prompt": None}), _JSON, {400}),
        ("GET", f"/{rng.randrange(1000)}", None, {}, {404}),
        ("DELETE", "/v1/models", None, {}, {405}),
        ("GET", "/metrics", None, {}, {200}),
        ("GET", "/v1/models", None, {}, {200}),
    ]
    return rng.choice(kinds)


def parts(answer: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
    """The events of a stream."""
    for line in answer:
        if line.startswith(b"data: {"):
            yield json.loads(line[6:])


class Client:
    """Asks one thing after the other, and writes what came of it, a line each."""

    def __init__(self, port: int, seed: int, tasks: Path, log: Path) -> None:
        self.port = port
        self.rng = random.Random(seed)
        content = json.loads(tasks.read_text())
        self.asked, self.expected = content["asked"], content["expected"]
        self.log = log.open("a")

    def run(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            kind = self.rng.random()
            if kind < 0.15:
                outcome = self.nonsense()
            elif kind < 0.3:
                outcome = self.leave()
            else:
                outcome = self.ask(stream=self.rng.random() < 0.5)
            self.log.write(json.dumps(outcome) + "\n")
            self.log.flush()

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=_TIMEOUT)

    def nonsense(self) -> dict[str, Any]:
        method, path, body, headers, statuses = nonsense(self.rng)
        connection = self.connect()
        try:
            connection.request(method, path, body, headers, encode_chunked=True)
            status = connection.getresponse().status
        except (BrokenPipeError, ConnectionResetError):
            # The rest of a body that is too large is not read.
            status = 413
        finally:
            connection.close()
        right = status in statuses
        return {"kind": "nonsense", "right": right, "what": f"{method} {path}: {status}"}

    def leave(self) -> dict[str, Any]:
        number = self.rng.randrange(len(self.asked))
        connection = self.connect()
        body = json.dumps({**self.asked[number], "stream": True})
        connection.request("POST", "/v1/completions", body, _JSON)
        text = ""
        answer = connection.getresponse()
        for _, event in zip(range(self.rng.randrange(5)), parts(answer), strict=False):
            text += event["choices"][0]["text"] if "choices" in event else ""
        connection.close()
        right = answer.status == 200 and self.expected[number]["text"].startswith(text)
        return {"kind": "left", "right": right, "what": f"request {number}: {text!r}"}

    def ask(self, *, stream: bool) -> dict[str, Any]:
        number = self.rng.randrange(len(self.asked))
        connection = self.connect()
        body = {**self.asked[number], "stream": stream}
        if stream:
            body["stream_options"] = {"include_usage": True}
        start = time.monotonic()
        connection.request("POST", "/v1/completions", json.dumps(body), _JSON)
        answer = connection.getresponse()
        events = list(parts(answer)) if stream else [json.loads(answer.read())]
        took = time.monotonic() - start
        connection.close()
        found: dict[str, Any] = {"text": "", "tokens": None, "reason": None}
        for event in events:
            for choice in event.get("choices", ()):
                found["text"] += choice["text"]
                found["reason"] = choice["finish_reason"] or found["reason"]
            if event.get("usage"):
                found["tokens"] = event["usage"]["completion_tokens"]
            for name in ("prefill_cycles", "decode_cycles"):
                if name in event.get("intaglio", {}):
                    found[name] = event["intaglio"][name]
        right = answer.status == 200 and found == self.expected[number]
        what = "" if right else f"request {number}: {answer.status} {events[-1:]}"
        kind = "stream" if stream else "whole"
        return {"kind": kind, "right": right, "what": what, "tokens": found["tokens"], "s": took}


# --- the trial ----------------------------------------------------------------------------------


def prepare(work: Path) -> Path:
    """The demo for roma-mini with its adapters."""
    out = work / "out"
    tool = [sys.executable, "-m", "intaglio.runtime.cli"]
    model = DEMO / "model" / "model.onnx"
    options = ["--target", "roma-mini", "--adapter-slots", "16", "--resident-adapters", "2"]
    quiet = {"check": True, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run(
        [*tool, "compile", str(model), *options, "--emit", "program", "-o", str(out)], **quiet
    )
    for name in ADAPTERS:
        adapter = str(DEMO / "adapters" / name)
        subprocess.run([*tool, "adapter", "add", str(out), name, adapter], **quiet)
    return out


def resident(pid: int) -> int:
    """Bytes of a process that are in memory and its own."""
    text = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"RssAnon:\s+(\d+) kB", text)
    assert found is not None
    return int(found[1]) << 10


def started(out: Path, log: Path) -> tuple[subprocess.Popen[bytes], int]:
    """A server, and its port."""
    command = [sys.executable, "-m", "intaglio.runtime.cli", "serve", str(out), "--port", "0"]
    options = ["--name", "base", "--users", str(USERS), "--queue", str(QUEUE)]
    with log.open("wb") as file:
        process = subprocess.Popen(
            [*command, *options, "--max-body", str(LARGEST_BODY)], stderr=file
        )
    while not (found := re.search(r"http://[\d.]+:(\d+)/", log.read_text())):
        assert process.poll() is None, log.read_text()
        time.sleep(0.1)
    return process, int(found[1])


def trial(work: Path, seconds: float, clients: int, seed: int) -> dict[str, Any]:
    """Serves for so long, and says what came of it."""
    rng = random.Random(seed)
    out = prepare(work)
    asked = requests(seed)
    tasks = work / "tasks.json"
    tasks.write_text(json.dumps({"asked": asked, "expected": expected(out, asked)}))
    logs = work / "logs"
    logs.mkdir()
    server, port = started(out, work / "server.log")
    end, count = time.monotonic() + seconds, 0

    def client() -> subprocess.Popen[bytes]:
        nonlocal count
        count += 1
        left = max(0.0, end - time.monotonic())
        arguments = [str(port), str(seed * 1000 + count), str(tasks), str(logs / f"{count}")]
        return subprocess.Popen([sys.executable, __file__, "--client", *arguments, str(left)])

    there = [client() for _ in range(clients)]
    killed, broken, sizes = 0, 0, list[int]()
    due = time.monotonic() + _KILL_EVERY
    while (now := time.monotonic()) < end:
        time.sleep(min(1.0, end - now))
        sizes.append(resident(server.pid))
        for number, one in enumerate(there):
            if one.poll() is not None and time.monotonic() < end:
                broken += one.returncode != 0
                there[number] = client()
        if time.monotonic() > due:
            number = rng.randrange(clients)
            there[number].kill()
            there[number].wait()
            there[number] = client()
            killed, due = killed + 1, time.monotonic() + _KILL_EVERY
    for one in there:
        broken += one.wait(_TIMEOUT) != 0
    counters = metrics(port)
    server.send_signal(signal.SIGTERM)
    code = server.wait(30)
    return result(logs, counters, sizes, clients, seconds) | {
        "clients_killed": killed,
        "clients_broken": broken,
        "exit_code": code,
        "said": (work / "server.log").read_text().splitlines()[1:],
    }


def metrics(port: int) -> dict[str, float]:
    """What the server counted, when nobody is there any more."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_TIMEOUT)
    connection.request("GET", "/metrics")
    lines = connection.getresponse().read().decode().splitlines()
    connection.close()
    pairs = (line.rpartition(" ") for line in lines if not line.startswith("#"))
    return {name.removeprefix("intaglio_"): float(value) for name, _, value in pairs}


def result(
    logs: Path, counters: dict[str, float], sizes: list[int], clients: int, seconds: float
) -> dict[str, Any]:
    """The figures."""
    outcomes = [
        json.loads(line)
        for log in sorted(logs.iterdir())
        # A client that was killed may have left half a line.
        for line in log.read_text().splitlines(keepends=True)
        if line.endswith("\n")
    ]
    right = Counter(one["kind"] for one in outcomes if one["right"])
    wrong = [one["what"] for one in outcomes if not one["right"]]
    took = sorted(one["s"] for one in outcomes if "s" in one)
    quarter = len(sizes) // 4
    before, after = max(sizes[quarter : 2 * quarter]), max(sizes[3 * quarter :])
    ended = {name: value for name, value in counters.items() if name.startswith("answers_total")}
    return {
        "seconds": seconds,
        "clients": clients,
        "right": dict(right),
        "wrong": len(wrong),
        "wrong_ones": wrong[:5],
        "generated_tokens": sum(one["tokens"] or 0 for one in outcomes if one.get("tokens")),
        "answer_seconds_median": took[len(took) // 2],
        "answer_seconds_largest": took[-1],
        "server_answers": ended,
        "server_users_left": counters["users"] + counters["queue"],
        "chip_seconds": counters["chip_seconds_total"],
        "host_seconds": counters["host_seconds_total"],
        "memory_mib": [round(one / 2**20, 1) for one in (before, after)],
        "memory_growth": after / before - 1,
    }


def main() -> int:
    """Prints the figures; 1 where something is not in order."""
    if sys.argv[1:2] == ["--client"]:
        port, seed, tasks, log, left = sys.argv[2:]
        Client(int(port), int(seed), Path(tasks), Path(log)).run(float(left))
        return 0
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path("build/server"))
    args = parser.parse_args()
    work = args.work / f"{os.getpid()}"
    work.mkdir(parents=True)
    found = trial(work, args.seconds, args.clients, args.seed)
    print(json.dumps(found, indent=1))
    good = not found["wrong"] and not found["clients_broken"] and not found["server_users_left"]
    flat = found["memory_growth"] <= GROWTH
    return 0 if good and flat and found["exit_code"] == 128 + signal.SIGTERM else 1


if __name__ == "__main__":
    sys.exit(main())
