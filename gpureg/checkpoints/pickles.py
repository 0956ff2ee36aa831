"""The pickles of PyTorch checkpoints, read without running anything: a machine for what `torch.save` writes.

A pickle is a program, and whoever runs it does what it says. This one makes numbers, strings, tuples, lists and
dictionaries, and knows what the few functions mean that rebuild tensors; none is called. The opcodes and names are
those of `torch.load(weights_only=True)`; anything else is refused.
"""

import pickle
import struct
from collections.abc import Callable
from typing import Any, NamedTuple

from gpureg.checkpoints.files import CheckpointError, Window, quoted

MAX_OBJECTS = 2**21
"""Objects of one pickle, places in its memo included: some hundred MB at most, and a hundred thousand tensors."""

_MAX_STACK = 2**20
_MAX_TEXT = 2**12
"""Bytes of a string that is kept: names are shorter, and longer strings are no part of a tensor."""


class Dtype(NamedTuple):
    """The dtype of a storage's elements, or of a tensor's, and the bits of one."""

    name: str
    bits: int


class Storage(NamedTuple):
    """The elements that tensors are views of; they lie elsewhere."""

    dtype: Dtype
    key: str
    numel: int

    @property
    def nbytes(self) -> int:
        """Return the bytes of all elements."""
        return self.numel * self.dtype.bits // 8


class Tensor(NamedTuple):
    """A tensor: a view of a storage; or, without one, what has no elements of its own, or has them in other tensors.

    `at` is the byte of the pickle at which it is rebuilt.
    """

    at: int
    dtype: Dtype
    storage: Storage | None
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    parts: tuple["Tensor", ...] = ()


class Name(NamedTuple):
    """A class or function, by its name."""

    name: str


class Opaque(NamedTuple):
    """Something that is no part of a tensor."""

    what: str


_DTYPES = {
    name: Dtype(name, bits)
    for bits, names in {
        8: "bool uint8 int8 qint8 quint8 quint4x2 quint2x4 bits8 bits1x8 bits2x4 bits4x2 "
        "float4_e2m1fn_x2 float8_e4m3fn float8_e5m2 float8_e4m3fnuz float8_e5m2fnuz float8_e8m0fnu",
        16: "int16 uint16 float16 bfloat16 bits16",
        32: "int32 uint32 float32 complex32 qint32",
        64: "int64 uint64 float64 complex64",
        128: "complex128",
    }.items()
    for name in names.split()
}

_NAMED: dict[str, Any] = {f"torch.{name}": dtype for name, dtype in _DTYPES.items()}
_NAMED["torch.storage.UntypedStorage"] = _DTYPES["uint8"]
_NAMED |= {
    f"{module}.{name}Storage": _DTYPES[dtype]
    for module in ("torch", "torch.cuda")
    for name, dtype in {
        "Bool": "bool",
        "Byte": "uint8",
        "Char": "int8",
        "Short": "int16",
        "Int": "int32",
        "Long": "int64",
        "Half": "float16",
        "BFloat16": "bfloat16",
        "Float": "float32",
        "Double": "float64",
        "ComplexFloat": "complex64",
        "ComplexDouble": "complex128",
        "QInt8": "qint8",
        "QUInt8": "quint8",
        "QInt32": "qint32",
        "QUInt4x2": "quint4x2",
        "QUInt2x4": "quint2x4",
    }.items()
}
"""What is a dtype, or the class of a storage of one."""

_LAYOUTS = {
    Name(f"torch.{layout}"): layout for layout in ("sparse_coo", *(f"sparse_{k}" for k in ("csr", "csc", "bsr", "bsc")))
}

_OPAQUE = {
    "_codecs.encode",
    "builtins.bytearray",
    "builtins.complex",
    "builtins.set",
    "collections.Counter",
    "torch.device",
    "torch.per_channel_affine",
    "torch.per_channel_affine_float_qparams",
    "torch.per_channel_symmetric",
    "torch.per_tensor_affine",
    "torch.per_tensor_symmetric",
}
"""What makes something that is no part of a tensor."""


