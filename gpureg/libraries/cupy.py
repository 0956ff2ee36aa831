"""CuPy arrays: a native array is the array itself."""

from collections.abc import Sequence
from typing import Any

import cupy
import numpy as np

from gpureg.backends import Backend
from gpureg.libraries import DTYPES, Unrecorded, check_dtype, cuda_backend, numpy_dtype


class CupyLibrary(Unrecorded):
    """The library of CuPy arrays; see `gpureg.libraries.Library` for each method."""

    name = "cupy"

    def owns(self, kind: type) -> bool:  # noqa: D102
        return issubclass(kind, cupy.ndarray)

    def backend(self, native: Any) -> Backend:  # noqa: ARG002, D102
        return cuda_backend("CuPy arrays")

    def native(self, array: Any, name: str, dtypes: Sequence[str] = DTYPES) -> Any:  # noqa: D102
        check_dtype(array.dtype, name, dtypes)
        return array

    def writable(self, array: Any) -> bool:  # noqa: ARG002, D102
        return True

    def device(self, native: Any) -> str:  # noqa: D102
        return f"cuda:{native.device.id}"

    def survey(self, arrays: Sequence[Any]) -> tuple[Any, list[int]]:  # noqa: D102
        memory = [array.data for array in arrays]
        contiguous = [array._c_contiguous for array in arrays]  # what `flags` has too, but makes an object for
        signature = (
            [array.shape for array in arrays],
            None if all(contiguous) else [array.strides for array in arrays],
            [array.dtype for array in arrays],
            [pointer.device_id for pointer in memory],
        )
        return signature, [pointer.ptr for pointer in memory]

    def empty_like(self, array: Any) -> Any:  # noqa: D102
        with array.device:
            return cupy.empty_like(array)

    def own(self, native: Any) -> Any:  # noqa: D102
        return native

    def dtype(self, dtype: Any) -> np.dtype[Any] | None:  # noqa: D102
        return numpy_dtype(dtype)


library = CupyLibrary()
