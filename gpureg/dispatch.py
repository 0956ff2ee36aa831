"""From a public call to a backend: whose arrays these are, whether they may be used so, and where they are computed.

Everything is checked before anything is written.
"""

import functools
import operator
import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from gpureg import arithmetic, libraries, memory
from gpureg.arithmetic import Coefficients
from gpureg.backends import Backend, Leaf, ProximalPlan, Values
from gpureg.libraries import DTYPES, Library


def value(w: Any, coefficients: Coefficients, dtype: Any = None) -> Any:
    """Return the penalty of w."""
    library = libraries.of(w, "w")
    if library.records((w,)):
        return library.recorded((w,), (coefficients,), _result_dtype(library, _dtype(library, w, "w"), dtype))
    native = library.native(w, "w")
    result = _result_dtype(library, native.dtype, dtype)
    return library.own(library.backend(native).plan([Leaf(native, coefficients)]).value(result).total)


def activity(x: Any, coefficients: Coefficients) -> Any:
    """Return the penalty of x over the length of its first axis, the batch; 0 for an empty batch."""
    library = libraries.of(x, "x")
    if library.records((x,)):
        batch(x.shape)
        result = _result_dtype(library, _dtype(library, x, "x"))
        return library.recorded((x,), (coefficients,), result, over_batch=True)
    native = library.native(x, "x")
    divisor = max(batch(native.shape), 1)
    result = _result_dtype(library, native.dtype)
    plan = library.backend(native).plan([Leaf(native, coefficients)])
    return library.own(plan.value(result, divisor=divisor).total)


def batch(shape: Sequence[int]) -> int:
    """Return the batch that an activity penalty is divided by, the length of x's first axis."""
    if len(shape) == 0:
        raise ValueError("x is 0-d; an activity penalty is divided by x.shape[0], so x needs a first axis, the batch")
    return shape[0]


def gradient(w: Any, coefficients: Coefficients, out: Any = None) -> Any:
    """Write the gradient at w to `out`, a new array if there is none, and return it."""
    library, backend, native = weights(w)
    other = target(library, backend, native, w, out)
    plan = backend.plan([Leaf(native, coefficients)])
    plan.gradient(plan.bind([other]))
    return returned(library, other, out)


def value_and_gradient(w: Any, coefficients: Coefficients, out: Any = None) -> tuple[Any, Any]:
    """Return the penalty of w, and the gradient as `gradient` does."""
    library, backend, native = weights(w)
    other = target(library, backend, native, w, out)
    plan = backend.plan([Leaf(native, coefficients)])
    result = plan.value_and_gradient(_result_dtype(library, native.dtype), plan.bind([other]))
    return library.own(result.total), returned(library, other, out)


def accumulate(w: Any, coefficients: Coefficients, grad: Any) -> Any:
    """Add the gradient at w to `grad` and return the penalty of w."""
    library, backend, native = weights(w)
    other = apart(library, backend, native, grad, "grad")
    plan = backend.plan([Leaf(native, coefficients)])
    result = plan.accumulate(_result_dtype(library, native.dtype), plan.bind([other]))
    library.written((grad,))
    return library.own(result.total)


def proximal(w: Any, coefficients: Coefficients, step: float) -> Any:
    """Take the proximal step on w, in place, and return w."""
    library, backend, native = weights(w)
    _check_writable(library, w, native, "w")
    backend.proximal_plan([Leaf(native, coefficients)]).take([step])
    library.written((w,))
    return w


def weights(w: Any, name: str = "w") -> tuple[Library, Backend, Any]:
    """Return the library of w, the backend that computes where it lives, and w as that takes it."""
    library = libraries.of(w, name)
    native = library.native(w, name)
    return library, library.backend(native), native


def target(library: Library, backend: Backend, native: Any, w: Any, out: Any) -> Any:
    """Return where the gradient of w is written to, as its backend takes it: `out`, or new memory if there is none."""
    return library.empty_like(w) if out is None else apart(library, backend, native, out, "out")


def returned(library: Library, written: Any, out: Any) -> Any:
    """Return what was written to: the caller's array, or the new one as the library's own."""
    if out is None:
        return library.own(written)
    library.written((out,))
    return out


