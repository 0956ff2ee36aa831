"""PyTorch's tensors on a GPU: CuPy arrays over their memory, computed on PyTorch's current stream.

All memory that a pass takes is PyTorch's too. So one allocator gives it out, in the order of that stream, into a graph
that PyTorch captures as well; and a result is a tensor like any other.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import cupy
import torch
from numpy.typing import NDArray

from gpureg.backends import Leaf, Scalar, Values
from gpureg.backends.cuda import CudaBackend, CudaPlan
from gpureg.backends.cuda_steps import CudaSteps
from gpureg.libraries import cuda_backend


class Memory(cupy.cuda.UnownedMemory):  # type: ignore[misc] # CuPy has no hints
    """The memory of a tensor, from its first element on; it stays as long as this does."""

    def __init__(self, tensor: Any) -> None:
        size = tensor.untyped_storage().nbytes() - tensor.storage_offset() * tensor.itemsize
        super().__init__(tensor.data_ptr(), max(size, 0), tensor, tensor.device.index)
        self.tensor = tensor


def view(tensor: Any, dtype: Any) -> Any:
    """Return a tensor as a CuPy array over the same memory."""
    strides = tuple(step * tensor.itemsize for step in tensor.stride())
    return cupy.ndarray(tuple(tensor.shape), dtype, cupy.cuda.MemoryPointer(Memory(tensor.detach()), 0), strides)


def tensor(native: Any, dtype: Any) -> Any:
    """Return a CuPy array as a tensor: a view of the one whose memory it is in."""
    memory, item = native.data.mem, native.itemsize
    owner = memory.tensor
    start = owner.storage_offset() * owner.itemsize + native.data.ptr - memory.ptr
    strides = [step // item for step in native.strides]
    return owner.new_empty(0, dtype=dtype).set_(owner.untyped_storage(), start // item, native.shape, strides)


def _allocate(nbytes: int) -> Any:
    room = torch.empty(nbytes, dtype=torch.uint8, device=torch.device("cuda", cupy.cuda.Device().id))
    return cupy.cuda.MemoryPointer(Memory(room), 0)


@contextmanager
def working(device: int) -> Iterator[None]:
    """Let CuPy work on a device as PyTorch does at the moment: on its stream, with its memory."""
    stream = cupy.cuda.Stream.from_external(torch.cuda.current_stream(device))
    with cupy.cuda.Device(device), stream, cupy.cuda.using_allocator(_allocate):
        yield


class TorchPlan(CudaPlan):
    """A plan whose passes are PyTorch's work."""

    def _run(self, *arguments: Any, **options: Any) -> Values:
        with working(self.leaves[0].weights.device.id):
            return super()._run(*arguments, **options)


class TorchSteps(CudaSteps):
    """Proximal steps that are PyTorch's work."""

    def take(self, lengths: Sequence[Scalar], *, strength: Scalar = 1.0, skips: Scalar = 0.0) -> None:  # noqa: D102
        with working(self._views[0].device.id):
            super().take(lengths, strength=strength, skips=skips)


class TorchBackend(CudaBackend):
    """The CUDA backend, at work for PyTorch."""

    trusts_identity = False  # `grad.data = other` puts other memory under a gradient

    def plan(self, leaves: Sequence[Leaf]) -> CudaPlan:  # noqa: D102
        return TorchPlan(leaves)

    def proximal_plan(self, leaves: Sequence[Leaf]) -> CudaSteps:  # noqa: D102
        return TorchSteps(leaves)

    def to_numpy(self, array: Any) -> NDArray[Any]:  # noqa: D102
        with working(array.device.id):
            return super().to_numpy(array)

    def _working(self, device: int) -> AbstractContextManager[None]:
        return working(device)


_backend = TorchBackend()


def backend() -> TorchBackend:
    """Return the backend of tensors on a GPU; a RuntimeError says why they cannot be computed on."""
    cuda_backend("PyTorch's CUDA tensors")
    return _backend
