"""Does the quickstart improve the model on every seed? Five seeds that nobody picked: digits of a hash of its name.

    python studies/quickstart/run.py     # one after the other; writes results.json

Every run is `pbsd train recipes/quickstart.yaml --seed S`, nothing else changed; held-out problems are the recipe's.
"""

import hashlib
import json
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SEEDS = [int.from_bytes(hashlib.sha256(b"pbsd quickstart").digest()[4 * i : 4 * i + 4]) % 100_000 for i in range(5)]


def main() -> None:
    results = []
    for seed in SEEDS:
        folder = ROOT / f"runs/quickstart-seed-{seed}"
        started = time.monotonic()
        command = [Path(sys.executable).with_name("pbsd"), "train", "recipes/quickstart.yaml"]
        subprocess.run([*command, "--seed", str(seed), "--output_dir", str(folder)], cwd=ROOT, check=True)
        summary = json.loads((folder / "summary.json").read_text())
        results.append({"seed": seed, "wall_seconds": round(time.monotonic() - started, 1), **summary})
        Path(__file__).with_name("results.json").write_text(json.dumps(results, indent=2) + "\n")
    lows = [result["accuracy"]["difference"]["low"] for result in results]
    print("lower ends of the paired intervals:", [round(low, 3) for low in lows])
    print("every one above zero" if min(lows) > 0 else "NOT every one above zero")


if __name__ == "__main__":
    main()