class Machine:
    """Runs one pickle of a window, from byte `at` on; `storages` are those it names, and `end` is where it stopped."""

    def __init__(self, window: Window, at: int = 0) -> None:
        self.window, self._text = window, window.data.data
        self._at = self.end = at
        self._stack: list[Any] = []
        self._below: list[list[Any]] = []
        self._memo: dict[int, Any] = {}
        self._made = 0
        self.storages: dict[str, Storage] = {}

    def load(self) -> Any:
        """Return what the pickle makes."""
        while True:
            self._at = self.end
            opcode = self._number(1)
            if opcode == pickle.STOP[0]:
                return self._pop()
            operation = _OPERATIONS.get(opcode)
            if operation is None:
                raise self.error(f"opcode {quoted(bytes([opcode]))} is none that torch.save writes by default")
            operation(self)

    def error(self, what: str) -> CheckpointError:
        """Return the error of the opcode at hand."""
        return self.window.error(min(self._at, self.window.size), f"the pickle here: {what}")

    def _argument(self, size: int) -> "memoryview[int]":
        start, self.end = self.end, self.end + size
        if self.end > len(self._text):
            raise self.error("is cut off")
        return self._text[start : self.end]

    def _number(self, size: int) -> int:
        return int.from_bytes(self._argument(size), "little")

    def _line(self) -> str:
        """Return the text before the next newline; it is part of a name, and so not long."""
        start = self.end
        line, newline, _ = bytes(self._text[start : start + _MAX_TEXT]).partition(b"\n")
        if not newline:
            raise self.error("a name ends nowhere")
        self.end += len(line) + 1
        return str(line, "utf-8", "backslashreplace")

    def _push(self, value: Any) -> None:
        if len(self._stack) == _MAX_STACK:
            raise self.error(f"more than {_MAX_STACK} values wait to be used")
        self._stack.append(value)

    def _push_new(self, value: Any) -> None:
        """Push what takes memory of its own."""
        self._count()
        self._push(value)

    def _count(self) -> None:
        self._made += 1
        if self._made > MAX_OBJECTS:
            raise self.error(f"more than {MAX_OBJECTS} objects")

    def _pop(self) -> Any:
        if not self._stack:
            raise self.error("a value is used that is not there")
        return self._stack.pop()

    def _pop_to_mark(self) -> list[Any]:
        if not self._below:
            raise self.error("a mark is used that is not there")
        values, self._stack = self._stack, self._below.pop()
        return values

    def _top(self, kind: type) -> Any:
        if not self._stack or type(self._stack[-1]) is not kind:
            raise self.error(f"what is added to is no {kind.__name__}")
        return self._stack[-1]

    # The opcodes: each takes its argument, and what it needs from the stack.

    def _mark(self) -> None:
        self._count()
        self._below.append(self._stack)
        self._stack = []

    def _protocol(self) -> None:
        self._number(1)

    def _constant(self) -> None:
        self._push(_CONSTANTS[self._text[self._at]])

    def _integer(self) -> None:
        self._push(struct.unpack("<i", self._argument(4))[0])

    def _unsigned_1(self) -> None:
        self._push(self._number(1))

    def _unsigned_2(self) -> None:
        self._push(self._number(2))

    def _long(self) -> None:
        self._push_new(int.from_bytes(self._argument(self._number(1)), "little", signed=True))

    def _float(self) -> None:
        self._push_new(struct.unpack(">d", self._argument(8))[0])

    def _unicode(self) -> None:
        text = self._argument(self._number(4))
        try:
            self._push_new(str(text, "utf-8", "surrogatepass") if len(text) <= _MAX_TEXT else Opaque("a long text"))
        except UnicodeDecodeError:
            raise self.error("a text is not UTF-8") from None

    def _byte_string(self) -> None:
        """Take what Python 2 called a string, as an old checkpoint has its names."""
        self._push_new(str(self._argument(self._number(1)), "utf-8", "backslashreplace"))

    def _empty_tuple(self) -> None:
        self._push(())

    def _empty_list(self) -> None:
        self._push_new([])

    def _empty_dict(self) -> None:
        self._push_new({})

    def _empty_set(self) -> None:
        self._push(Opaque("a set"))

    def _tuple(self) -> None:
        self._push_new(tuple(self._pop_to_mark()))

    def _tuple_of(self, count: int) -> None:
        values = [self._pop() for _ in range(count)]
        self._push_new(tuple(reversed(values)))

    def _append(self) -> None:
        value = self._pop()
        self._top(list).append(value)

    def _appends(self) -> None:
        values = self._pop_to_mark()
        self._top(list).extend(values)

    def _set_item(self) -> None:
        value, key = self._pop(), self._pop()
        self._set([key, value])

    def _set_items(self) -> None:
        self._set(self._pop_to_mark())

    def _set(self, items: list[Any]) -> None:
        mapping = self._top(dict)
        if len(items) % 2:
            raise self.error("a key has no value")
        for key, value in zip(items[::2], items[1::2], strict=True):
            # Tuples in tuples would be hashed in as many calls as they are deep, which no stack has room for.
            if not all(type(part) in _KEYS for part in (key if type(key) is tuple else (key,))):
                raise self.error(f"a key is a {type(key).__name__}")
            mapping[key] = value

    def _put(self, size: int) -> None:
        place = self._number(size)
        if place not in self._memo:
            self._count()
        if not self._stack:
            raise self.error("a value is kept that is not there")
        self._memo[place] = self._stack[-1]

    def _get(self, size: int) -> None:
        place = self._number(size)
        if place not in self._memo:
            raise self.error(f"value {place} is used before it is made")
        self._push(self._memo[place])

    def _global(self) -> None:
        module, name = self._line(), self._line()
        full = f"{'builtins' if module == '__builtin__' else module}.{name}"
        if full in _NAMED:
            self._push(_NAMED[full])
        elif full in _FUNCTIONS or full in _OPAQUE:
            self._push_new(Name(full))
        else:
            reason = "is code, which is never run here; torch.load(weights_only=True) refuses it too"
            raise self.error(f"{quoted(full)} {reason}")

    def _reduce(self) -> None:
        arguments, function = self._pop(), self._pop()
        self._push_new(self._called(function, arguments))

    def _build(self) -> None:
        """Drop the state of an object: attributes are no part of a tensor."""
        self._pop()
        if not self._stack or type(self._stack[-1]) not in (dict, Opaque):
            raise self.error("only dictionaries are given attributes")

    def _persistent(self) -> None:
        match self._pop():
            case ("storage", Dtype() as dtype, str(key), _, int(numel), *view) if numel >= 0 and view in ([], [None]):
                storage = Storage(dtype, key, numel)
            case _:
                raise self.error("what lies outside the pickle is no storage")
        if self.storages.setdefault(key, storage).nbytes != storage.nbytes:
            raise self.error(f"storage {quoted(key)} has two sizes")
        self._push_new(storage)

    # What the few functions make that rebuild tensors.

    def _called(self, function: Any, arguments: Any) -> Any:
        if type(function) is not Name or type(arguments) is not tuple:
            raise self.error("what is called is no function")
        if function.name in _OPAQUE:
            return Opaque(function.name)
        made = _FUNCTIONS[function.name](self, *arguments[:8])
        if made is None:
            raise self.error(f"{function.name} is given what it does not take")
        return made

    def _rebuilt(
        self, storage: Any = None, offset: Any = None, shape: Any = None, strides: Any = None, *more: Any
    ) -> Any:
        if (
            type(storage) is not Storage
            or not _are_sizes((offset,))
            or not _are_sizes(shape)
            or not _are_sizes(strides)
        ):
            return None
        if len(shape) != len(strides):
            return None
        if any(type(value) is dict and value.get("neg") for value in more):
            raise self.error("a tensor is the negative of what is stored: save tensor.resolve_neg()")
        return Tensor(self._at, storage.dtype, storage, offset, shape, strides)

    def _rebuilt_as(self, *arguments: Any) -> Any:
        tensor = self._rebuilt(*arguments)
        if tensor is None or len(arguments) < 7 or type(arguments[6]) is not Dtype:
            return None
        return tensor._replace(dtype=arguments[6])

    def _same(self, tensor: Any = None, *_: Any) -> Any:
        return tensor if type(tensor) is Tensor else None

    def _copied(self, tensor: Any = None, dtype: Any = None, *_: Any) -> Any:
        return tensor if type(tensor) is Tensor and tensor.dtype == dtype else None

    def _subclass(self, function: Any = None, _kind: Any = None, arguments: Any = None, *_: Any) -> Any:
        again = function == Name("torch._tensor._rebuild_from_type_v2")  # and again: as deep as the file likes
        return None if again else self._called(function, arguments)

    def _sparse(self, layout: Any = None, data: Any = None, *_: Any) -> Any:
        if type(layout) is not Name or layout not in _LAYOUTS or type(data) is not tuple:
            return None
        parts = tuple(part for part in data if type(part) is Tensor)
        shapes = [part for part in data if _are_sizes(part)]
        if not parts or len(shapes) != 1:
            return None
        return Tensor(self._at, Dtype(_LAYOUTS[layout], 0), None, 0, shapes[0], (), parts)

    def _meta(self, dtype: Any = None, shape: Any = None, *_: Any) -> Any:
        if type(dtype) is not Dtype or not _are_sizes(shape):
            return None
        return Tensor(self._at, Dtype("meta", 0), None, 0, shape, ())

    def _layout(self, name: Any = None, *_: Any) -> Any:
        return Name(name) if type(name) is str else None

    def _size(self, shape: Any = (), *_: Any) -> Any:
        return shape if _are_sizes(shape) else None

    def _ordered(self, items: Any = (), *_: Any) -> Any:
        """Return what Python 2 gave the items of at once."""
        if type(items) not in (list, tuple) or not all(
            type(item) in (list, tuple) and len(item) == 2 for item in items
        ):
            return None
        self._push({})
        self._set([part for item in items for part in item])
        return self._pop()


def _are_sizes(value: Any) -> bool:
    return type(value) is tuple and all(type(size) is int and size >= 0 for size in value)


_CONSTANTS = {pickle.NONE[0]: None, pickle.NEWTRUE[0]: True, pickle.NEWFALSE[0]: False}

_KEYS = (str, int, bool, float, type(None), Opaque, Dtype, Name)

_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": Machine._ordered,
    "torch.Size": Machine._size,
    "torch.Tensor": Machine._same,
    "torch.nn.parameter.Parameter": Machine._same,
    "torch.serialization._get_layout": Machine._layout,
    "torch._tensor._rebuild_from_type_v2": Machine._subclass,
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": Machine._copied,
    "torch._utils._rebuild_meta_tensor_no_storage": Machine._meta,
    "torch._utils._rebuild_parameter": Machine._same,
    "torch._utils._rebuild_parameter_with_state": Machine._same,
    "torch._utils._rebuild_qtensor": Machine._rebuilt,
    "torch._utils._rebuild_sparse_tensor": Machine._sparse,
    "torch._utils._rebuild_tensor": Machine._rebuilt,
    "torch._utils._rebuild_tensor_v2": Machine._rebuilt,
    "torch._utils._rebuild_tensor_v3": Machine._rebuilt_as,
}
"""What rebuilds a tensor or something that one is rebuilt of."""

