"""``hugepool verify``, ``publish``, ``snapshot`` and ``restore``: data that is kept and checked."""

from __future__ import annotations

import sys
from typing import Any

import click
import msgspec

from hugepool.commands.arguments import (
    EXIT_FAILURE,
    address_option,
    json_option,
    name_argument,
    names_argument,
)
from hugepool.commands.filling import connected
from hugepool.commands.listing import told
from hugepool.commands.tables import (
    Column,
    count,
    print_json,
    print_table,
    shape_text,
    size,
    warn,
)
from hugepool.pool import Pool
from hugepool.snapshot import SnapshotReport
from hugepool.store import temporary_name
from hugepool_common.errors import ArrayNotFoundError, HugepoolError
from hugepool_common.spec import check_name
from hugepool_common.units import format_bytes


@click.command("verify")
@names_argument(required=False)
@address_option
@json_option
def verify_command(names: tuple[str, ...], address: str | None, as_json: bool) -> None:
    """Compare sealed objects with the checksums they were sealed with.

    All of them, unless some are named. Exit status 1 if one differs, cannot be read, or
    is not there.

    \b
    Example:
      hugepool verify x
    """
    wanted = [check_name(name) for name in dict.fromkeys(names)]
    with connected(address) as pool:
        found = [_verified(pool, name) for name in wanted or _sealed(pool)]
    findings = [finding for finding in found if finding is not None]
    if as_json:
        print_json(findings)
    elif findings or not names:
        columns = (
            *(Column("name"), count("generation"), size("bytes"), Column("checksum")),
            *(count("GB/s"), Column("result")),
        )
        print_table(
            columns,
            [
                (
                    finding["name"],
                    finding.get("generation"),
                    finding.get("nbytes"),
                    finding.get("checksum"),
                    _rate(finding),
                    finding.get("error", "ok"),
                )
                for finding in findings
            ],
        )
    if not all(finding is not None and finding["ok"] for finding in found):
        sys.exit(EXIT_FAILURE)


def _sealed(pool: Pool) -> list[str]:
    return [info.spec.name for info in pool.list() if info.sealed or info.lost]


def _verified(pool: Pool, name: str) -> dict[str, Any] | None:
    """What was found; None of a name that is not there, which is told here."""
    try:
        report = pool.verify(name)
    except ArrayNotFoundError as error:
        warn(str(error))
        return None
    except HugepoolError as error:
        return {"name": name, "ok": False, "error": str(error)}
    return {"ok": True, **msgspec.structs.asdict(report)}


def _rate(finding: dict[str, Any]) -> str:
    return f"{finding['nbytes'] / finding['wall_ns']:.2f}" if finding["ok"] else ""


@click.command("publish")
@name_argument
@click.argument("file", type=click.Path())
@click.option("--member", help="Which array, tensor or column, where FILE holds several.")
@address_option
@json_option
def publish_command(
    name: str, file: str, member: str | None, address: str | None, as_json: bool
) -> None:
    """Read a file, as hugepool put does, and let NAME stand for it, in one step.

    Who has attached NAME before keeps what it has.

    \b
    Example:
      hugepool publish weights weights-7.npy
    """
    with connected(address) as pool:
        temporary = temporary_name(name)
        made = pool.load(temporary, file, member=member, temporary=True)
        try:
            made.publish_as(name)
        except BaseException:
            pool.discard(made)
            raise
        if as_json:
            print_json(told(made.info))
        else:
            click.echo(f"{name} generation {made.generation}: {made}")


@click.command("snapshot")
@click.argument("directory", metavar="DIR", type=click.Path())
@names_argument(required=False)
@address_option
@json_option
def snapshot_command(
    directory: str, names: tuple[str, ...], address: str | None, as_json: bool
) -> None:
    """Save sealed arrays and matrices to DIR, in place of the snapshot that is there.

    All of them, unless some are named, but for temporaries, which go with their clients.
    Whatever happens meanwhile, DIR holds the snapshot of before or the new one, whole.
    Exit status 1, and the one of before stays, if it has what is lost now, or if there is
    nothing to save.

    \b
    Example:
      hugepool snapshot /var/backups/arrays
    """
    with connected(address) as pool:
        _print_report(pool.snapshot(directory, names or None), "saved", as_json)


@click.command("restore")
@click.argument("directory", metavar="DIR", type=click.Path())
@names_argument(required=False)
@click.option("--replace", is_flag=True, help="Publish over names that are taken.")
@address_option
@json_option
def restore_command(
    directory: str, names: tuple[str, ...], replace: bool, address: str | None, as_json: bool
) -> None:
    """Make the arrays and matrices of the snapshot in DIR, with checksums verified.

    All of them, unless some are named; all or nothing.

    \b
    Example:
      hugepool restore /var/backups/arrays --replace
    """
    with connected(address) as pool:
        report = pool.restore(directory, names or None, replace=replace)
        _print_report(report, "restored", as_json)


def _print_report(report: SnapshotReport, verb: str, as_json: bool) -> None:
    if as_json:
        print_json({**msgspec.to_builtins(report), "nbytes": report.nbytes})
        return
    columns = (
        *(Column("name"), Column("shape"), Column("dtype"), size("bytes"), Column("checksum")),
        Column("result"),
    )
    print_table(
        columns,
        [
            (
                saved.name,
                shape_text(saved.spec.shape),
                saved.spec.dtype,
                saved.nbytes,
                saved.checksum,
                verb,
            )
            for saved in report.objects
        ]
        + [
            (name, "", "", None, "", f"skipped: {reason}")
            for name, reason in report.skipped.items()
        ],
    )
    seconds = report.wall_ns / 1e9
    counted = f"{len(report.objects)} object{'s' * (len(report.objects) != 1)}"
    click.echo(
        f"{verb} {counted}, {format_bytes(report.nbytes)}, in {seconds:.2f} s",
        err=True,
    )
