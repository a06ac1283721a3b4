"""``hugepool create`` and ``put``: arrays from a shell, sealed when the command ends."""

from __future__ import annotations

import cmath
import re
from typing import Any

import click
import numpy as np

from hugepool.address import local_address
from hugepool.arguments import dtype_code
from hugepool.commands.arguments import (
    address_option,
    json_option,
    name_argument,
    page_options,
    policy,
)
from hugepool.commands.listing import told
from hugepool.commands.tables import print_json
from hugepool.connection import connect
from hugepool.pool import Pool
from hugepool_common.errors import InvalidSpecError
from hugepool_common.spec import ITEM_SIZES, check_name, check_shape

_SPLIT = re.compile(r"\s*[x,]\s*")
_SPELT = re.compile("inf|nan", re.IGNORECASE)
_WORDS = {"true": True, "false": False, "1": True, "0": False}


def connected(address: str | None) -> Pool:
    """A pool of a running coordinator, for one command."""
    return connect(local_address(address))


@click.command("create")
@click.argument("name")
@click.argument("shape")
@click.option("--dtype", default="f8", show_default=True, help="As NumPy writes it: f8, int32.")
@click.option("--fill", metavar="VALUE", default="0", show_default=True, help="Every element.")
@page_options
@address_option
@json_option
def create_command(
    name: str,
    shape: str,
    dtype: str,
    fill: str,
    address: str | None,
    as_json: bool,
    **pages: Any,
) -> None:
    """Make an array of one value, sealed: SHAPE is 1000000, 1e6, 500x20 or 500,20.

    It is sealed because an array that is not goes with the process that made it, and
    this one ends. An array to be filled by programs is made by one of them, with
    pool.create.

    \b
    Examples:
      hugepool create ones 1e6 --fill 1
      hugepool create mask 500x20 --dtype bool --page-size 2M
    """
    code = dtype_code(dtype)
    extents = check_shape(parse_shape(shape), ITEM_SIZES[code])
    value = parse_value(fill, code)
    check_name(name)
    with connected(address) as pool:
        made = pool.create(name, extents, code, **policy(**pages))
        try:
            if value.tobytes().strip(b"\0"):  # a new array is zeros
                made.array.fill(value)
            made.seal()
        except BaseException:
            pool.discard(made)
            raise
        _tell(made, as_json)


def _tell(made: Any, as_json: bool) -> None:
    if as_json:
        print_json(told(made.info))
    else:
        click.echo(made)


def parse_shape(text: str) -> tuple[int, ...]:
    """Read a shape such as ``1000000``, ``1e6``, ``500x20`` or ``()``.

    Raises
    ------
    InvalidSpecError
        It is none.
    """
    inner = text.strip().removeprefix("(").removesuffix(")").rstrip(",")
    if not inner.strip():
        if text.strip() == "()":
            return ()
        raise _no_shape(text)
    return tuple(_extent(word, text) for word in _SPLIT.split(inner.strip()))


def _extent(word: str, text: str) -> int:
    try:
        return int(word)
    except ValueError:
        pass
    try:
        number = float(word)
    except ValueError:
        raise _no_shape(text) from None
    if not number.is_integer():  # nan and the infinities are none either
        raise _no_shape(text)
    return int(number)


def _no_shape(text: str) -> InvalidSpecError:
    return InvalidSpecError(
        f"{text[:80]!r} is not a shape", remedy="write it as 1000000, 1e6 or 500x20"
    )


def parse_value(text: str, code: str) -> np.ndarray[Any, Any]:
    """Read one element of a dtype, as an array without axes.

    Raises
    ------
    InvalidSpecError
        The dtype has no such value.
    """
    dtype = np.dtype(code)
    try:
        if dtype.kind == "b":
            return np.array(_WORDS[text.lower()])
        if dtype.kind in "iu":
            return np.array(int(text, 0), dtype)
        number = complex(text) if dtype.kind == "c" else float(text)
        # Python reads 1e400 as infinity, which nobody wrote.
        if not cmath.isfinite(number) and not _SPELT.search(text):
            raise OverflowError
        with np.errstate(over="raise"):
            return np.array(number).astype(dtype)
    except (ValueError, KeyError, OverflowError, FloatingPointError):
        raise InvalidSpecError(f"no element of dtype {dtype} is {text[:80]!r}") from None


@click.command("put")
@name_argument
@click.argument("file", type=click.Path())
@click.option("--member", help="Which array, tensor or column, where FILE holds several.")
@page_options
@address_option
@json_option
def put_command(
    name: str, file: str, member: str | None, address: str | None, as_json: bool, **pages: Any
) -> None:
    """Read FILE into a sealed array (.npy, .npz, .safetensors, .arrow, .feather) or
    matrix (.npz as SciPy's, .mtx, .mtx.gz).

    The data goes straight into the array, without a copy beside it; but Matrix Market
    files are parsed first. To let a name that is taken stand for something new: hugepool
    publish.

    \b
    Examples:
      hugepool put A graph.mtx.gz
      hugepool put embedding model.safetensors --member wte.weight
    """
    with connected(address) as pool:
        _tell(pool.load(name, file, member=member, **policy(**pages)), as_json)
