"""How long a report takes to write and to load, in a headless Chromium, for a run of 10,000 pairs.

    python benchmarks/report.py                      # 10,000 synthetic pairs of 200 words a side, with token log-ratios
    python benchmarks/report.py --no_token_ratios    # without them
    python benchmarks/report.py --run runs/quickstart

Loading ends when the browser has fired `load` and the explorer's first pairs are in the document; `chart` is when the
first chart is drawn, from the same start, for which plotly.js must run. Every repeat is a fresh browser context. A
search is the time from the last key to the new count.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from pbsd.report.commands import report

WORDS = [f"word{number}" for number in range(500)]


def write_run(folder: Path, pairs: int, words: int, token_ratios: bool) -> Path:
    """A run folder of synthetic pairs, 32 a step; a word is a token."""
    rng = random.Random(0)

    def side(role: str) -> dict[str, Any]:
        pieces = [f" {word}" for word in rng.choices(WORDS, k=words)]
        ratios = [round(rng.gauss(0, 0.5), 3) for _ in pieces]
        side = {
            "text": "".join(pieces), "role": role, "reward": float(rng.random() < 0.5), "tokens": words,
            "finished": True, "log_ratio": sum(ratios),
        }  # fmt: skip
        return {**side, "token_texts": pieces, "token_log_ratios": ratios} if token_ratios else side

    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("dataset_name: synthetic\nmethod: pbsd\n")
    with (folder / "samples.jsonl").open("w") as file:
        for number in range(pairs):
            row = number % 1000
            record = {
                "step": 1 + number // 32, "row": row, "prompt": f"problem {row} " + "text " * 80,
                "privileged_context": f"solution of {row} " + "text " * 80, "chosen": side("teacher"),
                "rejected": side("student"), "margin": rng.gauss(0, 2), "label": 1.0, "swapped": False, "loss": 0.7,
            }  # fmt: skip
            file.write(json.dumps(record) + "\n")
    return folder


def measure(path: Path, chromium: str, repeats: int) -> dict[str, Any]:
    """Medians over fresh contexts, in seconds; the number of elements after loading."""
    from playwright.sync_api import expect, sync_playwright

    loads, charts, searches, elements = [], [], [], 0
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium)
        for _ in range(repeats):
            context = browser.new_context(offline=True)
            page = context.new_page()
            start = time.perf_counter()
            page.goto(path.as_uri(), wait_until="load")
            expect(page.get_by_role("article").first).to_be_visible()
            loads.append(time.perf_counter() - start)
            page.locator("figure").first.scroll_into_view_if_needed()
            expect(page.locator("svg.main-svg").first).to_be_visible()
            charts.append(time.perf_counter() - start)
            elements = page.evaluate("document.querySelectorAll('*').length")
            start = time.perf_counter()
            page.get_by_label("Search").fill("no such text")
            expect(page.get_by_role("status")).to_contain_text("match")
            searches.append(time.perf_counter() - start)
            context.close()
        browser.close()
    figures = {"load": loads, "chart": charts, "search": searches}
    return {**{name: median(values) for name, values in figures.items()}, "all": figures, "elements": elements}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="a run folder (default: synthetic pairs)")
    parser.add_argument("--pairs", type=int, default=10_000)
    parser.add_argument("--words", type=int, default=200, help="of each synthetic completion (default 200)")
    parser.add_argument("--no_token_ratios", dest="token_ratios", action="store_false", help="log_token_ratios: false")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--chromium", default=shutil.which("chromium"))
    parser.add_argument("--out", type=Path, help="JSON file to write")
    args = parser.parse_args()
    if args.chromium is None:
        parser.error("no chromium found: install it, or name one with --chromium")
    with tempfile.TemporaryDirectory() as folder:
        run = args.run or write_run(Path(folder) / "run", args.pairs, args.words, args.token_ratios)
        start = time.perf_counter()
        html = report([run], max_pairs=args.pairs)
        wrote = time.perf_counter() - start
        path = Path(folder) / "page.html"
        path.write_text(html, "utf-8")
        result = {"write": wrote, "megabytes": path.stat().st_size / 1e6, **measure(path, args.chromium, args.repeats)}
    print(json.dumps(result, indent=1))
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
