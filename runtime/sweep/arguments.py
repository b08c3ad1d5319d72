"""Options of `intaglio sweep`."""

from __future__ import annotations

import argparse

PROMPT = 256
"""Tokens of the prompt whose first answer is timed, unless told."""


def sweep_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `intaglio sweep`, beside those that it shares with `compile`."""
    parser.add_argument(
        "--vary",
        metavar="KEY=A,B,C",
        action="append",
        default=[],
        help="a setting of the target with the values that it takes (| instead of commas where "
        "values have some); also target, context, weights, adapter_slots; several make a grid",
    )
    parser.add_argument(
        "--points", metavar="FILE", help="these points instead: JSON lines, a JSON list, or CSV"
    )
    parser.add_argument(
        "--search",
        metavar="N",
        type=int,
        help="at most N points of the grid, chosen by a sampler (Optuna) for the objectives",
    )
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="of the sampler")
    parser.add_argument(
        "--objective",
        dest="objectives",
        metavar="FIGURE",
        action="append",
        default=[],
        help="what the front is best in: tokens_per_second, mm2 and millijoules unless told; "
        "FIGURE@POSITION for one position",
    )
    parser.add_argument("--position", metavar="N,...", help="tokens to state; else first and last")
    parser.add_argument(
        "--prompt",
        metavar="N",
        type=int,
        default=PROMPT,
        help=f"time the first token after so many, {PROMPT} unless told; 0: do not",
    )
    parser.add_argument(
        "--text",
        metavar="FILE",
        help="also perplexity and KL on a text, by the simulator: engraves each point's weights",
    )
    parser.add_argument("--windows", metavar="N", type=int, default=1, help="of the text")
    parser.add_argument(
        "-o", dest="record", metavar="FILE", required=True, help="the record, JSON lines"
    )
    parser.add_argument(
        "--resume", action="store_true", help="go on with the record; its points are not repeated"
    )
    parser.add_argument("--html", metavar="FILE", help="write a page with linked plots")
    parser.add_argument("--csv", metavar="FILE", help="write the points as CSV")
    parser.add_argument("--parquet", metavar="FILE", help="write the points as Parquet")
    parser.add_argument(
        "--workers",
        metavar="N",
        type=int,
        help="processes on this machine (Dask), as many as cores unless told; 0: none but this one",
    )
    parser.add_argument(
        "--scheduler", metavar="ADDRESS", help="a Dask cluster of your own, such as tcp://host:8786"
    )
    parser.add_argument("--json", action="store_true", help="print points and front as JSON")
