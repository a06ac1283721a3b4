"""Making plans: what is tried, what is kept, and why.

Planning measures instead of guessing. The direct form is timed end to end on the
workers that will run it. From a copy's speed it is predicted what another form would
take; one that may win is built, by the same workers, and timed in turns with the
direct one. The fastest stays.
"""

from __future__ import annotations

import math
import operator
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, TypeVar, get_args

import msgspec
import numpy as np
import numpy.typing as npt

from hugepool.arguments import dtype_code
from hugepool.array import SharedArray, SharedObject
from hugepool.computing import Computing
from hugepool.gather_builds import gather_forms
from hugepool.kernels import rounding
from hugepool.matrix import SharedMatrix
from hugepool.phases import Phase
from hugepool.plan import SharedPlan
from hugepool.plan_record import RECORD, RECORD_BYTES, PlanFacts, PlanReport, PlanSegment
from hugepool.product_builds import matvec_forms, rmatvec_forms
from hugepool.products import refuse_complex
from hugepool.progress import Waiting
from hugepool.sharing import as_indices
from hugepool.timings import JobTimings
from hugepool.trials import Hope, Proposal, Trials
from hugepool_common.errors import ArrayBusyError, InvalidSpecError, SegmentChangedError
from hugepool_common.spec import ArraySpec, Member, check_name

Form = Literal["auto", "direct", "binned", "ordered", "repeated", "mirrored", "narrow"]
Storage = Literal["exact", "auto", "compact", "bfloat16"]

_S = TypeVar("_S", bound=SharedObject)

MOST_NAME = 100
"""Characters of a plan's name: those of its payloads are longer."""