def apart(library: Library, backend: Backend, w: Any, gradient: Any, name: str) -> Any:
    """Return a gradient as its backend takes it, once it is sure that it may be written as w's."""
    native = _gradient(library, w, gradient, name, "w")
    if backend.overlap(native, w):
        raise ValueError(
            f"{name} shares memory with w, which would be overwritten while being read; give another array"
        )
    return native


def _gradient(library: Library, w: Any, gradient: Any, name: str, owner: str) -> Any:
    """Return a gradient as its backend takes it, once it is sure that it fits w; memory is not looked at."""
    other = libraries.of(gradient, name)
    if other is not library:
        raise TypeError(f"{name} is of {other.name}, but {owner} is of {library.name}; both must be of one library")
    native = library.native(gradient, name, _gradient_dtypes(w.dtype))
    if native.shape != w.shape:
        raise ValueError(f"{name} has shape {native.shape}, but {owner} has {w.shape}; the shapes must be equal")
    if (device := library.device(native)) != (home := library.device(w)):
        raise ValueError(f"{name} is on {device}, but {owner} is on {home}; both must be on one device")
    _check_writable(library, gradient, native, name)
    return native


@functools.lru_cache(maxsize=64)  # a dtype's name costs as much as a small call
def _gradient_dtypes(weights: np.dtype[Any]) -> tuple[str, ...]:
    """Return the dtypes that a gradient may have: that of its weights, and float32."""
    return tuple(dict.fromkeys([weights.name, "float32"]))


def _check_writable(library: Library, array: Any, native: Any, name: str) -> None:
    if not library.writable(array):
        raise ValueError(f"{name} is read-only; expected an array that can be written to")
    if _overlaps_itself(native):
        raise ValueError(f"{name} has elements that share memory with each other, or could; each must have its own")


def _overlaps_itself(array: Any) -> bool:
    """Return whether elements share memory, or lie so intertwined that only a search could tell.

    Every view made by slicing and transposing a dense array passes: taken by rising stride, each step is longer than
    all that the steps before it span.
    """
    if array.flags.c_contiguous:
        return False
    span = array.itemsize
    for stride, length in sorted(zip(map(abs, array.strides), array.shape, strict=True)):
        if length > 1 and array.size:
            if stride < span:
                return True
            span += stride * (length - 1)
    return False


def _dtype(library: Library, array: Any, name: str) -> np.dtype[Any]:
    """Return the dtype of weights that may have no elements yet."""
    dtype = library.dtype(array.dtype)
    if dtype is None or dtype.name not in DTYPES:
        raise TypeError(f"{name} has dtype {dtype or array.dtype}; expected {' or '.join(DTYPES)}")
    return dtype


def _result_dtype(library: Library, own: np.dtype[Any], dtype: Any = None) -> np.dtype[Any]:
    """Return the dtype of a penalty: what the caller asked for, else float64 for float64 weights and float32."""
    if dtype is None:
        return arithmetic.result_dtype([own])
    result = library.dtype(dtype)
    if result is None or result.name not in DTYPES or not result.isnative:
        raise TypeError(f"dtype is {dtype!r}; expected one of {', '.join(DTYPES)}")
    return result


