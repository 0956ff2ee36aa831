"""JAX arrays: a native array is a view of their memory by NumPy or CuPy, not to be written to.

A tracer, as `jax.grad` and `jax.jit` hand them to functions, stands for an array that is not there yet: its penalty is
made of JAX's own operations.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gpureg import arithmetic, backends
from gpureg.arithmetic import Coefficients
from gpureg.backends import Backend, Plan
from gpureg.libraries import DTYPES, Unwritable, check_dtype, cuda_backend, cupy, numpy_dtype, traced


class JaxLibrary(Unwritable):
    """The library of JAX arrays; see `gpureg.libraries.Library` for each method."""

    name = "jax"

    def owns(self, kind: type) -> bool:  # noqa: D102
        return issubclass(kind, jax.Array | jax.core.Tracer)

    def backend(self, native: Any) -> Backend:  # noqa: D102
        return (
            backends.load("numpy")
            if native is None or isinstance(native, np.ndarray)
            else cuda_backend("JAX's GPU arrays")
        )

    def native(self, array: Any, name: str, dtypes: Sequence[str] = DTYPES) -> Any:  # noqa: D102
        if isinstance(array, jax.core.Tracer):
            raise TypeError(
                f"{name} is traced by JAX and has no elements; of what jax.jit, grad or vmap trace there is only the "
                "penalty itself"
            )
        dtype = self.dtype(array.dtype)
        if dtype is None:  # as of random keys
            raise TypeError(f"{name} has dtype {array.dtype}; expected {' or '.join(dtypes)}")
        check_dtype(dtype, name, dtypes)
        if len(devices := array.devices()) > 1:
            raise TypeError(
                f"{name} is spread over {len(devices)} devices; of such an array there is only the penalty itself"
            )
        (device,) = devices
        if device.platform == "cpu":
            return np.asarray(array)  # a view of it
        if device.platform != "gpu":
            raise TypeError(f"{name} is on {device}; expected an array on a CPU or a CUDA device")
        return cupy(f"{name} is a JAX array on {device}").from_dlpack(array.block_until_ready())

    def device(self, native: Any) -> str:  # noqa: D102
        return "cpu" if isinstance(native, np.ndarray) else f"cuda:{native.device.id}"

    def empty_like(self, array: Any) -> Any:  # noqa: D102
        native = self.native(array, "w")
        if isinstance(native, np.ndarray):
            return np.empty_like(native)
        with native.device:
            return cupy("").empty_like(native)

    def own(self, native: Any) -> Any:  # noqa: D102
        if isinstance(native, np.ndarray | np.generic):
            return jnp.asarray(native)
        native.device.synchronize()  # JAX has streams of its own
        return jnp.from_dlpack(native)

    def dtype(self, dtype: Any) -> np.dtype[Any] | None:  # noqa: D102
        return numpy_dtype(dtype)

    def placed(self, arrays: Sequence[Any]) -> Any:  # noqa: ARG002, D102
        return None

    def traced(self, array: Any) -> bool:  # noqa: D102
        # One that is spread over devices has its elements nowhere in one piece.
        return isinstance(array, jax.core.Tracer) or len(array.devices()) > 1

    def records(self, arrays: Sequence[Any]) -> bool:  # noqa: D102
        return any(map(self.traced, arrays))

    def recorded(  # noqa: D102
        self,
        arrays: Sequence[Any],
        coefficients: Sequence[Coefficients],
        dtype: np.dtype[Any],
        *,
        strength: Any = 1.0,
        over_batch: bool = False,
        plan: Plan | None = None,  # noqa: ARG002
    ) -> Any:
        operations = traced.Operations(_absolute, jnp.sum, _widened, partial(jnp.asarray, dtype=dtype))
        divisor = max(arrays[0].shape[0], 1) if over_batch else 1
        return traced.penalty(operations, arrays, coefficients, strength, divisor)


def _absolute(array: Any) -> Any:
    """Return |x| with the derivative sign(x); that of `jnp.abs` is 1 at 0."""
    return array * jax.lax.stop_gradient(jnp.sign(array))


def _widened(array: Any) -> Any:
    return array.astype(arithmetic.compute_dtype(array.dtype))


library = JaxLibrary()