_OPERATIONS: dict[int, Callable[[Machine], None]] = {
    opcode[0]: operation
    for opcode, operation in {
        pickle.APPEND: Machine._append,
        pickle.APPENDS: Machine._appends,
        pickle.BINFLOAT: Machine._float,
        pickle.BINGET: lambda machine: machine._get(1),
        pickle.BININT: Machine._integer,
        pickle.BININT1: Machine._unsigned_1,
        pickle.BININT2: Machine._unsigned_2,
        pickle.BINPERSID: Machine._persistent,
        pickle.BINPUT: lambda machine: machine._put(1),
        pickle.BINUNICODE: Machine._unicode,
        pickle.BUILD: Machine._build,
        pickle.EMPTY_DICT: Machine._empty_dict,
        pickle.EMPTY_LIST: Machine._empty_list,
        pickle.EMPTY_SET: Machine._empty_set,
        pickle.EMPTY_TUPLE: Machine._empty_tuple,
        pickle.GLOBAL: Machine._global,
        pickle.LONG1: Machine._long,
        pickle.LONG_BINGET: lambda machine: machine._get(4),
        pickle.LONG_BINPUT: lambda machine: machine._put(4),
        pickle.MARK: Machine._mark,
        pickle.NEWFALSE: Machine._constant,
        pickle.NEWOBJ: Machine._reduce,
        pickle.NEWTRUE: Machine._constant,
        pickle.NONE: Machine._constant,
        pickle.PROTO: Machine._protocol,
        pickle.REDUCE: Machine._reduce,
        pickle.SETITEM: Machine._set_item,
        pickle.SETITEMS: Machine._set_items,
        pickle.SHORT_BINSTRING: Machine._byte_string,
        pickle.TUPLE: Machine._tuple,
        pickle.TUPLE1: lambda machine: machine._tuple_of(1),
        pickle.TUPLE2: lambda machine: machine._tuple_of(2),
        pickle.TUPLE3: lambda machine: machine._tuple_of(3),
    }.items()
}
