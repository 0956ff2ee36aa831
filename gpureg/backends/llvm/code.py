"""Machine code, written in Python: values with operators, loops that carry values, and vectors of any length.

LLVM translates it for the machine at hand, as it stands: nothing is reassociated, and a product and a sum are fused
only where the product is exact. Memory is told by its address, an integer, and may lie anywhere.
"""

import ctypes
import platform
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from llvmlite import binding as llvm
from llvmlite import ir

INT, FLOAT, DOUBLE = ir.IntType(64), ir.FloatType(), ir.DoubleType()
"""The types of numbers; comparisons give a bit, `ir.IntType(1)`."""

_CTYPES: dict[Any, Any] = {INT: ctypes.c_int64, DOUBLE: ctypes.c_double}


def ints(bits: int) -> Any:
    """Return the type of integers of so many bits."""
    return ir.IntType(bits)


def vector(element: Any, count: int) -> Any:
    """Return the type of vectors."""
    return ir.VectorType(element, count)


class Value:
    """A number or a vector of them that machine code computes; numbers of Python's beside it are of its type.

    Integers are not negative where they are divided. `==` and `!=` of floats are Python's: NaN is not equal to itself.
    """

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, builder: Any, value: Any) -> None:
        self._builder, self._value = builder, value

    @property
    def type(self) -> Any:
        """Return its type."""
        return self._value.type

    def _element(self) -> Any:
        return self.type.element if isinstance(self.type, ir.VectorType) else self.type

    def _is_float(self) -> bool:
        return self._element() in {FLOAT, DOUBLE}

    def _new(self, value: Any) -> "Value":
        return Value(self._builder, value)

    def _operand(self, other: "Value | float") -> Any:
        if isinstance(other, Value):
            return other._value
        if isinstance(self.type, ir.VectorType):
            return ir.Constant(self.type, [other] * self.type.count)
        return ir.Constant(self.type, other)

    def _apply(self, other: "Value | float", floats: str, integers: str) -> "Value":
        emit = getattr(self._builder, floats if self._is_float() else integers)
        return self._new(emit(self._value, self._operand(other)))

    def __add__(self, other: "Value | float") -> "Value":
        return self._apply(other, "fadd", "add")

    def __sub__(self, other: "Value | float") -> "Value":
        return self._apply(other, "fsub", "sub")

    def __mul__(self, other: "Value | float") -> "Value":
        return self._apply(other, "fmul", "mul")

    def __truediv__(self, other: "Value | float") -> "Value":
        return self._new(self._builder.fdiv(self._value, self._operand(other)))

    def __floordiv__(self, other: "Value | int") -> "Value":
        return self._new(self._builder.udiv(self._value, self._operand(other)))

    def __mod__(self, other: "Value | int") -> "Value":
        return self._new(self._builder.urem(self._value, self._operand(other)))

    def __and__(self, other: "Value | int") -> "Value":
        return self._new(self._builder.and_(self._value, self._operand(other)))

    def __or__(self, other: "Value | int") -> "Value":
        return self._new(self._builder.or_(self._value, self._operand(other)))

    def __lshift__(self, other: int) -> "Value":
        return self._new(self._builder.shl(self._value, self._operand(other)))

    def __rshift__(self, other: int) -> "Value":
        return self._new(self._builder.lshr(self._value, self._operand(other)))

    def _compare(self, other: "Value | float", how: str) -> "Value":
        operand = self._operand(other)
        if not self._is_float():
            return self._new(self._builder.icmp_signed(how, self._value, operand))
        compare = self._builder.fcmp_unordered if how == "!=" else self._builder.fcmp_ordered
        return self._new(compare(how, self._value, operand))

    def __eq__(self, other: "Value | float") -> "Value":  # type: ignore[override]
        return self._compare(other, "==")

    def __ne__(self, other: "Value | float") -> "Value":  # type: ignore[override]
        return self._compare(other, "!=")

    def __lt__(self, other: "Value | float") -> "Value":
        return self._compare(other, "<")

    def __gt__(self, other: "Value | float") -> "Value":
        return self._compare(other, ">")

    def is_nan(self) -> "Value":
        """Return whether this is NaN."""
        return self._new(self._builder.fcmp_unordered("uno", self._value, self._value))

    def __abs__(self) -> "Value":
        return self._call("llvm.fabs")

    def with_sign_of(self, other: "Value") -> "Value":
        """Return the magnitude of this with the sign of another."""
        return self._call("llvm.copysign", other)

    def multiplied_into(self, factor: "Value", term: "Value") -> "Value":
        """Return `self * factor + term` by one instruction if there is one: the bits are the same if they are exact.

        The product is rounded or not, as the processor has it; so it must be exact.
        """
        return self._call("llvm.fmuladd", factor, term)

    def _call(self, name: str, *others: "Value") -> "Value":
        """Call LLVM's function of that name on values of this type."""
        element, operands = self._element(), [self._value, *(other._value for other in others)]
        count = f"v{self.type.count}" if isinstance(self.type, ir.VectorType) else ""
        kind = ir.FunctionType(self.type, [self.type] * len(operands))
        name = f"{name}.{count}f{64 if element == DOUBLE else 32}"
        return self._new(self._builder.call(_declared(self._builder.module, name, kind), operands))

    def converted(self, element: Any) -> "Value":
        """Return this in another type of element: floats rounded to nearest, integers cut or filled up with zeros."""
        old = self._element()
        to = vector(element, self.type.count) if isinstance(self.type, ir.VectorType) else element
        if element == old:
            return self
        sizes = {ir.HalfType(): 16, FLOAT: 32, DOUBLE: 64}
        if element in sizes:
            emit = self._builder.fpext if sizes[element] > sizes[old] else self._builder.fptrunc
        else:
            emit = self._builder.zext if element.width > old.width else self._builder.trunc
        return self._new(emit(self._value, to))

    def bits_as(self, element: Any) -> "Value":
        """Return the bits of this as another type of the same size."""
        to = vector(element, self.type.count) if isinstance(self.type, ir.VectorType) else element
        return self._new(self._builder.bitcast(self._value, to))

    def repeated(self, count: int) -> "Value":
        """Return a vector of this number."""
        to = vector(self.type, count)
        undefined = ir.Constant(to, ir.Undefined)
        first = self._builder.insert_element(undefined, self._value, ints(32)(0))
        return self._new(self._builder.shuffle_vector(first, undefined, vector(ints(32), count)([0] * count)))

    def picked(self, other: "Value", places: Sequence[int]) -> "Value":
        """Return the vector of elements at some places, those of the other vector counted after one's own."""
        mask = vector(ints(32), len(places))(list(places))
        return self._new(self._builder.shuffle_vector(self._value, other._value, mask))

    def at(self, place: int) -> "Value":
        """Return an element of a vector."""
        return self._new(self._builder.extract_element(self._value, ints(32)(place)))