class Tensors:
    """Weights of one library and device with their coefficients, checked once and passed over together.

    Errors call them `weights[name]`, and their gradients `grads[name]`. Where there are none, results are those of the
    library of `like`.
    """

    def __init__(
        self, named: Sequence[tuple[str, Any]], coefficients: Sequence[Coefficients], like: Any = None
    ) -> None:
        self.names = [name for name, _ in named]
        self.arrays = [array for _, array in named]
        self._coefficients = coefficients
        self.library = _one_library(named, np.empty(0) if like is None else like)
        dtypes = [_dtype(self.library, array, _label(name)) for name, array in named]
        self.itemsizes = [dtype.itemsize for dtype in dtypes]
        self.dtype = arithmetic.result_dtype(dtypes)
        self._traced = next((name for name, array in named if self.library.traced(array)), None)
        self._natives = [] if self._traced else _on_one_device(self.library, named)
        self._backend = self.library.backend(self._natives[0] if self._natives else None)
        self._leaves = [Leaf(*each) for each in zip(self._natives, coefficients, strict=False)]
        self._plan = self._backend.plan(self._leaves)
        self._spans = np.array(list(map(self._backend.address, self._natives)), np.int64) + _extents(self._natives)
        self._placed = None if self._traced else self.library.placed(self.arrays)
        self._last: _Accepted | None = None
        self._steps: ProximalPlan | None = None

    def total(self, strength: Any) -> Any:
        """Return the sum of the penalties, 0-d, as the library's own."""
        traced = not isinstance(strength, float) and self.library.traced(strength)
        if traced or self.library.records(self.arrays):
            return self.library.recorded(
                self.arrays, self._coefficients, self.dtype, strength=strength, plan=self._plan
            )
        return self.library.own(self.value(strength=strength).total)

    def value(self, *, strength: Any = 1.0, sums: bool = False) -> Values:
        """Return the penalties, each."""
        self._check_elements()
        return self._plan.value(self.dtype, strength=strength, sums=sums)

    def gradient(self, gradients: Sequence[Any] | None, *, strength: Any, upstream: Any) -> list[Any]:
        """Write the gradients, which errors call `out`, to new arrays if none are given, and return them."""
        bound, returned = self._bind_or_make(gradients, strength, upstream)
        self._plan.gradient(bound, strength=strength, upstream=upstream)
        return returned()

    def value_and_gradient(
        self, gradients: Sequence[Any] | None, *, strength: Any, upstream: Any
    ) -> tuple[Any, list[Any]]:
        """Return the sum of the penalties, 0-d, and what `gradient` does."""
        bound, returned = self._bind_or_make(gradients, strength, upstream)
        values = self._plan.value_and_gradient(self.dtype, bound, strength=strength, upstream=upstream)
        return self.library.own(values.total), returned()

    def unknown(self, gradients: Sequence[Any]) -> list[type]:
        """Return the types of gradients; none if these are the very arrays that were found good before."""
        last = self._last
        known = last is not None and last.bound is not None and last.is_of(gradients)
        return [] if known else list(map(type, gradients))

    def any_missing(self, types: list[type]) -> bool:
        """Return whether there is None among the types of gradients."""
        last = self._last
        return (last is None or types != last.types) and type(None) in types

    def accumulate(
        self, gradients: Sequence[Any], *, strength: Any, upstream: Any, types: list[type] | None = None
    ) -> Any:
        """Add to gradients, of which this has just been `unknown`, and return the sum of the penalties, 0-d."""
        bound = self._bind(gradients, "grads", strength, upstream, types=types)
        values = self._plan.accumulate(self.dtype, bound, strength=strength, upstream=upstream)
        self.library.written(gradients)
        return self.library.own(values.total)

    def proximal(self, lengths: Sequence[Any], *, strength: Any, skips: Any) -> None:
        """Take the proximal step on each, in place, each of a length of its own; none if `skips` is not 0."""
        self._check_elements()
        if self._steps is None or not all(map(self.library.writable, self.arrays)):
            for name, array, native in zip(self.names, self.arrays, self._natives, strict=True):
                _check_writable(self.library, array, native, _label(name))
            self._check_apart()
            self._steps = self._backend.proximal_plan(self._leaves)
        self._steps.take(lengths, strength=strength, skips=skips)
        self.library.written(self.arrays)

    def is_current(self) -> bool:
        """Return whether the arrays still are where they were, and as they were."""
        return self._traced is None and bool(self.library.placed(self.arrays) == self._placed)

    def factor(self, given: Any, name: str) -> Any:
        """Return a factor as backends take it: a number, or a 0-d array where the weights live, read there."""
        if isinstance(given, int | float | np.integer | np.floating) and not isinstance(given, bool):
            try:
                return float(given)
            except OverflowError:
                raise ValueError(f"{name} is too large for a float") from None
        if not self.library.owns(type(given)) or isinstance(given, np.generic):
            raise TypeError(f"{name} must be a number or a 0-d array of the weights' library, not {given!r:.200}")
        if self.library.traced(given):
            return given
        native = self.library.native(given, name, ("float32", "float64"))
        if native.shape != ():
            raise ValueError(f"{name} has shape {native.shape}; expected a number or a 0-d array")
        if self._natives and (device := self.library.device(native)) != (home := self.library.device(self._natives[0])):
            raise ValueError(f"{name} is on {device}, but the weights are on {home}; both must be on one device")
        if self._backend.address(native) % native.itemsize:
            raise ValueError(f"{name} lies at an address that is no multiple of its {native.itemsize} bytes; copy it")
        return native

    def _check_elements(self) -> None:
        if self._traced is not None:
            raise TypeError(
                f"{_label(self._traced)} is traced and has no elements; of a traced model there is only the sum of "
                "all penalties"
            )

    def _bind_or_make(self, gradients: Sequence[Any] | None, *factors: Any) -> tuple[Any, Callable[[], list[Any]]]:
        """Return gradients as the plan's passes take them, and what returns them when they are written."""
        if gradients is not None:
            bound = self._bind(gradients, "out", *factors)
            return bound, lambda: [returned(self.library, None, out) for out in gradients]
        self._check_elements()
        natives = [self.library.empty_like(array) for array in self.arrays]
        return self._plan.bind(natives), lambda: list(map(self.library.own, natives))

    def _bind(self, gradients: Sequence[Any], what: str, *factors: Any, types: list[type] | None = None) -> Any:
        """Return gradients as the plan's passes take them, once it is sure that all may be written.

        The same arrays as before are known by identity; other ones of the same types, shapes, strides and dtypes only
        by where they lie.
        """
        self._check_elements()
        bound = self._bound(gradients, what, self.unknown(gradients) if types is None else types)
        for factor in factors:
            if not isinstance(factor, float):
                self._check_factor(factor, gradients, what)
        return bound

    def _bound(self, gradients: Sequence[Any], what: str, types: list[type]) -> Any:
        last = self._last
        if last is not None and not types:
            return last.bound
        natives, extents, survey = None, None, None
        if last is not None and types == last.types:
            survey = self.library.survey(gradients)
            extents = last.extents if survey[0] == last.signature else None
        if survey is None or extents is None:
            last = None
            labels = [f"{what}[{name!r}]" for name in self.names]
            natives = [
                _gradient(self.library, native, gradient, label, f"weights[{name!r}]")
                for native, gradient, label, name in zip(self._natives, gradients, labels, self.names, strict=True)
            ]
            survey, extents = self.library.survey(gradients), _extents(natives)
        places = survey[1]
        if last is not None and last.bound is not None and places == last.places:
            # The same places twice: perhaps the same arrays, next time to be known by identity. New ones in the place
            # of old ones, which were not, need not be.
            known = self._backend.trusts_identity and not last.arrays
            self._last = last._replace(arrays=_References(gradients) if known else None)
            return last.bound
        addresses = np.array(places, np.int64)
        spans = addresses + extents
        self._check_memory(spans, gradients, what)
        bound = last.bound.moved(addresses) if last is not None and last.bound is not None else None
        if bound is None:
            if natives is None:
                natives = [self.library.native(gradient, "") for gradient in gradients]
            bound = self._plan.bind(natives)
        kept = None if bound.keeps_arrays else bound
        self._last = _Accepted(None, types, survey[0], places, extents, spans, kept)
        return bound

    def _check_memory(self, spans: memory.Ints, gradients: Sequence[Any], what: str) -> None:
        """Refuse gradients that share memory with weights, or with each other."""
        count = len(self.names)
        starts, stops = np.concatenate([self._spans, spans], axis=1)
        for first, second in memory.meetings(starts, stops, np.arange(2 * count) >= count):
            one = self._natives[first] if first < count else self.library.native(gradients[first - count], "")
            other = self.library.native(gradients[second - count], "")
            if self._backend.overlap(one, other):
                kind = "weights" if first < count else what
                raise ValueError(
                    f"{what}[{self.names[second - count]!r}] shares memory with {kind}[{self.names[first % count]!r}], "
                    "and one would be overwritten while the other is being read; give another array"
                )

    def _check_apart(self) -> None:
        """Refuse to write to tensors that share memory with each other."""
        starts, stops = self._spans
        for first, second in memory.meetings(starts, stops, np.ones(len(self.names), bool)):
            if self._backend.overlap(self._natives[first], self._natives[second]):
                raise ValueError(
                    f"{_label(self.names[first])} and {_label(self.names[second])} share memory, which would be "
                    "written to twice"
                )

    def _check_factor(self, factor: Any, gradients: Sequence[Any], what: str) -> None:
        """Refuse a factor that is read from where gradients are written to."""
        if self._last is None:
            return
        start = self._backend.address(factor)
        starts, stops = self._last.spans
        for index in np.flatnonzero((starts < start + factor.itemsize) & (stops > start)).tolist():
            if self._backend.overlap(factor, self.library.native(gradients[index], "")):
                raise ValueError(
                    f"{what}[{self.names[index]!r}] shares memory with the strength or the scale, which would be "
                    "overwritten while being read; give another array"
                )


