"""Pictures and a page of what has been measured: ``python benchmarks/pictures.py DIR``.

README.md says what and how.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from environments import REPOSITORY
from found import Found, FoundTable, read_all
from page import GROWTH, PINNED, SUMMARY, UNPINNED, Shown, page, series
from tables import BJOERN, CEILING, OURS
from workloads import HELLO_LOAD

try:
    import matplotlib
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine
except ImportError:
    sys.exit("pictures.py: matplotlib is not installed: pip install 'waitress-async[benchmarks]'")

FOLDER = "benchmarks"  # of the pictures, beside the page
PANELS_IN_A_ROW = 2
NAME_HEIGHT = 0.07  # of a panel's height
INCHES_A_BAR = 0.2
LONGEST = 4.0  # times this server's rate: beyond it a bar is cut, so that the others can be read

# Told apart without colour too: one dark, the others light, and every line and bar has its name.
OURS_COLOUR = "#0b559f"
OTHERS_COLOUR = "#b4bcc6"
LINE_COLOUR = "#8d96a1"
TEXT_COLOUR = "#24292f"
QUIET_COLOUR = "#57606a"
ON_WHITE = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}  # what is behind a text, a line for one
MARKERS = "sD^vP"
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.edgecolor": QUIET_COLOUR,
    "axes.labelcolor": QUIET_COLOUR,
    "text.color": TEXT_COLOUR,
    "xtick.color": QUIET_COLOUR,
    "ytick.color": QUIET_COLOUR,
    "svg.hashsalt": "waitress_async",  # the same figures, the same bytes
}

ROUND_NUMBERS = (5, 10, 20, 50, 100, 200, 500, 1000)
Point = tuple[int, float]
Bar = tuple[str, float, str]  # whose, how long, and what it says


def main() -> None:
    options = parse_options()
    try:
        parts = read_all(options.folder)
    except (OSError, ValueError, LookupError, TypeError) as error:
        sys.exit(f"pictures.py: {options.folder} has a file that no comparison has written: {error!r}")
    if not parts:
        sys.exit(f"pictures.py: {options.folder} has no figures")
    (options.docs / FOLDER).mkdir(parents=True, exist_ok=True)
    matplotlib.rcdefaults()  # whatever the user has
    matplotlib.rcParams.update(STYLE)
    pictures = []
    for part, name, text, figure in drawn(parts):
        place = f"{FOLDER}/{name}.svg"
        figure.savefig(options.docs / place, metadata={"Date": None, "Creator": None})
        pictures.append(Shown(part, place, text))
    target = options.docs / "benchmarks.md"
    target.write_text(page(parts, pictures))
    print(f"{target}, and {len(pictures)} pictures in {options.docs / FOLDER}")


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Draw what everything.py has measured.")
    parser.add_argument("folder", type=Path, metavar="DIR", help="where the figures are")
    parser.add_argument(
        "--docs",
        type=Path,
        metavar="DIR",
        default=REPOSITORY / "docs",
        help=f"where to write benchmarks.md and the folder {FOLDER}; default: that of this repository",
    )
    return parser.parse_args()


def drawn(parts: Mapping[str, Found]) -> Iterator[tuple[str, str, str, Figure]]:
    """The part, the name, the text and the picture, of each that there are figures for."""
    if PINNED in parts:
        for table in parts[PINNED].tables:
            if table.about["workload"] == HELLO_LOAD.name and OURS.name in table.medians:
                yield SUMMARY, "hello", "Requests a second of hello, for each server", hello(table)
    for part, name, where in (
        (PINNED, "workloads", "Server and client on a core each"),
        (UNPINNED, "unpinned", "Not pinned"),
    ):
        tables = [table for table in parts[part].tables if "rate" in table.ratios] if part in parts else []
        if tables:
            text = f"{where}: requests a second, this server's = 1"
            yield part, name, text, workloads(tables, text)
    if GROWTH in parts:
        for varied, fixed, tables in series(parts[GROWTH]):
            text = f"Hello with {fixed}, over the number of {varied}"
            yield GROWTH, varied, text, growth(tables, varied, text)


def hello(table: FoundTable) -> Figure:
    """Requests a second of every server, the fastest first."""
    rates = {name: figures["rate"] for name, figures in table.medians.items() if name != CEILING.name}
    bars = [(name, rate, f"{rate:,.0f}") for name, rate in rates.items()]
    picture = Figure(figsize=(6.4, 0.7 + INCHES_A_BAR * len(bars)), layout="constrained")
    draw_bars(picture.subplots(), "Hello as a browser asks: requests a second, on one core", bars, len(bars))
    return picture


def workloads(tables: Sequence[FoundTable], text: str) -> Figure:
    """A panel for each workload, all to one scale: how many times this server's rate every server has."""
    panels = [(str(table.about["title"]), relative_rates(table)) for table in tables]
    slots = max(len(bars) for _, bars in panels)
    rows = -(-len(panels) // PANELS_IN_A_ROW)
    size = (9.2, 0.5 + rows * (0.5 + INCHES_A_BAR * slots))
    picture = Figure(figsize=size, layout=ConstrainedLayoutEngine(h_pad=0.1))
    picture.suptitle(text, x=0.01, ha="left", fontsize=11)
    grid = picture.subplots(rows, PANELS_IN_A_ROW, sharex=True, squeeze=False)
    for axes, (title, bars) in zip(grid.flat, panels, strict=False):
        draw_bars(axes, title, bars, slots)
        axes.axvline(1, color=OURS_COLOUR, linewidth=0.8, zorder=0)
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    return picture


def relative_rates(table: FoundTable) -> list[Bar]:
    others = {name: 1 / ratio.median for name, ratio in table.ratios["rate"].items() if name != CEILING.name}
    bars = [(OURS.name, 1.0, "1")]
    for name, value in others.items():
        text = (
            f"{value:.2f}{' (cut)' if value > LONGEST else ''}{' (errors)' if name in table.failing else ''}"
        )
        bars.append((name, min(value, LONGEST), text))
    return bars


def draw_bars(axes: Axes, title: str, bars: Sequence[Bar], slots: int) -> None:
    """The longest first, each with its name and its figure; room for as many as `slots`."""
    ordered = sorted(bars, key=lambda bar: -bar[1])
    places = range(len(ordered))
    colours = [OURS_COLOUR if name == OURS.name else OTHERS_COLOUR for name, _, _ in ordered]
    drawn_bars = axes.barh(places, [value for _, value, _ in ordered], color=colours, height=0.74)
    axes.bar_label(drawn_bars, [text for _, _, text in ordered], padding=3, fontsize=8, bbox=ON_WHITE)
    axes.set_yticks(places, [name for name, _, _ in ordered])
    for label in axes.get_yticklabels():
        label.set_color(TEXT_COLOUR)
        label.set_fontweight("bold" if label.get_text() == OURS.name else "normal")
    axes.set_ylim(slots - 0.5, -0.5)
    axes.margins(x=0.12)
    axes.tick_params(bottom=False, labelbottom=False, left=False)
    axes.spines[["top", "right", "bottom", "left"]].set_visible(False)
    axes.set_title(title)


def growth(tables: Sequence[FoundTable], varied: str, text: str) -> Figure:
    """Two panels over the logarithm of what grows: requests a second, and CPU time of each."""
    picture = Figure(figsize=(8.4, 3.6), layout="constrained")
    picture.suptitle(text, x=0.01, ha="left", fontsize=11)
    rate, cpu = picture.subplots(1, 2)
    for axes, key, title in (
        (rate, "rate", "Requests a second"),
        (cpu, "cpu", "CPU microseconds a request, logarithmic"),
    ):
        ends = draw_lines(axes, tables, varied, key)
        axes.set_title(title)
        axes.set_xlabel(varied)
        if key == "cpu":  # a few and hundreds are to be read alike
            axes.set_yscale("log")
            least, most = axes.get_ylim()
            axes.set_yticks(ROUND_NUMBERS)
            axes.set_ylim(max((each for each in ROUND_NUMBERS if each <= least), default=least), most)
        else:
            axes.set_ylim(bottom=0)
        dress_lines(axes, [int(table.about[varied]) for table in tables])
        name_ends(axes, ends)
    return picture


def draw_lines(axes: Axes, tables: Sequence[FoundTable], varied: str, key: str) -> dict[str, Point]:
    """A line for each server, this one's above the others'. Returns where each ends."""
    ends = {}
    for name, marker in zip(servers_of(tables, varied), MARKERS, strict=False):
        known = [
            (int(table.about[varied]), table.medians[name][key])
            for table in tables
            if key in table.medians.get(name, {})
        ]
        ours = name == OURS.name
        axes.plot(
            *zip(*known, strict=True),
            color=OURS_COLOUR if ours else LINE_COLOUR,
            linewidth=2.4 if ours else 1.2,
            marker="o" if ours else marker,
            markersize=5 if ours else 4,
            zorder=3 if ours else 2,
        )
        ends[name] = known[-1]
    return ends


def dress_lines(axes: Axes, points: Sequence[int]) -> None:
    axes.set_xscale("log")
    axes.set_xticks(points, [f"{point:,}" for point in points])
    axes.minorticks_off()
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e6e9ed", linewidth=0.6)
    axes.set_axisbelow(True)


def servers_of(tables: Sequence[FoundTable], varied: str) -> list[str]:
    """Who is drawn: bjoern has one thread, and no line over threads."""
    names = dict.fromkeys(name for table in tables for name in table.medians)
    return [name for name in names if varied != "threads" or name != BJOERN.name]


def name_ends(axes: Axes, ends: Mapping[str, Point]) -> None:
    """The name of each line at its end, and apart from the others."""
    heights = {name: (axes.transScale + axes.transLimits).transform(end)[1] for name, end in ends.items()}
    names = sorted(heights, key=heights.__getitem__)
    for name, height in zip(names, apart([heights[name] for name in names], NAME_HEIGHT), strict=True):
        axes.annotate(
            name,
            (ends[name][0], height),
            xycoords=("data", "axes fraction"),
            xytext=(8, 0),
            textcoords="offset points",
            va="center",
            color=OURS_COLOUR if name == OURS.name else TEXT_COLOUR,
            fontweight="bold" if name == OURS.name else "normal",
            annotation_clip=False,
        )


def apart(values: Sequence[float], gap: float) -> list[float]:
    """Places near the sorted values, none below 0, with that gap at least between two."""
    groups: list[list[float]] = []
    for value in values:
        groups.append([value])
        while len(groups) > 1 and begin(groups[-2], gap) + len(groups[-2]) * gap > begin(groups[-1], gap):
            groups[-2:] = [groups[-2] + groups[-1]]
    return [begin(group, gap) + number * gap for group in groups for number in range(len(group))]


def begin(group: Sequence[float], gap: float) -> float:
    """The lowest place of a group, which is spread evenly around the middle of its values."""
    return max(0.0, statistics.mean(group) - (len(group) - 1) / 2 * gap)


if __name__ == "__main__":
    main()
