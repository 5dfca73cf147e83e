"""Numbers as they are told: quantiles, a table on the terminal, JSON, one plot."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def quantile(values: Sequence[float], q: float) -> float:
    """The least value that at least the fraction `q` of all do not exceed; NaN of none."""
    if not values:
        return math.nan
    ordered = sorted(values)
    return ordered[max(0, math.ceil(q * len(ordered)) - 1)]


def table(results: Mapping[str, Any]) -> str:
    """All results as lines of text."""
    lines: list[str] = []
    for name, value in results.items():
        lines += ["", name.replace("_", " ")]
        lines += _lines(value)
    return "\n".join(lines).strip("\n")


def _lines(value: Any) -> list[str]:
    if isinstance(value, Mapping):
        lines: list[str] = []
        for name, inner in value.items():
            if isinstance(inner, Mapping) and not any(isinstance(v, Mapping | list) for v in inner.values()):
                lines.append(f"  {name.replace('_', ' '):<34}" + "  ".join(f"{k} {_told(v)}" for k, v in inner.items()))
            elif isinstance(inner, list):
                lines += ["  " + "  ".join(f"{k} {_told(v)}" for k, v in row.items()) for row in inner]
            else:
                lines.append(f"  {name.replace('_', ' '):<34}{_told(inner)}")
        return lines
    if isinstance(value, list):
        return ["  " + "  ".join(f"{k} {_told(v)}" for k, v in row.items()) for row in value]
    return [f"  {_told(value)}"]


def _told(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.2f}" if abs(value) < 100 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def write(results: Mapping[str, Any], directory: Path, stem: str) -> list[Path]:
    """Writes JSON and, where matplotlib is installed, a plot; the files."""
    directory.mkdir(parents=True, exist_ok=True)
    told = directory / f"{stem}.json"
    told.write_text(json.dumps(results, indent=2, default=str) + "\n", encoding="utf-8")
    drawn = _plot(results, directory / f"{stem}.png")
    return [told, *([drawn] if drawn else [])]


def _plot(results: Mapping[str, Any], path: Path) -> Path | None:
    try:
        import matplotlib
    except ImportError:
        return None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(16, 5), constrained_layout=True)
    claims = results.get("claim_cost", {}).get("scenarios", [])
    axes[0].barh([row["scenario"] for row in claims], [row["p50_ms"] for row in claims], label="p50")
    axes[0].plot([row["p99_ms"] for row in claims], [row["scenario"] for row in claims], "k|", label="p99")
    axes[0].set(title="one claim", xlabel="ms")
    axes[0].invert_yaxis()
    axes[0].legend()
    held = results.get("claim_cost", {}).get("under_a_held_snapshot", [])
    axes[1].plot([row["second"] for row in held], [row["p50_ms"] for row in held], "o-")
    axes[1].set(title="one claim while a snapshot is held", xlabel="seconds", ylabel="p50 ms", ylim=(0, None))
    cpu = results.get("drain", {}).get("cpu_ms_per_job", {})
    axes[2].bar(list(cpu), list(cpu.values()))
    axes[2].set(title="CPU time per no-op job", ylabel="ms")
    axes[2].tick_params(axis="x", rotation=45)
    figure.savefig(path, dpi=110)
    return path
