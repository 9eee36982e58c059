"""Pictures of the theory, drawn by matplotlib from the tables that `theory_commands` writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

SELF, EXTERNAL = "#2a6f97", "#c8553d"


def draw_crossover(result: dict[str, Any], path: Path) -> None:
    """Excess risk of the external teacher minus that of the self-teacher over n, theory beside simulation."""
    plt = _pyplot()
    figure, axes = plt.subplots(figsize=(6.4, 4.0), layout="constrained")
    found = result["simulated"]
    n = np.array(found["n"])
    axes.axhline(0.0, color="0.6", linewidth=0.8)
    axes.plot(n, found["predicted_external_minus_self"], color="0.2", label="asymptotic")
    axes.errorbar(
        n,
        found["external_minus_self"],
        2 * np.array(found["error"]),
        fmt="o",
        color=SELF,
        ms=4,
        label="simulated, ±2 s.e.",
    )
    axes.axvline(result["predicted"], color=EXTERNAL, linestyle="--", label=f"n* = {result['predicted']:.0f}")
    axes.set(
        xscale="log",
        xlabel="labelled pairs n",
        ylabel="excess risk, external minus self (reward)",
        title=f"advantage {result['advantage']:g}, overlap {result['overlap']:g}",
    )
    axes.legend(frameon=False)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def draw_phase_diagram(result: dict[str, Any], path: Path) -> None:
    """Which teacher is preferable over (advantage, overlap), one panel for each n; circles are simulated."""
    plt = _pyplot()
    from matplotlib.colors import ListedColormap

    sizes = result["n"]
    figure, panels = plt.subplots(
        1, len(sizes), figsize=(3.1 * len(sizes), 3.6), layout="constrained", sharey=True, squeeze=False
    )
    advantage, overlap = np.array(result["advantage"]), np.array(result["overlap"])
    for axes, n, plane in zip(panels[0], sizes, result["external_minus_self"], strict=True):
        difference = np.array([[np.nan if x is None else x for x in row] for row in plane])
        axes.pcolormesh(
            advantage,
            overlap,
            np.ma.masked_invalid(difference > 0)
            if not np.isnan(difference).any()
            else np.ma.array(difference > 0, mask=np.isnan(difference)),
            cmap=ListedColormap([EXTERNAL, SELF]),
            alpha=0.35,
            vmin=0,
            vmax=1,
            shading="nearest",
        )
        for point in (p for p in result["simulated"] if p["n"] == n):
            sure = abs(point["external_minus_self"]) > 2 * point["error"]
            color = SELF if point["external_minus_self"] > 0 else EXTERNAL
            axes.plot(
                point["advantage"], point["overlap"], "o", ms=6, mec=color, mfc=color if sure else "white", mew=1.5
            )
        axes.set(yscale="log", title=f"n = {n}", xlabel="advantage of the external target")
    panels[0][0].set_ylabel("overlap with the student")
    handles = [
        plt.Line2D([], [], marker="s", linestyle="", color=color, alpha=0.5, label=f"{name}-teacher preferable")
        for name, color in (("self", SELF), ("external", EXTERNAL))
    ]
    handles.append(
        plt.Line2D([], [], marker="o", linestyle="", color="0.4", label="simulated (hollow: within 2 s.e. of 0)")
    )
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _pyplot() -> Any:
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError("pictures need matplotlib: pip install 'pbsd[plots]'") from error
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt
