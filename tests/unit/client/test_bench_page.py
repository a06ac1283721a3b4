"""The page of a made-up run, and what its pictures draw."""

from __future__ import annotations

import itertools
import re
import sys
from html.parser import HTMLParser
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hugepool.bench.drawing import import_matplotlib, inline_svg, spread_apart, styled
from hugepool.bench.html import render_page
from hugepool.bench.pictures import (
    Picture,
    reach_text,
    sweep_picture,
    throughput_picture,
)
from hugepool.bench.results import Benchmark
from hugepool.bench.roofline import roofline_picture
from hugepool.bench.table import binary, cell_row, number
from hugepool.bench.tlb import Stlb
from hugepool_common.units import MIB
from support.benchmarks import TITLE, benchmark, cell, point
from support.examples import examples

SAMPLES = st.lists(st.integers(1, 10**12), min_size=1, max_size=7)


class Page(HTMLParser):
    """Checks that tags nest, and keeps what they are and say."""

    VOID = ("meta", "rect", "line", "br")

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.rows: list[list[str]] = []
        self.pictures: list[dict[str, str | None]] = []
        self.text = self.json = ""
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
        elif tag == "svg":
            self.pictures.append(dict(attrs))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data
        elif self.open and self.open[-1] == "pre":
            self.json += data


def full_run() -> Benchmark:
    """Gathers and products by one and two workers, a sweep, and a peak."""
    slow, fast = (200_000, 201_000, 203_000), (100_000, 102_000, 101_000)
    cells = [
        cell(
            backing,
            samples,
            workers=workers,
            pattern=pattern,
            unit=unit,
            title=f"{pattern} {TITLE}",
        )
        for pattern, unit in (("random", "gather"), ("uniform", "nnz"), ("stencil", "nnz"))
        for workers, scale in ((1, 2), (2, 1))
        for backing, samples in (
            ("shm-4k", tuple(scale * one for one in slow)),
            ("hugetlbfs-2m", tuple(scale * one for one in fast)),
        )
    ]
    run = benchmark(*cells)
    limits = tuple(
        msgspec.structs.replace(limit, pattern=pattern, workers=workers)
        for limit in run.limits
        for pattern in ("random", "uniform", "stencil")
        for workers in (1, 2)
    )
    sweep = tuple(
        point(place * MIB, backing) for backing in ("shm-4k", "heap") for place in (1, 4, 16, 64)
    )
    return msgspec.structs.replace(run, limits=limits, sweep=sweep, peak_gflops=40.0)


@pytest.fixture
def matplotlib() -> None:
    pytest.importorskip("matplotlib")


@pytest.mark.usefixtures("matplotlib")
def test_the_page_is_well_formed_and_refers_to_nothing_outside() -> None:
    source = render_page(full_run())
    page = Page(source)
    assert {"svg", "table", "style", "h2", "figure", "figcaption"} <= set(page.seen)
    assert not {"script", "link", "img", "image", "iframe", "object", "base"} & set(page.seen)
    for name, value in page.attributes:
        if name in ("src", "href", "xlink:href", "srcset", "data", "action"):
            assert value.startswith("#"), (name, value)
    outside = source.replace('xmlns="http://www.w3.org/2000/svg"', "")
    assert "://" not in outside
    assert "@import" not in source
    assert re.findall(r"url\((?!#)", source) == []
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(set(ids)) == len(ids)
    used = set(re.findall(r"url\(#([^)]+)\)", source))
    used |= {value[1:] for name, value in page.attributes if name == "href"}
    assert used <= set(ids)
    for piece in ("A CPU & more", "<here>", "'a b.json'", "a note", "CPUID of <this> processor"):
        assert piece in page.text