def _declared(module: Any, name: str, kind: Any) -> Any:
    return module.globals.get(name) or ir.Function(module, kind, name)


class Compiled(NamedTuple):
    """A function of machine code: how Python calls it, without its lock, and its address."""

    call: Callable[..., None]
    address: int


class Function:
    """A function while it is written: its arguments, and what changes memory or the flow."""

    def __init__(self, *kinds: Any) -> None:
        self._kinds = kinds
        module = ir.Module()
        self._function = ir.Function(module, ir.FunctionType(ir.VoidType(), kinds), "function")
        self._builder = ir.IRBuilder(self._function.append_basic_block())
        self.arguments = [Value(self._builder, argument) for argument in self._function.args]

    def constant(self, kind: Any, number: float) -> Value:
        """Return a number, or a vector of it."""
        return Value(self._builder, kind([number] * kind.count if isinstance(kind, ir.VectorType) else number))

    def load(self, address: Value, kind: Any) -> Value:
        """Return what lies at an address."""
        return Value(self._builder, self._builder.load(self._pointer(address, kind), align=1))

    def store(self, address: Value, value: Value) -> None:
        """Write to an address."""
        self._builder.store(value._value, self._pointer(address, value.type), align=1)

    def _pointer(self, address: Value, kind: Any) -> Any:
        return self._builder.inttoptr(address._value, kind.as_pointer())

    def stack(self, size: int, align: int = 64) -> Value:
        """Return the address of bytes that last as long as the call; ask for it at the beginning."""
        memory = self._builder.alloca(ir.ArrayType(ints(8), size))
        memory.align = align
        return Value(self._builder, self._builder.ptrtoint(memory, INT))

    def prefetch(self, address: Value) -> None:
        """Have a line of memory brought into the second level of the cache; nothing happens if there is none."""
        byte, number = ints(8).as_pointer(), ints(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
        function = _declared(self._builder.module, "llvm.prefetch.p0", kind)
        self._builder.call(function, [self._pointer(address, ints(8)), number(0), number(2), number(1)])

    def call(self, address: Value, *arguments: Value) -> None:
        """Call a function by its address."""
        values = [argument._value for argument in arguments]
        kind = ir.FunctionType(ir.VoidType(), [value.type for value in values])
        self._builder.call(self._pointer(address, kind), values)

    def select(self, condition: Value, first: Value, second: Value) -> Value:
        """Return the first value where a condition holds, and else the second."""
        return Value(self._builder, self._builder.select(condition._value, first._value, second._value))

    def loop(self, goes_on: Callable[..., Value], body: Callable[..., Any], *start: Value) -> list[Value]:
        """Let a body make new values of those carried from round to round, while a condition on them holds."""
        builder = self._builder
        inside, after = (self._function.append_basic_block() for _ in range(2))
        builder.cbranch(goes_on(*start)._value, inside, after)
        before = builder.block
        builder.position_at_end(inside)
        carried = [builder.phi(value.type) for value in start]
        for phi, value in zip(carried, start, strict=True):
            phi.add_incoming(value._value, before)
        new = _listed(body(*(Value(builder, phi) for phi in carried)))
        builder.cbranch(goes_on(*new)._value, inside, after)
        inside_end = builder.block
        builder.position_at_end(after)
        results = []
        for phi, first, last in zip(carried, start, new, strict=True):
            phi.add_incoming(last._value, inside_end)
            results.append(self._meeting((first, before), (last, inside_end)))
        return results

    def repeat(self, count: Value, body: Callable[..., Any], *start: Value) -> list[Value]:
        """Let a body make new values of its number and those carried, so many times."""

        def step(i: Value, *carried: Value) -> list[Value]:
            return [i + 1, *_listed(body(i, *carried))]

        _, *results = self.loop(lambda i, *_: i < count, step, self.constant(INT, 0), *start)
        return results

    def when(self, condition: Value, then: Callable[[], Any], *otherwise: Value) -> list[Value]:
        """Return what a function makes where a condition holds, and else what is given."""
        builder = self._builder
        inside, after = (self._function.append_basic_block() for _ in range(2))
        builder.cbranch(condition._value, inside, after)
        before = builder.block
        builder.position_at_end(inside)
        made = _listed(then())
        inside_end = builder.block
        builder.branch(after)
        builder.position_at_end(after)
        return [self._meeting((old, before), (new, inside_end)) for old, new in zip(otherwise, made, strict=True)]

    def _meeting(self, *incoming: tuple[Value, Any]) -> Value:
        phi = self._builder.phi(incoming[0][0].type)
        for value, block in incoming:
            phi.add_incoming(value._value, block)
        return Value(self._builder, phi)

    def compiled(self) -> "Compiled":
        """End the function, and have it translated; it stays in memory for good."""
        self._builder.ret_void()
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        machine = llvm.Target.from_default_triple().create_target_machine(
            cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), opt=3
        )
        engine = llvm.create_mcjit_compiler(llvm.parse_assembly(str(self._function.module)), machine)
        engine.finalize_object()
        address = engine.get_function_address(self._function.name)
        engine.detach()  # else the code would go with it, and be called while the interpreter ends
        return Compiled(ctypes.CFUNCTYPE(None, *(_CTYPES[kind] for kind in self._kinds))(address), address)


def _listed(values: Any) -> list[Value]:
    return [] if values is None else [values] if isinstance(values, Value) else list(values)


def unusable() -> str | None:
    """Return why machine code cannot be made and called here; None if it can."""
    try:
        llvm.check_jit_execution()
    except OSError as error:
        return f"machine code cannot be made here: {error.strerror}"
    x86 = platform.machine().lower() in {"x86_64", "amd64"}
    if x86 and not llvm.get_host_cpu_features().get("f16c"):
        return "the processor has no instructions for float16 (F16C)"
    return None