class _Accepted(NamedTuple):
    """Gradients that were found good: which they were, and how others must be to be as good."""

    arrays: "_References | None"
    types: list[type]
    signature: Any
    places: list[int]
    extents: memory.Ints
    spans: memory.Ints
    bound: Any  # as the plan takes them, if that keeps no array alive

    def is_of(self, gradients: Sequence[Any]) -> bool:
        """Return whether these are known to be the very arrays."""
        return self.arrays is not None and self.arrays.are(gradients)


class _References:
    """Arrays that are not kept alive, for a framework makes new gradients for each step: which they were."""

    def __init__(self, arrays: Sequence[Any]) -> None:
        references: list[weakref.ref[Any]] = []
        # Once one has gone none are known: what is left of it is None, which a caller may give.
        references.extend(weakref.ref(array, lambda _: references.clear()) for array in arrays)
        self._references, self._count = references, len(arrays)

    def are(self, arrays: Sequence[Any]) -> bool:
        """Return whether these are the very arrays."""
        same = all(map(operator.is_, map(operator.call, self._references), arrays))
        return same and len(self._references) == self._count == len(arrays)


def _label(name: str) -> str:
    return f"weights[{name!r}]"


def _one_library(named: Sequence[tuple[str, Any]], like: Any) -> Library:
    """Return the one library of arrays, that of `like` if there are none."""
    if not named:
        return libraries.of(like, "weights")
    first = _label(named[0][0])
    library = libraries.of(named[0][1], first)
    for name, array in named:
        own = libraries.of(array, _label(name))
        if own is not library:
            raise TypeError(
                f"{_label(name)} is of {own.name}, but {first} is of {library.name}; all must be of one library"
            )
    return library


