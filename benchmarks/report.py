"""What a run found: as a table, as JSON, and as a plot."""

from __future__ import annotations

import datetime
import statistics
import sys
from collections.abc import Sequence
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table

from contest import Entry, Missing, Ratio, Scaling
from hugepool.bench.drawing import import_matplotlib
from hugepool.bench.environment import read_environment
from hugepool.bench.results import Environment
from hugepool.bench.statistics import RULE, Speedup, Spread
from hugepool_common.errors import MissingExtraError
from options import Options
from peers import versions

_COLOURS = {"2M": "#0072b2", "4K": "#d55e00", "own": "#999999"}  # Okabe and Ito's
_WIDE = 190
_DPI = 120
_LOG_FROM = 30
"""Longest bar over the shortest from which on lengths are logarithms."""
_WORDS = 4  # columns that hold words
_US_BELOW_NS = 50_000
_MANY = 100
"""Samples from which on a 99th percentile is told."""


class PlanNote(msgspec.Struct, frozen=True):
    """What a plan says of itself, and what the rounds say of it.

    Parameters
    ----------
    described
        Its own words.
    choice, nbytes, build_ns, break_even
        From its description; None where it does not tell.
    best_form, behind_best
        The fastest form that was measured beside it, and its own median time over
        that one's: 1.05 is the planner's allowance.
    measured_break_even
        Its build time over what a run saved against the direct form in these rounds.
    """

    name: str
    pages: str
    workers: int
    described: str
    choice: str | None
    nbytes: int | None
    build_ns: int | None
    break_even: int | None
    best_form: str = ""
    behind_best: float | None = None
    measured_break_even: float | None = None


class Contest(msgspec.Struct, frozen=True):
    """One input and everything that was measured on it."""

    title: str
    unit: str
    items: int
    nbytes: int
    entries: tuple[Entry, ...]
    ratios: tuple[Ratio, ...] = ()
    scalings: tuple[Scaling, ...] = ()
    plans: tuple[PlanNote, ...] = ()
    notes: tuple[str, ...] = ()