@pytest.mark.usefixtures("matplotlib")
def test_pictures_follow_the_pages_colours_and_have_words() -> None:
    source = render_page(full_run())
    assert "prefers-color-scheme: dark" in source
    style = source[source.index("<style>") : source.index("</style>")]
    for colour in re.findall(r"--\w+: (#\w+)", style[: style.index("@media")]):
        assert colour not in source.replace(style, ""), "a picture would be black on black"
    pictures = Page(source).pictures
    assert len(pictures) == 3 + 3 + 2, "bars and workers of three patterns, sweep, roofline"
    for picture in pictures:
        assert picture["role"] == "img"
        assert len(str(picture["aria-label"])) > 60


@pytest.mark.usefixtures("matplotlib")
def test_the_page_holds_every_figure_of_the_run() -> None:
    run = full_run()
    page = Page(render_page(run))
    assert Benchmark.from_json(page.json.encode()) == run
    for one in run.cells:
        assert cell_row(one, "said elsewhere") in page.rows
    for spot in run.sweep:
        spread = spot.per_item_ns
        shown = [number(value) for value in (spread.median, spread.iqr, spread.minimum)]
        row = [spot.backing, binary(spot.array_bytes), *shown]
        assert row in [found[:5] for found in page.rows]
    assert ["shm-4k", "6", "2 MiB", "0 bytes", "0", "random, hugepool, 1 w"] in page.rows
    assert ["hugetlbfs-2m", "6", "2 MiB", "2 MiB", "100", "random, hugepool, 1 w"] in page.rows


@settings(max_examples=examples(30), deadline=None)
@given(SAMPLES, st.text(max_size=20))
def test_any_times_and_any_words_arrive_unchanged(samples: list[int], words: str) -> None:
    words = words.encode("utf-8", "replace").decode()
    run = benchmark(cell("shm-4k", samples, title=words, tlb_note=words))
    assert Benchmark.from_json(_json(render_page(run)).encode()) == run


def _json(source: str) -> str:
    found = re.search(r'<pre id="run">(.*?)</pre>', source, re.DOTALL)
    assert found is not None
    text = found[1]
    for entity, sign in (("&lt;", "<"), ("&gt;", ">"), ("&amp;", "&")):
        text = text.replace(entity, sign)
    return text


def test_without_matplotlib_the_page_says_which_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    page = Page(render_page(full_run()))
    assert "hugepool[plot]" in page.text
    assert len(page.pictures) == 3, "the bars need no Matplotlib"
    assert Benchmark.from_json(page.json.encode()) == full_run()


def test_the_page_explains_what_it_shows_and_no_more() -> None:
    with_limit = render_page(benchmark())
    assert with_limit.count('class="limit"') == 2
    assert "thick mark" in with_limit
    for word in ("w: worker processes", "cache: too small for a fair limit"):
        assert word in with_limit
    cached = render_page(benchmark(cell(percent_of_limit=None, limit_note="x fits the cache")))
    assert 'class="limit"' not in cached
    assert "thick mark" not in cached
    assert "<td>cache</td>" in cached


# Pictures ---------------------------------------------------------------------------


def axes_of(picture: Picture | None) -> Any:
    """The axes on which a picture is drawn."""
    pytest.importorskip("matplotlib")
    assert picture is not None
    with styled():
        figure = import_matplotlib()(figsize=(5, 3), layout="constrained")
        axis = figure.subplots()
        picture.draw(axis)
        figure.draw_without_rendering()
    return axis


def words_of(axis: Any) -> list[str]:
    return [text.get_text() for text in axis.texts]


def test_the_sweep_draws_medians_and_marks_reach_and_cache() -> None:
    axis = axes_of(sweep_picture(full_run()))
    drawn = [list(zip(*line.get_data(), strict=True)) for line in axis.lines]
    medians = [(place * MIB, 3.2) for place in (1, 4, 16, 64)]
    assert medians in drawn
    verticals = {data[0][0] for data in drawn if len(data) == 2 and data[0][0] == data[1][0]}
    assert verticals == {8 * MIB, 32 * MIB}
    assert "TLB reach, 4K pages" in words_of(axis)
    assert {"shm-4k", "heap", "last-level cache"} <= set(words_of(axis))
    assert axis.get_xlabel() == "size of the array"
    assert axis.get_ylabel() == "ns per gather"