class Planning(Computing):
    """What a session can plan; :class:`hugepool.Pool` is one."""

    def plan_gather(
        self,
        idx: SharedArray | npt.ArrayLike,
        source: SharedArray | str,
        *,
        name: str | None = None,
        uses: int | None = None,
        form: Form = "auto",
        workers: int | None = None,
    ) -> SharedPlan:
        """Check an index once, and find the fastest way to gather with it.

        Parameters
        ----------
        idx
            Integers of any shape, each in ``[0, len(source))``: a handle, a name, or
            anything that NumPy makes an array of. It is copied: later writes to it
            change nothing.
        source
            Handle or name of a 1-D array to gather from; the plan then fits every array
            of its length and dtype.
        name
            Of the plan, for other processes to attach. With None it has a name of its
            own and is destroyed with its last handle.
        uses
            How many runs there will be, if known: what would not be paid for by then
            is not built.
        form
            ``direct`` or ``binned`` instead of the fastest.
        workers
            How many to build and time with; missing ones are started. Default: all that
            are registered.

        Raises
        ------
        IndexOutOfRangeError
            An index is negative or too large; the first one is named.
        InvalidSpecError
            An argument makes no sense.
        NotEnoughMemoryError
            The form asked for does not fit into the memory that is free.
        """
        hope = _hope(uses, form, ("auto", "direct", "binned"))
        count = self._jobs.worker_count(workers)
        x = self._array_handle(source, "source")
        if len(x.shape) != 1:
            raise InvalidSpecError("a plan gathers from one axis", had=f"{x.shape}", where="source")
        with Waiting("planning"), self._shared(as_indices(idx), "idx") as (shared, spec):
            index = self._array_handle(shared, "idx")
            shape, dtype = spec.shape, x.spec.dtype
            with self._record(name, 0) as record, self._spare("out", shape, dtype) as out:
                blank = _undecided("gather", shape, x.shape[0], math.prod(shape), count)
                return self._decided(
                    record,
                    PlanFacts(blank, dtype, dtype),
                    gather_forms(self, record, index, x, count),
                    {"x": x, "out": out},
                    hope,
                )

    def plan_matvec(
        self,
        A: SharedMatrix | str,
        *,
        dtype: npt.DTypeLike | None = None,
        storage: Storage = "exact",
        name: str | None = None,
        uses: int | None = None,
        form: Form = "auto",
        workers: int | None = None,
    ) -> SharedPlan:
        """Check a matrix once, and find the fastest way to multiply with it.

        Parameters
        ----------
        A
            Handle or name of a sealed matrix. The plan goes when the matrix is destroyed.
        dtype
            Of the vectors; default: the matrix's.
        storage
            ``exact`` changes nothing of a result but the order of its sums; values take
            fewer bytes only where that loses nothing. ``compact`` may round values to
            float32, each by at most one part in 2**24; ``bfloat16`` to that in the forms
            that gain by it (``repeated`` and ``mirrored``), by at most one part in 2**8,
            and to float32 in the others. Sums are still made in the result's dtype.
            ``auto`` is ``exact``: whether to round is for the caller to say.
        name, uses, workers
            As in :meth:`plan_gather`.
        form
            ``direct``, ``binned``, ``ordered``, ``repeated``, ``mirrored`` or ``narrow`` instead
            of the fastest.

        Raises
        ------
        IndexOutOfRangeError, InvalidMatrixError
            The matrix contradicts itself.
        InvalidSpecError
            The matrix is not sealed, or an argument makes no sense.
        NotEnoughMemoryError
            The form asked for does not fit into the memory that is free.
        """
        hope = _hope(uses, form, get_args(Form))
        return self._plan_product("matvec", A, dtype, storage, name, hope, workers)

    def plan_rmatvec(
        self,
        A: SharedMatrix | str,
        *,
        dtype: npt.DTypeLike | None = None,
        storage: Storage = "exact",
        name: str | None = None,
        uses: int | None = None,
        form: Form = "auto",
        workers: int | None = None,
    ) -> SharedPlan:
        """Check a real matrix once, and find the fastest way to multiply with its transpose.

        Runs compute ``A.T @ x``: x has ``A.shape[0]`` elements and the result ``A.shape[1]``.
        Neither the transpose nor a copy in its order is made.

        Parameters
        ----------
        A
            Handle or name of a sealed matrix. The plan goes when the matrix is destroyed.
        form
            ``direct``, whose workers sum their rows each for itself and then add these sums
            up (see :meth:`rmatvec` for the bound), or ``binned``, which is equal to SciPy's
            result bit for bit, instead of the fastest.
        dtype, storage, name, uses, workers
            As in :meth:`plan_matvec`.

        Raises
        ------
        IndexOutOfRangeError, InvalidMatrixError
            The matrix contradicts itself.
        InvalidSpecError
            The matrix is not sealed, a dtype is complex, or an argument makes no sense.
        NotEnoughMemoryError
            The form asked for does not fit into the memory that is free.
        """
        hope = _hope(uses, form, ("auto", "direct", "binned"))
        return self._plan_product("rmatvec", A, dtype, storage, name, hope, workers)

    def attach(
        self, name: str, readonly: bool = True, *, rows: tuple[int, int] | None = None
    ) -> Any:
        """Map a named object into this process, without a copy.

        Parameters
        ----------
        name
            As it was created.
        readonly
            With False the mapping is writable, while the object is not sealed.
        rows
            Rows ``[start, stop)`` of an array that this process alone will write; the
            handle's ``array`` is these rows. Ranges that writers declare may not overlap.
            A promise among writers: the kernel keeps nobody from writing elsewhere.

        Returns
        -------
        SharedArray, SharedMatrix or SharedPlan

        Raises
        ------
        ArrayNotFoundError
            No such name.
        ArrayLostError
            The name is known and its memory is gone.
        ArraySealedError
            ``readonly=False`` for a sealed object.
        ArrayBusyError
            The plan is still being made, or another process has declared some of these rows.
        InvalidSpecError
            The object has no such rows, or is no array.
        SegmentChangedError
            The matrix of the plan was destroyed.
        """
        found = super().attach(name, readonly, rows=rows)
        if not isinstance(found, PlanSegment) or not found.is_record:
            return found
        if not found.sealed:
            raise ArrayBusyError(
                "the plan is still being made", where=name, remedy="try again when its maker has it"
            )
        facts = found.read_record()
        payload = super().attach(facts.payload) if facts.payload else None
        matrix = super().attach(facts.matrix) if facts.matrix else None
        if matrix is not None and matrix.info.segment.segment_id != facts.matrix_segment:
            raise SegmentChangedError(
                "the matrix of this plan was destroyed, and another has its name",
                where=facts.matrix,
                remedy="plan anew",
            )
        return SharedPlan(self, found, facts, payload, matrix)

    # What plans ask of their session --------------------------------------------

    def make_scratch(self, members: Sequence[Member]) -> dict[str, SharedArray]:
        """Arrays of zeros for one handle of a plan, destroyed with it."""
        made = {}
        for member in members:
            name = self._temporary_name(member.role)
            made[member.role] = self.create(name, member.count, member.dtype, temporary=True)
            made[member.role].destroy_with_handle()
        return made

    def run_plan(
        self,
        plan: SharedPlan,
        x: SharedArray | str | np.ndarray[Any, Any],
        out: SharedArray | str | None = None,
        *,
        workers: int | None = None,
    ) -> SharedArray:
        """Run all phases of a plan as jobs; see :meth:`SharedPlan.run`."""
        count = self._jobs.worker_count(workers)
        facts = plan.facts
        with self._shared(x, "x") as (shared, x_spec):
            source = self._array_handle(shared, "x")
            with self._output(out, facts.out_shape, facts.out_dtype, (x_spec,)) as result:
                with plan.lock:
                    result.timings = self.run_phases(plan.phases(source, result, count))
                return result

    def make_payload(self, kind: type[_S], spec: ArraySpec) -> _S:
        """A writable named object, with this pool's wish for pages; a forked child has no part."""
        return self._make(kind, spec, {}, forked=False)

    def run_phases(self, steps: Sequence[Phase]) -> JobTimings:
        """Run phases one after another, each as a job; their timings together."""
        done = [
            self._jobs.run(
                step.kernel,
                step.operands,
                step.rows,
                implementation=step.implementation,
                writes=step.writes,
            )
            for step in steps
        ]
        parts = tuple(part for one in done for part in one.parts)
        return JobTimings(done[-1].job, parts, sum(one.dispatch_ns for one in done))

    # Within -------------------------------------------------------------------

    def _plan_product(
        self,
        operation: str,
        A: SharedMatrix | str,
        dtype: npt.DTypeLike | None,
        storage: Storage,
        name: str | None,
        hope: Hope,
        workers: int | None,
    ) -> SharedPlan:
        """A plan of a matrix, or of its transpose."""
        if storage not in get_args(Storage):
            needed = " or ".join(get_args(Storage))
            raise InvalidSpecError(f"storage={storage!r} is not a choice", needed=needed)
        count = self._jobs.worker_count(workers)
        matrix = self._matrix_handle(A)
        if not matrix.sealed:
            raise InvalidSpecError(
                "a matrix that may still change cannot be planned",
                where=matrix.name,
                remedy="call its seal() first",
            )
        kept: rounding.Storage = "exact" if storage == "auto" else storage
        x_dtype = matrix.spec.dtype if dtype is None else dtype_code(dtype)
        out_dtype = np.result_type(matrix.dtype, np.dtype(x_dtype)).str
        propose, (produced, taken) = matvec_forms, matrix.shape
        if operation == "rmatvec":
            refuse_complex(out_dtype)
            propose, (taken, produced) = rmatvec_forms, matrix.shape
        shape = matrix.shape[0], matrix.shape[1]
        segment_id = matrix.info.segment.segment_id
        with Waiting("planning"), self._record(name, segment_id) as record:
            blank = _undecided(operation, shape, taken, matrix.nnz, count)
            facts = PlanFacts(blank, x_dtype, out_dtype, "", matrix.name, segment_id)
            with (
                self._spare("x", (taken,), x_dtype) as x,
                self._spare("out", (produced,), out_dtype) as out,
            ):
                forms = propose(self, record, matrix, x, out_dtype, kept, count)
                operands = {"x": x, "out": out, "A": matrix}
                return self._decided(record, facts, forms, operands, hope)

    def _decided(
        self,
        record: PlanSegment,
        facts: PlanFacts,
        forms: Sequence[Proposal],
        operands: dict[str, SharedObject],
        hope: Hope,
    ) -> SharedPlan:
        """Let the forms compete, and write down what came of it."""
        began_ns = time.monotonic_ns()
        trials = Trials(self, facts.report, operands)
        kept = trials.decide(forms, hope)
        report = msgspec.structs.replace(
            facts.report,
            choice=kept.form,
            reason=trials.reason,
            measured_ns=trials.measured_ns,
            predicted_ns={one.form: one.predicted_ns for one in forms if one.predicted_ns},
            build_ns=kept.build_ns,
            trial_ns=time.monotonic_ns() - began_ns,
            payload_nbytes=record.nbytes + (kept.payload.nbytes if kept.payload is not None else 0),
            scratch_nbytes=trials.scratch_nbytes,
            break_even=trials.break_even,
            values=kept.values,
        )
        facts = msgspec.structs.replace(
            facts,
            report=report,
            payload=kept.payload.name if kept.payload is not None else "",
            scratch=kept.scratch,
        )
        record.write_record(facts)
        record.seal()
        matrix = operands.get("A")
        return SharedPlan(
            self,
            record,
            facts,
            kept.payload,
            matrix if isinstance(matrix, SharedMatrix) else None,
            trials.scratch,
            lent=True,
        )

    @contextmanager
    def _record(self, name: str | None, made_of: int) -> Iterator[PlanSegment]:
        """The plan's named object, to be filled in; what is built for it goes with it."""
        chosen = self._temporary_name("plan") if name is None else check_name(name)
        if len(chosen) > MOST_NAME:
            raise InvalidSpecError(
                "the name of a plan is too long", needed=f"at most {MOST_NAME}", had=chosen
            )
        member = Member(RECORD, "|u1", RECORD_BYTES)
        spec = ArraySpec(chosen, (), "<f8", "plan", members=(member,), made_of=made_of)
        record = self._make(PlanSegment, spec, {"temporary": name is None}, forked=False)
        if name is None:
            record.destroy_with_handle()
        try:
            yield record
        except BaseException:
            if name is not None:
                self.destroy(chosen)
            raise

    def _array_handle(self, operand: SharedArray | str, role: str) -> SharedArray:
        found = self.attach(operand) if isinstance(operand, str) else operand
        if not isinstance(found, SharedArray):
            raise InvalidSpecError(
                f"{role} is no shared array",
                needed="a SharedArray or its name",
                had=repr(found)[:80],
                remedy="share it with pool.put first",
            )
        return found


def _hope(uses: int | None, form: str, choices: tuple[str, ...]) -> Hope:
    if form not in choices:
        raise InvalidSpecError(f"form={form!r} is not a choice", needed=" or ".join(choices))
    if uses is None:
        return Hope(form, None)
    try:
        count = 0 if isinstance(uses, bool) else operator.index(uses)
    except TypeError:
        count = 0
    if count < 1:
        raise InvalidSpecError("uses is no count of runs", needed="1 or more", had=f"{uses}")
    return Hope(form, count)


def _undecided(
    operation: str, shape: tuple[int, ...], rows: int, entries: int, workers: int
) -> PlanReport:
    return PlanReport(operation, "", "", shape, rows, entries, workers, {}, {}, 0, 0, 0, 0, None)