class Run(msgspec.Struct, frozen=True):
    """One whole run of a program."""

    command: tuple[str, ...]
    started: str
    environment: Environment
    backings: dict[str, str]
    contests: tuple[Contest, ...]
    missing: tuple[Missing, ...]
    rule: str = RULE

    def to_json(self) -> bytes:
        """Indented JSON, one trailing newline."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n"


def new_run(
    contests: Sequence[Contest], missing: Sequence[Missing], backings: dict[str, str]
) -> Run:
    """The results with the machine, the software and the command."""
    environment = read_environment()
    return Run(
        tuple(sys.argv),
        datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        msgspec.structs.replace(environment, versions=environment.versions | versions()),
        backings,
        tuple(contests),
        tuple(dict.fromkeys(missing)),
    )


def publish(run: Run, options: Options) -> None:
    """Print the tables, and write the files that were asked for."""
    console = Console(width=None if sys.stdout.isatty() else _WIDE)
    for contest in run.contests:
        _print_contest(console, contest)
    for one in run.missing:
        console.print(f"not measured: {one}", highlight=False, markup=False)
    machine = run.environment
    backings = ", ".join(f"{pages} is {backing}" for pages, backing in run.backings.items())
    console.print(
        f"{machine.cpu}, {machine.cpus} CPUs, Linux {machine.kernel_release}, load "
        f"{machine.load_average}; {backings}",
        highlight=False,
        markup=False,
    )
    if options.json:
        with open(options.json, "wb") as file:
            file.write(run.to_json())
    if options.plot:
        try:
            write_plot(run, options.plot)
        except MissingExtraError as error:
            console.print(f"no plot: {error}", highlight=False, markup=False)


def _print_contest(console: Console, contest: Contest) -> None:
    fastest = min(min(entry.samples_ns) for entry in contest.entries)
    unit, scale = ("us", 1e3) if fastest < _US_BELOW_NS else ("ms", 1e6)
    order = {"hugepool": 0, "peer": 1, "limit": 2}
    shown = sorted(contest.entries, key=lambda one: (one.workers, order[one.group]))
    lines = [_cells(entry, scale) for entry in shown]
    table = Table(title=contest.title, title_justify="left")
    titles = ["contender", "pages", "n", "result", f"median {unit}", "quartiles", "min", "p99"]
    titles += [f"ns/{contest.unit}", "GB/s", "% STREAM", "% lines", f"call {unit}", "disturbed"]
    # A column of which nobody has anything takes room from the others.
    kept = [place for place in range(len(titles)) if any(line[place] for line in lines)]
    for place in kept:
        table.add_column(titles[place], justify="left" if place < _WORDS else "right")
    for number, (entry, line) in enumerate(zip(shown, lines, strict=True)):
        following = shown[number + 1 : number + 2]
        ends = [(one.workers, one.group) != (entry.workers, entry.group) for one in following]
        table.add_row(*(line[place] for place in kept), end_section=any(ends))
    console.print(table)
    if contest.ratios:
        for pages in dict.fromkeys(one.ours_pages for one in contest.ratios):
            on_pages = [one for one in contest.ratios if one.ours_pages == pages]
            console.print(_ratio_table(on_pages, pages))
    if contest.scalings:
        console.print(_scaling_table(contest.scalings))
    for plan in contest.plans:
        console.print(_plan_line(plan), highlight=False, markup=False)
    for note in contest.notes:
        console.print(note, highlight=False, markup=False)


def _cells(entry: Entry, scale: float) -> list[str]:
    walls = Spread.of([ns / scale for ns in entry.samples_ns])
    return [
        entry.name,
        entry.pages,
        str(entry.workers),
        entry.result,
        f"{walls.median:.4g}",
        f"{walls.lower_quartile:.4g}-{walls.upper_quartile:.4g}",
        f"{walls.minimum:.4g}",
        f"{entry.p99_ns / scale:.4g}" if len(entry.samples_ns) >= _MANY else "",
        f"{entry.per_item_ns.median:.3g}",
        f"{entry.gb_per_s:.3g}",
        "" if entry.percent_of_stream is None else f"{entry.percent_of_stream:.0f}",
        "" if entry.percent_of_lines is None else f"{entry.percent_of_lines:.0f}",
        f"{statistics.median(entry.call_ns) / scale:.4g}",
        f"{entry.disturbed}/{len(entry.samples_ns)}",
    ]


def _ratio_table(ratios: Sequence[Ratio], pages: str) -> Table:
    ours = list(dict.fromkeys(one.ours for one in ratios))
    title = f"speed-up of ours on {pages} (columns) over peers (rows)"
    table = Table(title=title, title_justify="left")
    for name in ("peer", "pages", "n", "result"):
        table.add_column(name)
    for name in ours:
        table.add_column(name, justify="right")
    lines: dict[tuple[str, str, str, str], dict[str, str]] = {}
    for one in ratios:
        key = (one.peer, one.peer_pages, str(one.workers), one.peer_result)
        lines.setdefault(key, {})[one.ours] = _ratio(one.speedup)
    for key in sorted(lines, key=lambda key: (key[2], key[3], key[0], key[1])):
        table.add_row(*key, *(lines[key].get(name, "") for name in ours))
    return table


def _scaling_table(scalings: Sequence[Scaling]) -> Table:
    table = Table(title="speed-up over one process", title_justify="left")
    for name in ("contender", "pages", "n", "speed-up"):
        table.add_column(name)
    for one in sorted(scalings, key=lambda one: one.workers):
        table.add_row(one.name, one.pages, str(one.workers), _ratio(one.speedup))
    return table


def _ratio(found: Speedup) -> str:
    if found.ratio is None or found.low is None or found.high is None:
        return found.refused
    mark = "" if found.significant else "?"
    return f"{found.ratio:.2f}{mark} ({found.low:.2f}-{found.high:.2f})"


def _plan_line(plan: PlanNote) -> str:
    words = [f"{plan.name}, {plan.pages}:"]
    if plan.behind_best is not None:
        words.append(f"{plan.behind_best:.3f} of the time of the best form ({plan.best_form});")
    if plan.measured_break_even is not None:
        words.append(f"pays after {plan.measured_break_even:.1f} runs by these rounds,")
        words.append(f"{plan.break_even} by its own count;")
    return " ".join(words) + f" {plan.described}"


def write_plot(run: Run, path: str) -> None:
    """One panel a contest and number of processes: median time per item, with quartiles.

    Raises
    ------
    MissingExtraError
        Matplotlib is not installed.
    """
    panels = [
        (contest, workers)
        for contest in run.contests
        for workers in sorted({one.workers for one in contest.entries})
    ]
    heights = [
        0.6 + 0.24 * len({one.name for one in contest.entries if one.group != "limit"})
        for contest, _ in panels
    ]
    new_figure = import_matplotlib()
    figure = new_figure(figsize=(9, 0.9 * len(panels) + sum(heights)), layout="constrained")
    axes = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights).flat
    for axis, (contest, workers) in zip(axes, panels, strict=True):
        _draw(axis, contest, workers)
    figure.savefig(path, format="png", dpi=_DPI)


def _draw(axis: Any, contest: Contest, workers: int) -> None:
    shown = [one for one in contest.entries if one.workers == workers and one.group != "limit"]
    shown.sort(key=lambda one: one.group)  # ours first
    names = list(dict.fromkeys(one.name for one in shown))
    for name in names:
        beside = [one for one in shown if one.name == name]
        height = 0.8 / len(beside)
        for number, entry in enumerate(beside):
            place = names.index(name) + (number - (len(beside) - 1) / 2) * height
            spread = entry.per_item_ns
            error = [
                [spread.median - spread.lower_quartile],
                [spread.upper_quartile - spread.median],
            ]
            colour = _COLOURS[entry.pages]
            axis.barh(place, spread.median, 0.9 * height, color=colour, label=entry.pages)
            axis.errorbar(spread.median, place, xerr=error, color="black", capsize=2, linewidth=0.8)
    labels = dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
    axis.legend(labels.values(), labels.keys(), title="pages", fontsize=8, title_fontsize=8)
    axis.set_yticks(range(len(names)), names, fontsize=8)
    ours = {one.name for one in shown if one.group == "hugepool"}
    for label in axis.get_yticklabels():
        label.set_fontweight("bold" if label.get_text() in ours else "normal")
    axis.invert_yaxis()
    medians = [one.per_item_ns.median for one in shown]
    if max(medians) > _LOG_FROM * min(medians):
        axis.set_xscale("log")
    axis.set_xlabel(f"ns per {contest.unit}", fontsize=8)
    count = f"{workers} process{'es' * (workers > 1)}"
    axis.set_title(f"{contest.title}; {count}", fontsize=9, loc="left")
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="x", alpha=0.3)
    axis.set_axisbelow(True)
