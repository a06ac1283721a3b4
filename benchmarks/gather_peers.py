"""How NumPy and PyTorch gather: ``x[idx]`` in the forms that their users write."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from peers import Array, GatherPart, Peer, tensor, torch_of_one_thread


class _Gather(Peer):
    def prepare(self, part: GatherPart) -> None:
        self._x, self._idx = part.x, part.idx


class NumpyFancy(_Gather):
    """``x[idx]``."""

    name, result = "numpy x[idx]", "fresh"

    def run(self, out: Array) -> Array:
        found: Array = self._x[self._idx]
        return found


class NumpyTake(_Gather):
    """``np.take(x, idx)``."""

    name, result = "numpy take", "fresh"

    def run(self, out: Array) -> Array:
        return np.take(self._x, self._idx)


class NumpyTakeClip(_Gather):
    """``np.take(x, idx, out=out, mode="clip")``: the only form that copies nothing twice."""

    name, result = "numpy take(clip, out)", "existing"

    def run(self, out: Array) -> Array:
        return np.take(self._x, self._idx, out=out, mode="clip")


class _TorchGather(Peer):
    modules = ("torch",)

    def prepare(self, part: GatherPart) -> None:
        self._torch = torch_of_one_thread()
        self._x, self._idx = tensor(self._torch, part.x), tensor(self._torch, part.idx)


class TorchIndexSelect(_TorchGather):
    """``torch.index_select(x, 0, idx, out=out)``."""

    name, result = "torch index_select(out)", "existing"

    def run(self, out: Array) -> Array:
        self._torch.index_select(self._x, 0, self._idx, out=tensor(self._torch, out))
        return out


class TorchFancy(_TorchGather):
    """``x[idx]`` of tensors."""

    name, result = "torch x[idx]", "fresh"

    def run(self, out: Array) -> Array:
        found: Array = self._x[self._idx].numpy()
        return found


GATHER_PEERS: tuple[Callable[[], Peer], ...] = (
    NumpyFancy,
    NumpyTake,
    NumpyTakeClip,
    TorchFancy,
    TorchIndexSelect,
)
