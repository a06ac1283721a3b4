"""``hugepool verify``, ``publish``, ``snapshot`` and ``restore``: data that is kept and checked."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import click
import msgspec

from hugepool.connection import connect, local_address
from hugepool.pool import Pool
from hugepool.snapshot import SnapshotReport
from hugepool.store import temporary_name
from hugepool_common.errors import HugepoolError
from hugepool_common.units import format_bytes

EXIT_FAILURE = 1

_ADDRESS = click.option(
    "--address",
    metavar="ADDRESS",
    help="Coordinator. Default: $HUGEPOOL_ADDRESS, else the local one.",
)
_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.command("verify")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@_ADDRESS
@_JSON
def verify_command(names: tuple[str, ...], address: str | None, as_json: bool) -> None:
    """Compare sealed objects with the checksums they were sealed with.

    All of them, unless some are named. Exit status 1 if one differs, or cannot be read.
    """
    with _connected(address) as pool:
        findings = [_verified(pool, name) for name in names or _sealed(pool)]
    if as_json:
        _print_json(findings)
    else:
        _print_table(
            ("name", "generation", "size", "checksum", "GB/s", "result"),
            [
                (
                    finding["name"],
                    str(finding["generation"]) if "generation" in finding else "",
                    format_bytes(finding["nbytes"]) if "nbytes" in finding else "",
                    finding.get("checksum", ""),
                    _rate(finding),
                    finding.get("error", "ok"),
                )
                for finding in findings
            ],
        )
    if not all(finding["ok"] for finding in findings):
        sys.exit(EXIT_FAILURE)


def _sealed(pool: Pool) -> list[str]:
    return [info.spec.name for info in pool.list() if info.sealed or info.lost]


def _verified(pool: Pool, name: str) -> dict[str, Any]:
    try:
        report = pool.verify(name)
    except HugepoolError as error:
        return {"name": name, "ok": False, "error": str(error)}
    return {"ok": True, **msgspec.structs.asdict(report)}


def _rate(finding: dict[str, Any]) -> str:
    return f"{finding['nbytes'] / finding['wall_ns']:.2f}" if finding["ok"] else ""


@click.command("publish")
@click.argument("name")
@click.argument("file", type=click.Path())
@_ADDRESS
def publish_command(name: str, file: str, address: str | None) -> None:
    """Read a file (.npy, .mtx, .mtx.gz, .npz) and let NAME stand for it, in one step.

    Who has attached NAME before keeps what it has.

    \b
    Example:
      hugepool publish weights weights-7.npy
    """
    with _connected(address) as pool:
        temporary = temporary_name(name)
        made = pool.load(temporary, file)
        try:
            made.publish_as(name)
        except BaseException:
            pool.discard(temporary)
            raise
        click.echo(f"{name} generation {made.generation}: {made}")


@click.command("snapshot")
@click.argument("directory", metavar="DIR", type=click.Path())
@click.argument("names", nargs=-1, metavar="[NAME]...")
@_ADDRESS
@_JSON
def snapshot_command(
    directory: str, names: tuple[str, ...], address: str | None, as_json: bool
) -> None:
    """Save sealed arrays and matrices to DIR, in place of the snapshot that is there.

    All of them, unless some are named. Whatever happens meanwhile, DIR holds the
    snapshot of before or the new one, whole.
    """
    with _connected(address) as pool:
        _print_report(pool.snapshot(directory, names or None), "saved", as_json)


@click.command("restore")
@click.argument("directory", metavar="DIR", type=click.Path())
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--replace", is_flag=True, help="Publish over names that are taken.")
@_ADDRESS
@_JSON
def restore_command(
    directory: str, names: tuple[str, ...], replace: bool, address: str | None, as_json: bool
) -> None:
    """Make the arrays and matrices of the snapshot in DIR, with checksums verified.

    All of them, unless some are named; all or nothing.
    """
    with _connected(address) as pool:
        report = pool.restore(directory, names or None, replace=replace)
        _print_report(report, "restored", as_json)


def _connected(address: str | None) -> Pool:
    return connect(local_address(address))


def _print_report(report: SnapshotReport, verb: str, as_json: bool) -> None:
    if as_json:
        _print_json({**msgspec.to_builtins(report), "nbytes": report.nbytes})
        return
    _print_table(
        ("name", "shape", "dtype", "size", "checksum", "result"),
        [
            (
                saved.name,
                " x ".join(map(str, saved.spec.shape)) or "()",
                saved.spec.dtype,
                format_bytes(saved.nbytes),
                saved.checksum,
                verb,
            )
            for saved in report.objects
        ]
        + [(name, "", "", "", "", f"skipped: {reason}") for name, reason in report.skipped.items()],
    )
    seconds = report.wall_ns / 1e9
    click.echo(
        f"{verb} {len(report.objects)} objects, {format_bytes(report.nbytes)}, in {seconds:.2f} s",
        err=True,
    )


def _print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Aligned text, names to the left."""
    widths = [max(len(row[number]) for row in (columns, *rows)) for number in range(len(columns))]
    for row in (columns, *rows):
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        click.echo("  ".join(cells).rstrip())


def _print_json(value: object) -> None:
    click.echo(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())
