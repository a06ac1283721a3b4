"""What a job's parts reported, together."""

from __future__ import annotations

from dataclasses import dataclass

from hugepool_common.messages import JobDone, Timing


@dataclass(frozen=True, slots=True)
class JobTimings:
    """Reports of all parts of one job.

    Parameters
    ----------
    job
        The coordinator's number of the job.
    parts
        One :class:`Timing` per part, in order of rows.
    dispatch_ns
        From the first part sent to the last report received, by the coordinator's clock.
    """

    job: int
    parts: tuple[Timing, ...]
    dispatch_ns: int

    @classmethod
    def of(cls, done: JobDone) -> JobTimings:
        """From the coordinator's reply."""
        return cls(done.job, done.timings, done.wall_ns)

    @property
    def wall_ns(self) -> int:
        """From the first kernel's start to the last one's end, in ns of the common clock."""
        if not self.parts:
            return 0
        start_ns = min(part.started_ns for part in self.parts)
        return max(part.started_ns + part.wall_ns for part in self.parts) - start_ns

    @property
    def slowest_ns(self) -> int:
        """Time of the slowest part's kernel, in ns."""
        return max((part.wall_ns for part in self.parts), default=0)

    @property
    def cpu_ns(self) -> int:
        """CPU time of all kernels together, in ns."""
        return sum(part.cpu_ns for part in self.parts)

    @property
    def elements(self) -> int:
        """Elements gathered or rows written."""
        return sum(part.elements for part in self.parts)

    @property
    def nnz(self) -> int:
        """Matrix entries used."""
        return sum(part.nnz for part in self.parts)

    @property
    def nbytes(self) -> int:
        """Payload bytes read and written."""
        return sum(part.nbytes for part in self.parts)

    @property
    def mapped_bytes(self) -> int:
        """Bytes of shared operands mapped, over all workers."""
        return sum(part.mapped_bytes for part in self.parts)

    @property
    def huge_bytes(self) -> int:
        """Those of `mapped_bytes` that huge pages map, as each worker proved for itself."""
        return sum(part.huge_bytes for part in self.parts)

    @property
    def tlb_misses(self) -> int | None:
        """dTLB read misses of all parts, or None when any part could not count."""
        counted = [part.tlb_misses for part in self.parts if part.tlb_misses is not None]
        return sum(counted) if counted and len(counted) == len(self.parts) else None

    @property
    def tlb_note(self) -> str:
        """Why there is no `tlb_misses`; empty when there is."""
        return next((part.tlb_note for part in self.parts if part.tlb_misses is None), "")

    def __str__(self) -> str:
        rate = self.nbytes / self.wall_ns if self.wall_ns else 0.0
        huge = 100 * self.huge_bytes / self.mapped_bytes if self.mapped_bytes else 0.0
        kinds = ", ".join(sorted({f"{part.label} ({part.implementation})" for part in self.parts}))
        workers = len({part.pid for part in self.parts})
        text = f"{kinds}: {self.wall_ns / 1e6:.3f} ms on {workers} worker(s), {rate:.2f} GB/s"
        if self.wall_ns > 2 * self.slowest_ns:
            # Parts that did not run side by side: a worker was still compiling, or
            # there were more parts than workers.
            text += f" (slowest part {self.slowest_ns / 1e6:.3f} ms)"
        return f"{text}, {huge:.4g} % of mapped bytes huge"
