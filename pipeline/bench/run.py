"""``world-models bench``: run, and show as a table or as JSON."""

from __future__ import annotations

import json
import os
from dataclasses import asdict

from pipeline.bench.driving import bench_agent, bench_env
from pipeline.bench.training import bench_train_mdnrnn, bench_train_vae
from pipeline.identity import cpu_kind

BENCHES = {
    "env": bench_env,
    "agent": bench_agent,
    "train-vae": bench_train_vae,
    "train-mdnrnn": bench_train_mdnrnn,
}


def run_benches(name: str, *, seconds: float, as_json: bool) -> None:
    """Run one bench or all; print a Markdown table, then, if asked, one line of JSON a bench."""
    print(f"{cpu_kind()}, {os.cpu_count()} cores; each side measured for {seconds:g} s, in turns\n")
    print("| bench | unit | threads | reference | | ours | | ratio |\n|---|---|--:|---|--:|---|--:|--:|")
    results = []
    for bench in BENCHES if name == "all" else [name]:
        result = BENCHES[bench](seconds)
        print(
            f"| {result.bench} | {result.unit} | {result.threads} | {result.reference_what} | {result.reference:,.0f} "
            f"| {result.ours_what} | {result.ours:,.0f} | {result.ratio:.2f} |",
            flush=True,
        )
        results.append(result)
    if as_json:
        for result in results:
            print(json.dumps({**asdict(result), "ratio": result.ratio}))