def test_an_unknown_reach_is_no_mark_and_a_reason() -> None:
    run = full_run()
    environment = msgspec.structs.replace(run.environment, stlb=Stlb(source="nobody told"))
    axis = axes_of(sweep_picture(msgspec.structs.replace(run, environment=environment)))
    assert not [word for word in words_of(axis) if "TLB" in word]
    assert "No mark" in reach_text(environment, [1, 2])
    assert "nobody told" in reach_text(environment, [1, 2])


def test_a_reach_off_the_axis_is_said_with_its_sum() -> None:
    told = reach_text(full_run().environment, [MIB, 64 * MIB])
    assert "2048 entries × 4 KiB = 8 MiB;" in told
    assert "2048 entries × 2 MiB = 4 GiB, beyond the axis" in told


def test_throughput_is_items_over_time_and_needs_two_numbers_of_workers() -> None:
    cells = [one for one in full_run().cells if one.pattern == "random"]
    axis = axes_of(throughput_picture(cells))
    drawn = [list(zip(*line.get_data(), strict=True)) for line in axis.lines]
    wanted = [(1, 1e3 / 402), (2, 1e3 / 201)]
    assert any(
        [place for place, _ in line] == [1, 2]
        and [value for _, value in line] == pytest.approx([value for _, value in wanted])
        for line in drawn
    )
    assert "million gathers a second" in axis.get_ylabel()
    assert throughput_picture([one for one in cells if one.workers == 1]) is None


def test_the_roofline_has_its_points_and_roofs() -> None:
    run = full_run()
    axis = axes_of(roofline_picture(run))
    points = {
        tuple(line.get_data()[0].tolist() + line.get_data()[1].tolist())
        for line in axis.lines
        if len(line.get_data()[0]) == 1
    }
    intensity = 2 * 1_000 / 24_000
    assert {round(place[0], 6) for place in points} == {round(intensity, 6)}
    assert {round(place[1], 6) for place in points} == {round(2 / 201, 6), round(2 / 101, 6)}
    lines = [line.get_data() for line in axis.lines if len(line.get_data()[0]) == 2]
    heights = [list(y) for _, y in lines]
    assert [80.0, 80.0] in heights, "two workers, 40 each"
    assert [2 / 81.2, 2 / 81.2] in heights, "one random line for each entry"
    slope = next((x, y) for x, y in lines if y[0] != y[1])
    assert [y / x for x, y in zip(*slope, strict=True)] == pytest.approx([21.5, 21.5])
    assert roofline_picture(benchmark()) is None
    no_peak = msgspec.structs.replace(run, peak_gflops=None)
    picture = roofline_picture(no_peak)
    assert picture is not None
    assert "not measured" in picture.caption
    assert "dense product" not in words_of(axes_of(picture))


def test_every_picture_names_its_axes_with_units() -> None:
    run = full_run()
    for picture in (sweep_picture(run), roofline_picture(run), throughput_picture(run.cells[:4])):
        axis = axes_of(picture)
        assert axis.get_xlabel()
        assert axis.get_ylabel()


@pytest.mark.usefixtures("matplotlib")
def test_words_of_a_picture_are_escaped() -> None:
    made = inline_svg(lambda axis: None, "n", 'a "b" <c> & d', (2, 2))
    assert Page(made).pictures[0]["aria-label"] == 'a "b" <c> & d'


@settings(max_examples=examples(200))
@given(st.lists(st.floats(0, 1), max_size=8), st.floats(0.01, 0.1))
def test_labels_are_spread_apart_and_stay_inside(places: list[float], gap: float) -> None:
    places.sort()
    found = spread_apart(places, gap)
    assert len(found) == len(places)
    for low, high in itertools.pairwise(found):
        assert high - low >= gap - 1e-9
    if found:
        assert found[-1] <= 1 + 1e-9
        assert found[0] >= -1e-9
    if all(high - low >= gap for low, high in itertools.pairwise(places)):
        assert found == pytest.approx(places)
