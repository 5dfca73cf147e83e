"""One picture of a simulation: how busy the GPUs were, how long jobs waited, what a cycle of the planner cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scheduler.simulate.report import Numbers, told
from scheduler.simulate.tally import Tally


def draw(tallies: Sequence[Tally], found: Mapping[str, Numbers], path: Path) -> None:
    """Writes the picture. Raises ImportError where matplotlib is not installed, OSError if it cannot be written."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 2, figsize=(14, 9), constrained_layout=True)
    for tally in tallies:
        _busy(axes[0][0], tally)
        _waits(axes[0][1], tally)
    axes[0][0].set(title="busy GPUs", xlabel="hours", ylim=(0, tallies[0].gpus * 1.02))
    axes[0][1].set(title="jobs that waited no longer", xlabel="wait, seconds (log)", xscale="log", ylim=(0.5, 1.003))
    _tails(axes[1][0], found)
    cycles = [tally for tally in tallies if tally.name == "fabric"] or list(tallies)
    axes[1][1].set(title=f"CPU time of a cycle ({cycles[0].name})", xlabel="ms")
    if cycles[0].cycle_ms:
        # Of none there is nothing to count, and no logarithm of it.
        axes[1][1].hist(cycles[0].cycle_ms, bins=60)
        axes[1][1].set(yscale="log")
    for place in (axes[0][0], axes[0][1], axes[1][0]):
        place.legend()
    figure.savefig(path, dpi=90)
    pyplot.close(figure)


def check(path: Path) -> None:
    """Raises what `draw` would for this path, before there is anything to draw; leaves no file behind.

    ImportError where matplotlib is not installed, ValueError for a format it does not know, OSError for a place that
    cannot be written.
    """
    from matplotlib.backend_bases import FigureCanvasBase

    known = sorted(FigureCanvasBase.get_supported_filetypes())
    suffix = path.suffix.removeprefix(".").lower()
    if suffix not in known:
        raise ValueError(f"{suffix or 'no suffix'!r} is no format of pictures; there are {', '.join(known)}")
    new = not path.exists()
    with path.open("ab"):
        pass
    if new:
        path.unlink()


def _busy(place: Any, tally: Tally) -> None:
    inside = [(time, busy) for time, busy in tally.series if time <= tally.window_s]
    step = max(1, len(inside) // 150)
    smooth = [inside[i : i + step] for i in range(0, len(inside), step)]
    place.plot(
        [part[0][0] / 3600 for part in smooth],
        [sum(busy for _time, busy in part) / len(part) for part in smooth],
        label=tally.name,
    )


def _waits(place: Any, tally: Tally) -> None:
    waits = sorted(max(1.0, tally.wait_s(n)) for n in range(len(tally.jobs)) if tally.first_start[n] >= 0)
    step = max(1, len(waits) // 2000)
    place.plot(waits[::step], [(i + 1) / len(waits) for i in range(0, len(waits), step)], label=tally.name)


def _tails(place: Any, found: Mapping[str, Numbers]) -> None:
    groups = ["all", "foreground", "background", "best_effort", "one node", "gangs"]
    wide = 0.8 / len(found)
    for at, (name, numbers) in enumerate(found.items()):
        tails = [numbers["wait_s"].get(group, {}).get("p90", 0.0) / 3600 for group in groups]
        bars = place.bar([i + at * wide for i in range(len(groups))], tails, wide, label=name)
        place.bar_label(bars, [told(tail * 3600) for tail in tails], fontsize=7)
    place.set_xticks([i + 0.4 - wide / 2 for i in range(len(groups))], groups)
    place.set(title="wait, p90", ylabel="hours")
