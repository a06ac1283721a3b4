"""A whole run: for each pattern make the operands, warm up, check, measure, destroy."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import msgspec

from hugepool import kernels
from hugepool.array import SharedArray
from hugepool.bench import limits, memory
from hugepool.bench.cases import Case, build_case, matrix_case, reference_of
from hugepool.bench.matrices import CsrMatrix
from hugepool.bench.measure import LIMIT, Cell, Patience, Progress, measure, verify, warm_up
from hugepool.bench.operands import OperandSet, Placement, drop, make_x, placement
from hugepool.bench.options import (
    BASELINE,
    FILE_PATTERN,
    HEAP,
    KERNELS,
    BenchOptions,
    kernel_names,
)
from hugepool.bench.results import (
    HUGE_ENOUGH,
    CellResult,
    LimitResult,
    Missing,
    SweepPoint,
    missing_rung,
)
from hugepool.bench.statistics import Speedup, Spread, paired_speedup
from hugepool.bench.sweep import run_sweep, sweep_segments
from hugepool.pool import Pool
from hugepool_common.errors import HugepoolError, NotEnoughMemoryError, NotEnoughPagesError
from hugepool_common.pages import read_host


class Suite:
    """Runs the cases of :class:`BenchOptions` in a pool whose workers are started.

    Attributes
    ----------
    cells, limits, sweep, missing, notes
        What was found so far.
    """

    def __init__(
        self, pool: Pool, options: BenchOptions, matrix: CsrMatrix | None, progress: Progress
    ) -> None:
        self._pool = pool
        self._options = options
        self._matrix = matrix
        self._progress = progress
        self._patience = Patience()
        self._backings: tuple[str, ...] = ()
        self._kept_x: dict[tuple[str, int], SharedArray] = {}
        self.cells: list[CellResult] = []
        self.limits: list[LimitResult] = []
        self.sweep: list[SweepPoint] = []
        self.missing: list[Missing] = []
        self.notes: list[str] = []
        self._refusals: list[NotEnoughPagesError | NotEnoughMemoryError] = []

    def prepare(self) -> None:
        """Choose the backings that fit into memory, before anything is made.

        Raises
        ------
        NotEnoughMemoryError
            None fits.
        """
        self._backings = self._what_fits()
        self._note_kernels()

    def run(self) -> None:
        """Run everything; whatever happens, nothing that was made is left."""
        try:
            for pattern in self._patterns():
                backings = self._with_pages(pattern)
                if not backings:
                    continue
                self._progress(f"{pattern}: making inputs")
                self._run_case(self._case(pattern), backings)
        finally:
            self._drop_x(lambda key: True)
        if self._options.sweep_s and self.cells:
            self._run_sweep()
        self._note_disturbance()

    def _run_sweep(self) -> None:
        measured = {cell.backing for cell in self.cells}
        backings = [name for name in self._backings if name in measured]
        self.sweep, notes = run_sweep(
            self._pool, self._options, backings, self._progress, self._patience
        )
        self.notes += notes

    def nothing_measured(self) -> HugepoolError:
        """The error of a run without a result, with every reason."""
        pages = [one for one in self._refusals if isinstance(one, NotEnoughPagesError)]
        told = "; ".join(one.fact for one in self.missing)
        message = "none of the page kinds asked for could be measured"
        if pages:
            # One remedy is as good as another: any of them brings a row.
            return NotEnoughPagesError(f"{message} ({told})", remedy=pages[0].remedy)
        return NotEnoughMemoryError(
            f"{message} ({told})", remedy="use a smaller --size or fewer --gathers"
        )

    # Before anything is made ---------------------------------------------------

    def _patterns(self) -> tuple[str, ...]:
        return self._options.patterns + ((FILE_PATTERN,) if self._matrix is not None else ())

    def _what_fits(self) -> tuple[str, ...]:
        options = self._options
        sums = [sum(self._segments(pattern)) for pattern in self._patterns()]
        if options.sweep_s:
            sums.append(sum(sweep_segments(options)))
        host = read_host()
        pools = {pool.page_size: pool.available_bytes for pool in host.pools}
        shm = next((mount for mount in host.tmpfs_mounts if mount.path == "/dev/shm"), None)
        kept, missing = memory.what_fits(
            options.backings,
            bytes_per_backing=max(sums),
            client_bytes=max(
                [memory.client_bytes(pattern, options) for pattern in options.patterns], default=0
            ),
            workers=max(options.workers),
            headroom_bytes=host.memory_headroom_bytes,
            shm_room_bytes=None if shm is None else shm.available_bytes,
            pool_bytes={
                backing: pools.get(page_size, 0)
                for backing, page_size in memory.HUGETLBFS_PAGE_SIZES.items()
            },
        )
        self.missing += missing
        return kept

    def _segments(self, pattern: str) -> tuple[int, ...]:
        """Payload of every segment that a pattern keeps on one backing."""
        if pattern == FILE_PATTERN:
            assert self._matrix is not None
            return memory.matrix_segments(self._matrix, self._options)
        return memory.planned_segments(pattern, self._options)

    def _with_pages(self, pattern: str) -> tuple[str, ...]:
        """The backings whose reserved pages suffice for everything that a pattern keeps."""
        kept = []
        for backing in self._backings:
            try:
                self._check_pages(backing, pattern)
                kept.append(backing)
            except NotEnoughPagesError as error:
                self._miss(backing, pattern, error)
        return tuple(kept)

    def _check_pages(self, backing: str, pattern: str) -> None:
        page_size = memory.HUGETLBFS_PAGE_SIZES.get(backing)
        if page_size is None:
            return
        segments = self._segments(pattern)
        elements = segments[0] // 8  # x comes first
        self._drop_x(lambda key: key[1] != elements)
        kept = memory.in_pages(segments[:1], page_size)
        memory.check_pages(
            backing,
            read_host(),
            needed_bytes=memory.in_pages(segments, page_size),
            largest_bytes=max(
                memory.in_pages(self._segments(one), page_size) for one in self._patterns()
            ),
            kept_bytes=kept if (backing, elements) in self._kept_x else 0,
            uid=os.geteuid(),
            gid=os.getegid(),
        )

    def _note_kernels(self) -> None:
        if "numba" not in kernels.available("gather"):
            self.notes.append(
                "numba is not installed: hugepool's kernels are their NumPy or SciPy fallbacks and "
                "there is no random-line limit; pip install 'hugepool[compute]'"
            )
        if "scipy" not in kernels.available("matvec"):
            self.notes.append("SciPy is not installed: products are checked against NumPy's sums")

    def _note_disturbance(self) -> None:
        timed: list[CellResult | SweepPoint] = [*self.cells, *self.sweep]
        told = self._patience.note(
            sum(one.disturbed for one in timed), sum(len(one.samples_ns) for one in timed)
        )
        if told:
            self.notes.append(told)

    def _case(self, pattern: str) -> Case:
        if pattern == FILE_PATTERN:
            assert self._matrix is not None
            return matrix_case(
                pattern, self._matrix, self._options, os.path.basename(self._options.matrix or "")
            )
        return build_case(pattern, self._options)

    # One case -------------------------------------------------------------------

    def _run_case(self, case: Case, backings: Sequence[str]) -> None:
        self._drop_x(lambda key: key[1] != case.x_elements)
        with self._operands(case, backings) as sets:
            if not sets:
                return
            places = [placement(name) for name in backings if placement(name).rung in sets]
            reference = reference_of(case, next(iter(sets.values())).array("x").array)
            cells = self._cells(case, places, sets)
            warm_up(self._pool, cells, self._progress)
            for cell in cells:
                if cell.name != LIMIT:
                    verify(self._pool, cell, reference, f"{case.pattern}: {cell}")
            measure(self._pool, cells, self._options.repeats, self._progress, self._patience)
            self._conclude(case, cells)

    @contextmanager
    def _operands(self, case: Case, backings: Sequence[str]) -> Iterator[dict[str, OperandSet]]:
        sets: dict[str, OperandSet] = {}
        try:
            for rung in dict.fromkeys(placement(name).rung for name in backings):
                self._progress(f"{case.pattern}: copying inputs to {rung}")
                try:
                    sets[rung] = OperandSet.of_case(self._pool, rung, case, self._x_on(rung, case))
                except (NotEnoughPagesError, NotEnoughMemoryError) as error:
                    self._miss(rung, case.pattern, error)
            yield sets
        finally:
            for made in sets.values():
                made.destroy()

    def _x_on(self, rung: str, case: Case) -> SharedArray:
        """x of a rung; patterns that have it in common use one, to save its making."""
        key = (rung, case.x_elements)
        if key not in self._kept_x:
            self._kept_x[key] = make_x(self._pool, rung, case)
        return self._kept_x[key]

    def _drop_x(self, unwanted: Callable[[tuple[str, int]], bool]) -> None:
        for key in [key for key in self._kept_x if unwanted(key)]:
            drop(self._pool, self._kept_x.pop(key))

    def _miss(
        self, rung: str, pattern: str, error: NotEnoughPagesError | NotEnoughMemoryError
    ) -> None:
        self._refusals.append(error)
        affected = [rung] + ([HEAP] if rung == BASELINE and HEAP in self._options.backings else [])
        everywhere = len(self._patterns()) == 1
        for backing in affected:
            found = missing_rung(backing, rung, error)
            if any(one.backing == backing and not one.pattern for one in self.missing):
                continue
            measured = any(one.backing == backing for one in self.cells)
            if measured and not everywhere:
                found = msgspec.structs.replace(found, pattern=pattern)
            self.missing.append(found)

    def _cells(
        self, case: Case, places: Sequence[Placement], sets: dict[str, OperandSet]
    ) -> list[Cell]:
        roles = ("x", "idx", "out") if case.kernel == "gather" else ("A", "x", "out")
        made: list[Cell] = []
        for name, implementation in implementations(self._options, case):
            for place in places:
                operands = {role: sets[place.rung].objects[role] for role in roles}
                made += [
                    Cell(name, case.kernel, implementation, place, operands, case.rows(count))
                    for count in self._options.workers
                ]
        for place in places:
            made += limits.limit_cells(case, place, sets[place.rung], self._options.workers)
        return made

    # Conclusions ------------------------------------------------------------------

    def _conclude(self, case: Case, cells: Sequence[Cell]) -> None:
        found = [limits.limit_result(case.pattern, cell) for cell in cells if cell.name == LIMIT]
        self.limits += found
        order = list(dict.fromkeys(cell.name for cell in cells))
        for cell in sorted(cells, key=lambda cell: (order.index(cell.name), cell.workers)):
            if cell.name == LIMIT:
                continue
            near = [
                limit
                for limit in found
                if (limit.backing, limit.workers) == (cell.placement.label, cell.workers)
            ]
            baseline = next(
                (
                    other
                    for other in cells
                    if other.placement.label == BASELINE
                    and (other.name, other.kernel, other.workers)
                    == (cell.name, cell.kernel, cell.workers)
                ),
                None,
            )
            self.cells.append(cell_result(case, cell, near, speedup_of(cell, baseline)))


def implementations(options: BenchOptions, case: Case) -> list[tuple[str, str]]:
    """Kernel names and the implementation of each that is there, none twice."""
    there = kernels.available(case.kernel)
    found: dict[str, str] = {}
    for name in kernel_names(options, case.pattern, case.kernel):
        usable = [one for one in KERNELS[name][case.kernel] if one in there]
        if usable and usable[0] not in found.values():
            found[name] = usable[0]
    return list(found.items())


def speedup_of(cell: Cell, baseline: Cell | None) -> Speedup:
    """Speed-up over the same kernel on 4 KiB shared memory, or why none is claimed."""
    if baseline is None:
        return Speedup.refusal(f"{BASELINE} was not measured")
    if cell is baseline:
        return Speedup.refusal("baseline")
    huge, mapped = baseline.least_huge()
    if huge > (1 - HUGE_ENOUGH) * mapped:
        return Speedup.refusal(f"{BASELINE} has huge pages")
    huge, mapped = cell.least_huge()
    if cell.placement.view == "shared" and huge < HUGE_ENOUGH * mapped:
        return Speedup.refusal("not proved huge")
    return paired_speedup(
        [sample.wall_ns for sample in baseline.samples], [sample.wall_ns for sample in cell.samples]
    )


def cell_result(
    case: Case, cell: Cell, near: Sequence[LimitResult], speedup: Speedup
) -> CellResult:
    """Everything that is told of a cell."""
    samples = tuple(sample.wall_ns for sample in cell.samples)
    median_ns = statistics.median(samples)
    percent, limit_note = limits.share_of_limit(case, min(samples), near)
    huge, mapped = cell.least_huge()
    misses = [sample.tlb_misses for sample in cell.samples if sample.tlb_misses is not None]
    return CellResult(
        pattern=case.pattern,
        title=case.title,
        kernel=cell.name,
        implementation=cell.implementation,
        backing=cell.placement.label,
        workers=cell.workers,
        unit=case.unit,
        items=case.items,
        nbytes=cell.nbytes,
        samples_ns=samples,
        disturbed=sum(sample.disturbed for sample in cell.samples),
        per_item_ns=Spread.of([sample / max(1, case.items) for sample in samples]),
        gb_per_s=cell.nbytes / median_ns,
        mapped_bytes=mapped,
        huge_bytes=huge,
        tlb_misses_per_item=statistics.median(misses) / case.items if misses else None,
        tlb_note="" if misses else cell.samples[-1].tlb_note,
        verified=bool(cell.agreement),
        agreement=cell.agreement,
        limit=case.limit,
        percent_of_limit=percent,
        limit_note=limit_note,
        speedup=speedup,
    )
