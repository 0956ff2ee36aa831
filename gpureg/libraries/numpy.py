"""NumPy arrays and floating scalars: a native array is a plain `numpy.ndarray`."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpureg import backends, memory
from gpureg.backends import Backend
from gpureg.libraries import DTYPES, Unrecorded, check_dtype, numpy_dtype


class NumpyLibrary(Unrecorded):
    """The library of NumPy arrays; see `gpureg.libraries.Library` for each method."""

    name = "numpy"

    def owns(self, kind: type) -> bool:  # noqa: D102
        return issubclass(kind, np.ndarray | np.generic)

    def backend(self, native: NDArray[Any]) -> Backend:  # noqa: ARG002, D102
        return backends.cpu()

    def native(self, array: Any, name: str, dtypes: Sequence[str] = DTYPES) -> NDArray[Any]:  # noqa: D102
        if isinstance(array, np.ma.MaskedArray):
            raise TypeError(f"{name} is a masked array, and its mask would be ignored; give {name}.filled(0)")
        native = np.asarray(array)
        check_dtype(native.dtype, name, dtypes)
        return native

    def writable(self, array: Any) -> bool:  # noqa: D102
        return isinstance(array, np.ndarray) and array.flags.writeable

    def device(self, native: NDArray[Any]) -> str:  # noqa: ARG002, D102
        return "cpu"

    def survey(self, arrays: Sequence[Any]) -> tuple[Any, list[int]]:  # noqa: D102
        signature = (
            [array.shape for array in arrays],
            [array.strides for array in arrays],
            [array.dtype for array in arrays],
            [array.flags.writeable for array in arrays],
        )
        return signature, list(map(memory.address_of, arrays))

    def empty_like(self, array: Any) -> NDArray[Any]:  # noqa: D102
        return np.empty_like(np.asarray(array))  # a subclass is not asked: it may have its own idea of empty_like

    def own(self, native: Any) -> Any:  # noqa: D102
        return native

    def dtype(self, dtype: Any) -> np.dtype[Any] | None:  # noqa: D102
        return numpy_dtype(dtype)


library = NumpyLibrary()
