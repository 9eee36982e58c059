"""Prints, as constraints for pip, the lowest version that pyproject.toml allows of every dependency but torch."""

import re
import tomllib
from pathlib import Path

project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text("utf-8"))["project"]
extras = {name: own for name, own in project["optional-dependencies"].items() if name not in ("all", "dev")}
for requirement in sorted({*project["dependencies"], *(line for own in extras.values() for line in own)}):
    match = re.fullmatch(r"([A-Za-z0-9._-]+)>=([0-9.]+)", requirement)
    if match is None:
        raise SystemExit(f"pyproject.toml: {requirement!r} has no plain floor (name>=version)")
    if match[1] != "torch":
        print(f"{match[1]}=={match[2]}")