def _on_one_device(library: Library, named: Sequence[tuple[str, Any]]) -> list[Any]:
    """Return arrays as their backend takes them, once it is sure that they are on one device."""
    natives = [library.native(array, _label(name)) for name, array in named]
    for (name, _), native in zip(named, natives, strict=True):
        if (device := library.device(native)) != (home := library.device(natives[0])):
            raise ValueError(
                f"{_label(name)} is on {device}, but {_label(named[0][0])} is on {home}; all must be on one device"
            )
    return natives


def library_of(thing: Any) -> Library | None:
    """Return the library of an array; None for anything else."""
    try:
        return libraries.of(thing, "")
    except TypeError:
        return None


def dtype_name(array: Any) -> str:
    """Return the name of an array's dtype, or of the type of what is no array."""
    library = library_of(array)
    if library is None:
        return str(getattr(array, "dtype", type(array).__name__))
    return str(library.dtype(array.dtype) or array.dtype)


def memory_of(array: Any) -> Any:
    """Return a key that arrays have in common which are the same elements in memory; None for what has none."""
    library = library_of(array)
    if library is None or isinstance(array, np.generic) or library.traced(array):
        return id(array)  # what a scalar says of its memory is of a copy
    try:
        native = library.native(array, "")
    except TypeError:  # nothing that can be penalised
        return id(array)
    if not native.size:
        return None
    low, _ = memory.extent(native.shape, native.strides, native.itemsize)
    address = library.backend(native).address(native) + low
    return library.name, str(native.dtype), address, memory.lattice(native.shape, native.strides)


def _extents(natives: Sequence[Any]) -> memory.Ints:
    """Return where arrays begin and end, in bytes from their first elements, as two rows."""
    extents = [memory.extent(native.shape, native.strides, native.itemsize) for native in natives]
    return np.array(extents, np.int64).reshape(-1, 2).T
