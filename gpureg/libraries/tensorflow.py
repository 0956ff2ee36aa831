"""TensorFlow tensors and variables: a native array is a view of their memory by NumPy or CuPy, not to be written to.

An eager tensor's penalty is a backend's, entered on the tapes that watch with a gradient of its own, also a backend's.
A symbolic one, as functions that TensorFlow compiles get them, has no elements yet: its penalty is made of TensorFlow's
own operations. Values stay on the device; TensorFlow has streams of its own there, so they are waited for.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NoReturn

import ml_dtypes
import numpy as np
import tensorflow as tf

from gpureg import arithmetic, backends
from gpureg.arithmetic import Coefficients
from gpureg.backends import Backend, Leaf, Plan
from gpureg.libraries import DTYPES, Unwritable, check_dtype, cuda_backend, cupy, traced

_ALIGNMENT = 64
"""TensorFlow ends the process when a tensor's memory begins elsewhere."""


class TensorflowLibrary(Unwritable):
    """The library of TensorFlow tensors; see `gpureg.libraries.Library` for each method."""

    name = "tensorflow"

    def owns(self, kind: type) -> bool:  # noqa: D102
        return issubclass(kind, tf.Tensor | tf.Variable)

    def backend(self, native: Any) -> Backend:  # noqa: D102
        return (
            backends.load("numpy")
            if native is None or isinstance(native, np.ndarray)
            else cuda_backend("TensorFlow's GPU tensors")
        )

    def native(self, array: Any, name: str, dtypes: Sequence[str] = DTYPES) -> Any:  # noqa: D102
        if self.traced(array):
            raise TypeError(
                f"{name} is symbolic and has no elements; of what tf.function or a graph traces there is only the "
                "penalty itself"
            )
        dtype = self.dtype(array.dtype)
        if dtype is None:
            raise TypeError(f"{name} has dtype {array.dtype.name}; expected {' or '.join(dtypes)}")
        check_dtype(dtype, name, dtypes)
        tensor = tf.convert_to_tensor(array)
        if dtype.name == "bfloat16":  # which neither NumPy nor DLPack's readers take from a stranger
            tensor = tf.bitcast(tensor, tf.int16)
        if "GPU" in tensor.device:
            tf.test.experimental.sync_devices()
            native = cupy(f"{name} is a TensorFlow tensor on {tensor.device}").from_dlpack(tensor)
        else:
            native = np.asarray(tensor)
        return native.view(ml_dtypes.bfloat16) if dtype.name == "bfloat16" else native

    def device(self, native: Any) -> str:  # noqa: D102
        return "cpu" if isinstance(native, np.ndarray) else f"cuda:{native.device.id}"

    def empty_like(self, array: Any) -> Any:  # noqa: D102
        native = self.native(array, "w")
        if not isinstance(native, np.ndarray):
            with native.device:
                return cupy("").empty_like(native)
        room = np.empty(native.nbytes + _ALIGNMENT, np.uint8)
        start = -room.ctypes.data % _ALIGNMENT
        return room[start : start + native.nbytes].view(native.dtype).reshape(native.shape)

    def own(self, native: Any) -> Any:  # noqa: D102
        if isinstance(native, np.generic):
            return tf.constant(native)
        if not isinstance(native, np.ndarray):
            native.device.synchronize()
        elif not native.ndim or not native.size:
            return tf.convert_to_tensor(native)
        if native.dtype.name != "bfloat16":
            return tf.experimental.dlpack.from_dlpack(native.__dlpack__())
        return tf.bitcast(tf.experimental.dlpack.from_dlpack(native.view(np.int16).__dlpack__()), tf.bfloat16)

    def dtype(self, dtype: Any) -> np.dtype[Any] | None:  # noqa: D102
        try:
            result: np.dtype[Any] = np.dtype(tf.as_dtype(dtype).base_dtype.as_numpy_dtype)
        except (TypeError, KeyError):
            return None
        return result

    def placed(self, arrays: Sequence[Any]) -> Any:  # noqa: D102
        # A variable may be anywhere, and to ask where is as much as to look at all anew.
        return object() if any(isinstance(array, tf.Variable) for array in arrays) else None

    def traced(self, array: Any) -> bool:  # noqa: D102
        return not tf.executing_eagerly() or tf.is_symbolic_tensor(array)

    def records(self, arrays: Sequence[Any]) -> bool:  # noqa: D102
        return bool(arrays)  # TensorFlow does not tell whether a tape watches

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
        tensors = [tf.convert_to_tensor(array) for array in arrays]
        batch: Any = 1
        if over_batch:
            length = tensors[0].shape[0]
            batch = tf.maximum(tf.shape(tensors[0])[0], 1) if length is None else max(length, 1)
        if any(map(self.traced, tensors)):
            operations = traced.Operations(tf.abs, tf.reduce_sum, _widened, partial(tf.cast, dtype=dtype))
            return traced.penalty(operations, tensors, coefficients, strength, batch)
        return self._on_tapes(tensors, coefficients, dtype, strength, batch)

    def _on_tapes(
        self,
        tensors: Sequence[Any],
        coefficients: Sequence[Coefficients],
        dtype: np.dtype[Any],
        strength: Any,
        batch: int,
    ) -> Any:
        """Return the total with its gradient, and that with its own, which is all there is."""

        @tf.custom_gradient  # type: ignore[untyped-decorator] # it has no hints
        def penalty(*tensors: Any) -> tuple[Any, Callable[[Any], Any]]:
            total = self._plan(tensors, coefficients).value(dtype, strength=strength, divisor=batch).total
            return self.own(total), lambda upstream: slopes(tf.cast(upstream, tf.float64) / batch, *tensors)

        @tf.custom_gradient  # type: ignore[untyped-decorator] # likewise
        def slopes(upstream: Any, *tensors: Any) -> tuple[Any, Callable[..., Any]]:
            def scale(tensor: Any) -> Any:
                return tf.cast(strength, tensor.dtype) * tf.cast(upstream, tensor.dtype)

            def second(*directions: Any) -> list[Any]:
                wide = list(map(_widened, tensors))
                along = [_widened(direction) for direction in directions]
                steps = [
                    tf.cast(strength, x.dtype) * tf.reduce_sum(d * _slope(x, own))
                    for x, d, own in zip(wide, along, coefficients, strict=True)
                ]
                curved = [
                    tf.cast(d * (own.twice_l2 * scale(x)), tensor.dtype)
                    for x, d, own, tensor in zip(wide, along, coefficients, tensors, strict=True)
                ]
                return [tf.add_n([tf.cast(step, tf.float64) for step in steps]), *curved]

            if self.traced(upstream):  # as tape.jacobian has it
                wide = list(map(_widened, tensors))
                plain = [scale(x) * _slope(x, own) for x, own in zip(wide, coefficients, strict=True)]
                return [tf.cast(x, tensor.dtype) for x, tensor in zip(plain, tensors, strict=True)], second
            plan, outs = self._plan(tensors, coefficients), [self.empty_like(tensor) for tensor in tensors]
            factor = self.native(upstream, "the upstream gradient")
            plan.gradient(plan.bind(outs), strength=strength, upstream=factor)
            return list(map(self.own, outs)), second

        return penalty(*tensors)

    def differentiable(self, array: Any, value: Any, slope: Callable[[], Any]) -> Any:  # noqa: D102
        @tf.custom_gradient  # type: ignore[untyped-decorator] # it has no hints
        def known(tensor: Any) -> tuple[Any, Callable[[Any], Any]]:
            return value, lambda upstream: slopes(tf.cast(upstream, tensor.dtype), slope(), tensor)

        @tf.custom_gradient  # type: ignore[untyped-decorator] # likewise
        def slopes(upstream: Any, slope: Any, _: Any) -> tuple[Any, Callable[..., Any]]:
            return upstream * slope, _twice

        return known(tf.convert_to_tensor(array))

    def _plan(self, tensors: Sequence[Any], coefficients: Sequence[Coefficients]) -> Plan:
        natives = [self.native(tensor, "w") for tensor in tensors]
        return self.backend(natives[0]).plan([Leaf(*each) for each in zip(natives, coefficients, strict=True)])


def _slope(x: Any, own: Coefficients) -> Any:
    """Return the gradient as TensorFlow's operations; a term whose coefficient is 0 is left out."""
    terms = [own.l1 * tf.sign(x)] * (own.l1 != 0) + [own.twice_l2 * x] * (own.twice_l2 != 0)
    return sum(terms[1:], terms[0]) if terms else tf.zeros_like(x)


def _twice(*_: Any) -> NoReturn:
    raise LookupError("the gradient of this penalty has no gradient of its own")


def _widened(tensor: Any) -> Any:
    return tf.cast(tensor, arithmetic.compute_dtype(np.dtype(tensor.dtype.as_numpy_dtype)))


library = TensorflowLibrary()
