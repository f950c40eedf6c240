"""The page of the figures, docs/benchmarks.md, from what the comparisons have written."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from found import Found, FoundTable, lost
from rounds import Column
from tables import OURS
from workloads import HELLO_LOAD

# The parts as everything.py names them, in the order of the page.
PINNED = "workloads"
UNPINNED = "workloads-unpinned"
GROWTH = "growth"
HEADINGS = {
    PINNED: "Server and client on a core each",
    UNPINNED: "Not pinned",
    GROWTH: "As load grows",
    "latency": "Latency",
    "uploads": "Uploads",
    "downloads": "Downloads",
    "slow_readers": "Beside slow readers",
    "held": "Idle connections",
    "streams": "Event streams",
    "startup": "Start",
}
METHOD = """\
Each server is started anew in each round, asked once (the answer must be right), warmed up, measured and
ended. Rounds go through all servers in turn, every other one in reverse order. Figures are medians over the
rounds. Ratios are made within a round, of figures taken seconds apart: this server's figure divided by the
other's, the median, and in brackets the least and the most. CPU is user and system time of all the server's
processes; MiB is memory that no file stands behind, at the end. The ceiling is fixed bytes from a bare
`asyncio.Protocol`: it parses nothing and runs no app. uvicorn runs the app by a2wsgi, hypercorn by a bridge
of its own. `!` marks a server that had errors; what they were is below its table.
[benchmarks/README.md](../benchmarks/README.md) has the workloads, the settings, and how noisy it is."""
NUMBERS = {
    "rate": "Requests a second",
    "p50": "p50, ms",
    "p99": "p99, ms",
    "cpu": "CPU microseconds a request",
}

SUMMARY = "summary"  # a place for pictures, beside the parts


@dataclass(frozen=True, slots=True)
class Shown:
    """A picture on the page: the part it belongs to, its place, and its text for who does not see it."""

    part: str
    place: str
    text: str


def page(parts: Mapping[str, Found], pictures: Sequence[Shown]) -> str:
    """The whole page, in Markdown."""
    blocks = [
        "# Benchmarks",
        "<!-- Written by benchmarks/pictures.py. Do not edit. -->",
        *facts(parts),
        METHOD,
        *summary(parts, pictures),
        *others_are_better(parts),
    ]
    for name, heading in HEADINGS.items():
        blocks.append(f"## {heading}")
        if name in parts:
            blocks += section(parts[name], pictures)
        else:
            blocks.append(f"Left out: `{name}` was not measured, or did not come to its end.")
    return "\n\n".join([*blocks, *skipped(parts)]) + "\n"


def facts(parts: Mapping[str, Found]) -> Iterator[str]:
    """When and on what; more than one line if not all was measured on one machine."""
    for machine in dict.fromkeys(found.machine for found in parts.values()):
        alike = [found for found in parts.values() if found.machine == machine]
        dates = " to ".join(sorted({min(found.date for found in alike), max(found.date for found in alike)}))
        names = "" if len(alike) == len(parts) else f" ({', '.join(found.name for found in alike)})"
        yield f"Measured {dates} on {machine}{names}."
    versions: dict[str, dict[str, None]] = {}
    for found in parts.values():
        for distribution, version in found.facts["versions"].items():
            versions.setdefault(distribution, {})[version] = None
    yield ", ".join(f"{distribution} {' and '.join(each)}" for distribution, each in versions.items()) + "."


def summary(parts: Mapping[str, Found], pictures: Sequence[Shown]) -> Iterator[str]:
    if PINNED not in parts:
        return
    tables = parts[PINNED].tables
    others = list(dict.fromkeys(name for table in tables for name in table.ratios.get("rate", ())))
    yield "## In short"
    yield from images(SUMMARY, pictures)
    yield (
        "Requests a second of this server, and how many times those of the other: below 1 the other is "
        f"faster. {HELLO_LOAD.connections} connections, {HELLO_LOAD.threads} threads, 64 for sleep."
    )
    yield markdown(
        ["", "this server", *others],
        [
            [
                str(table.about["title"]),
                figure(table, OURS.name, "rate"),
                *(
                    f"{table.ratios['rate'][other].median:.2f}" if other in table.ratios["rate"] else "-"
                    for other in others
                ),
            ]
            for table in tables
            if "rate" in table.ratios
        ],
    )


def others_are_better(parts: Mapping[str, Found]) -> Iterator[str]:
    rows = lost(
        (title(name, table), table) for name in HEADINGS if name in parts for table in parts[name].tables
    )
    yield "## Where others are better"
    if not rows:
        yield "Nowhere in what was measured."
        return
    yield (
        f"Of all ratios on this page, the {len(rows)} in which another server is better, by the median, the "
        "worst first. The last column is in how many of the rounds it was so: where not in all, "
        "take it for noise."
    )
    yield markdown(
        ["", "other", "figure", "this server", "the other", "this ÷ other", "rounds"],
        [
            [
                row.title,
                row.other,
                row.column.title,
                number(row.ours, row.column),
                number(row.its, row.column),
                str(row.ratio),
                f"{row.rounds} of {len(row.ratio.rounds)}",
            ]
            for row in rows
        ],
        texts=3,
    )


def title(part: str, table: FoundTable) -> str:
    """What tells a table from all others of the page."""
    match part, table.about:
        case "growth", {"connections": connections, "threads": threads}:
            return f"hello, {counted(connections, 'connection')}, {counted(threads, 'thread')}"
        case "workloads-unpinned", {"title": text}:
            return f"{text}, not pinned"
        case _, {"title": text}:
            return str(text)
        case _:
            return table.title


def counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def section(found: Found, pictures: Sequence[Shown]) -> Iterator[str]:
    yield told_options(found)
    yield from images(found.name, pictures)
    if found.name == GROWTH:
        yield from growth(found)
        return
    for table in found.tables:
        yield f"### {table.about.get('title', table.title)}"
        yield full(table)
        yield from notes([("", table)])


def told_options(found: Found) -> str:
    options = found.facts["options"]
    of = f" of {options['seconds']} s" if "seconds" in options else ""
    rounds = "1 round" if options["rounds"] == "1" else f"{options['rounds']} rounds"
    settings = f", this server with {options['setting']}" if options.get("setting", "[]") != "[]" else ""
    return f"{rounds}{of}{settings}; {found.date}."


def full(table: FoundTable) -> str:
    """Every figure of a table, and the ratios beside."""
    columns = [column for column in table.columns.values() if column.key != "errors"]
    if table.failing and "errors" in table.columns:
        columns.append(table.columns["errors"])
    return markdown(
        [
            "",
            *(column.title for column in columns),
            *(f"{table.columns[key].title}: ratio" for key in table.ratios),
        ],
        [
            [
                named(server, table),
                *(figure(table, server, column.key) for column in columns),
                *(str(by_server.get(server, "")) for by_server in table.ratios.values()),
            ]
            for server in table.medians
        ],
    )


def growth(found: Found) -> Iterator[str]:
    """For each series and figure a small table: servers beside each other, a row for each point."""
    for varied, fixed, tables in series(found):
        yield f"### {varied.capitalize()}"
        yield f"Hello as a browser asks, {fixed}."
        servers = list(dict.fromkeys(server for table in tables for server in table.medians))
        for key, text in NUMBERS.items():
            yield f"{text}:"
            yield markdown(
                [varied, *map(named, servers)],
                [
                    [f"{table.about[varied]:,}", *(marked(table, server, key) for server in servers)]
                    for table in tables
                ],
            )
        yield from notes((f"{table.about[varied]:,} {varied}: ", table) for table in tables)


def series(found: Found) -> Iterator[tuple[str, str, list[FoundTable]]]:
    """What grows, what stays, and the tables of each of the two series, in order."""
    for varied, other, stays in (
        ("connections", "threads", HELLO_LOAD.threads),
        ("threads", "connections", HELLO_LOAD.connections),
    ):
        tables = [table for table in found.tables if table.about[other] == stays]
        if len(tables) > 1:
            yield varied, f"{stays} {other}", sorted(tables, key=lambda table: int(table.about[varied]))


def skipped(parts: Mapping[str, Found]) -> Iterator[str]:
    rows = [
        f"- {name}: {what}: {reason}"
        for name, found in parts.items()
        for what, reason in found.skipped.items()
    ]
    yield "## Skipped"
    yield "\n".join(rows) or "Every server that takes part could be installed and started."


def notes(titled: Iterable[tuple[str, FoundTable]]) -> Iterator[str]:
    rows = [f"- {title}{note}" for title, table in titled for note in table.notes]
    if rows:
        yield "\n".join(rows)


def images(part: str, pictures: Sequence[Shown]) -> Iterator[str]:
    for picture in pictures:
        if picture.part == part:
            yield f"![{picture.text}]({picture.place})"


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]], *, texts: int = 1) -> str:
    """A table, its first columns to the left, which are texts, and the others to the right."""
    lines = [head, ["---"] * texts + ["--:"] * (len(head) - texts), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def named(server: str, table: FoundTable | None = None) -> str:
    mark = " !" if table and server in table.failing else ""
    return f"**{server}**{mark}" if server == OURS.name else f"{server}{mark}"


def figure(table: FoundTable, server: str, key: str) -> str:
    """The median, or a dash if there is none."""
    found = table.medians.get(server, {}).get(key)
    return "-" if found is None else number(found, table.columns[key])


def marked(table: FoundTable, server: str, key: str) -> str:
    return f"{figure(table, server, key)}{' !' if server in table.failing else ''}"


def number(value: float, column: Column) -> str:
    return f"{value:,.{column.digits}f}"
