"""Regularizers by name and as dictionaries, as `keras.regularizers` has them: `get`, `serialize`, `deserialize`.

A dictionary has four entries and is plain data, ready for JSON:

- `module` and `class_name`: where the class is from and what it is called;
- `config`: what its `get_config` returns;
- `registered_name`: the name it was registered under, or that of the class.

For `L1`, `L2`, `L1L2` and `OrthogonalRegularizer` it is Keras's own dictionary, `module` included, so that each side
reads what the other wrote. `HalvedL2`, which Keras has not, is `gpureg>HalvedL2`. A function is
`{"module": "builtins", "class_name": "function", "config": its name, "registered_name": "function"}`.

This module knows no regularizer: those of gpureg enter themselves by `builtin`.
"""

import re
from collections.abc import Callable, Mapping
from types import FunctionType
from typing import Any, TypeVar

import numpy as np

Registered = TypeVar("Registered", bound=Callable[..., Any])

_BUILTINS: dict[str, type] = {}
"""gpureg's own classes, by their names and these in snake case."""

_NAMED: dict[type, tuple[str, str | None]] = {}
"""Of gpureg's own classes, `module` and `registered_name`."""

_REGISTERED: dict[str, Any] = {}
_REGISTERED_NAMES: dict[Any, str] = {}

# Packages whose dictionaries may mean gpureg's classes: Keras under all its names.
_PACKAGES = frozenset({"gpureg", "keras", "tf_keras", "tensorflow"})


def builtin(cls: type, *, in_keras: bool) -> None:
    """Enter a class of gpureg's own; `in_keras` says whether Keras has it too, by the same name."""
    name = cls.__name__
    snake_case = re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()
    _BUILTINS.update({name: cls, snake_case: cls})
    _NAMED[cls] = ("keras.regularizers", None) if in_keras else (cls.__module__, f"gpureg>{name}")


def register(package: str = "Custom", name: str | None = None) -> Callable[[Registered], Registered]:
    """Return a decorator that makes a class or function of your own known to `deserialize`, by `package>name`.

    It is `keras.saving.register_keras_serializable` for use without Keras. Whoever reads a dictionary must have
    registered the same name. What is registered under a name again replaces the former.

    Parameters
    ----------
    package
        Whose it is, so that names need not be unique in the world.
    name
        By default the name of the class or function.

    Raises
    ------
    ValueError
        If a class has no `get_config`.
    TypeError
        If the decorator is used without parentheses, or on what is neither a class nor a function.

    Examples
    --------
    >>> import numpy as np, gpureg
    >>> @gpureg.regularizers.register("my_package")
    ... def largest(w):
    ...     return 0.01 * np.abs(w).max()
    >>> gpureg.serialize(largest)["config"]
    'my_package>largest'
    >>> gpureg.deserialize(gpureg.serialize(largest)) is largest
    True
    """
    if not isinstance(package, str):
        raise TypeError("register needs parentheses: @register() or @register('my_package')")

    def decorator(registered: Registered) -> Registered:
        if not isinstance(registered, type | FunctionType):
            raise TypeError(f"expected a class or a function to register, not {registered!r}")
        if isinstance(registered, type) and not hasattr(registered, "get_config"):
            raise ValueError("Cannot register a class that does not have a get_config() method.")
        registered_name = f"{package}>{registered.__name__ if name is None else name}"
        _REGISTERED[registered_name] = registered
        _REGISTERED_NAMES[registered] = registered_name
        return registered

    return decorator


def get(identifier: Any) -> Any:
    """Return the regularizer that is meant, as `keras.regularizers.get` does.

    Parameters
    ----------
    identifier
        None, which is returned; a name, `"L1"`, `"l1"`, `"L2"`, `"l2"`, `"L1L2"`, `"l1l2"`, `"HalvedL2"`,
        `"halved_l2"`, `"OrthogonalRegularizer"` or `"orthogonal_regularizer"`, for one with its defaults; a
        dictionary, as of `serialize`; a class, which is called without arguments; a regularizer or any function,
        returned as it is.

    Raises
    ------
    ValueError
        If it is anything else: another name (`"l1_l2"` is none, in Keras neither), a number, a list.
    TypeError
        If a dictionary's `config` does not fit its class.

    Examples
    --------
    >>> import gpureg
    >>> gpureg.get("l2"), gpureg.get({"class_name": "L1", "config": {"l1": 0.5}})
    (L2(l2=0.01), L1(l1=0.5))
    """
    if identifier is None:
        return None
    if isinstance(identifier, Mapping):
        found = deserialize(identifier)
    elif isinstance(identifier, str):
        found = _BUILTINS.get(identifier)
    else:
        found = identifier
    if isinstance(found, type):
        found = found()
    if not callable(found):
        raise ValueError(_not_interpreted(identifier))
    return found


def serialize(regularizer: Any) -> dict[str, Any] | None:
    """Return a regularizer as a dictionary, as `keras.regularizers.serialize` does; None as None.

    Parameters
    ----------
    regularizer
        A regularizer, an object with a `get_config`, or a function with a name.

    Raises
    ------
    TypeError
        If it is anything else, or its configuration is not made of None, bools, numbers, strings, lists, dictionaries
        and regularizers.

    Examples
    --------
    >>> import gpureg
    >>> gpureg.serialize(gpureg.L1(0.5))
    {'module': 'keras.regularizers', 'class_name': 'L1', 'config': {'l1': 0.5}, 'registered_name': None}
    """
    if regularizer is None:
        return None
    if isinstance(regularizer, FunctionType):
        name = _REGISTERED_NAMES.get(regularizer, regularizer.__name__)
        if name == "<lambda>":  # Keras would write its byte code down, and refuse to read it
            raise TypeError("a lambda has no name to serialize it by; define a function, and register it")
        return {"module": "builtins", "class_name": "function", "config": name, "registered_name": "function"}
    kind = type(regularizer)
    if isinstance(regularizer, type) or not hasattr(regularizer, "get_config"):
        raise TypeError(
            f"Cannot serialize object {regularizer} of type {kind}. "
            "To be serializable, a class must implement the `get_config()` method."
        )
    config = regularizer.get_config()
    if not isinstance(config, dict):
        raise TypeError(f"The `get_config()` method of {regularizer} should return a dict. It returned: {config}")
    own_module = None if kind.__module__ == "__main__" else kind.__module__
    module, registered = _NAMED.get(kind, (own_module, _REGISTERED_NAMES.get(kind, kind.__name__)))
    return {
        "module": module,
        "class_name": kind.__name__,
        "config": _plain(config, f"{kind.__name__}.get_config()"),
        "registered_name": registered,
    }


def deserialize(config: Any, custom_objects: Mapping[str, Any] | None = None) -> Any:
    """Return what a dictionary describes, as `keras.regularizers.deserialize` does.

    Parameters
    ----------
    config
        A dictionary, as of `serialize` here or in Keras, or of `class_name` and `config` alone; a name, which stands
        for the regularizer with its defaults, or for what it was registered as; None, or a regularizer, returned as
        they are; a list of such, for a list.
    custom_objects
        Classes and functions of your own by their names, instead of registering them; what is registered comes first.

    Raises
    ------
    ValueError
        If nothing is known by the name; Keras would return the name.
    TypeError
        If the class is of a program's main module, which no name tells; if `config` does not fit the class.

    Notes
    -----
    No code is loaded for a dictionary: neither is a module imported nor a lambda of Keras's made. A class that someone
    else calls `L1` is not taken for gpureg's: its `module` and `registered_name` tell.

    Examples
    --------
    >>> import json, gpureg
    >>> text = json.dumps(gpureg.serialize(gpureg.L1L2(0.1, 0.2)))
    >>> gpureg.deserialize(json.loads(text))
    L1L2(l1=0.1, l2=0.2)
    """
    known = {**(custom_objects or {}), **_REGISTERED}
    if isinstance(config, list | tuple):
        return [deserialize(each, custom_objects) for each in config]
    if isinstance(config, Mapping):
        return _of_dictionary(config, known)
    if isinstance(config, str):
        if config in known:
            return known[config]
        if config in _BUILTINS:
            return _BUILTINS[config]()
    elif config is None or callable(config):
        return config
    raise ValueError(_not_interpreted(config))


def _of_dictionary(config: Mapping[str, Any], known: Mapping[str, Any]) -> Any:
    if "class_name" not in config:
        raise ValueError(f"Unknown `config` as a `dict`, config={config}")
    name, inner = config["class_name"], config.get("config")
    if name == "function":
        if isinstance(inner, str) and inner in known:
            return known[inner]
        raise ValueError(_not_interpreted(config))
    cls = _class_of(config, known)
    if isinstance(cls, FunctionType):
        return cls
    inner = {} if inner is None else inner
    if not isinstance(inner, Mapping):
        raise TypeError(f"Expected 'config' to be a dict for {name},\ninstead got {type(inner)}\nFull config: {config}")
    if not hasattr(cls, "from_config"):
        raise TypeError(f"{cls} has no from_config, which makes one of a dictionary: {config}")
    try:
        return cls.from_config(dict(inner))
    except TypeError as error:
        raise TypeError(f"{cls} could not be deserialized properly: {error}\n\nconfig={config}") from error


def _class_of(config: Mapping[str, Any], known: Mapping[str, Any]) -> Any:
    """Return the class that a dictionary names: one of a user's own, or gpureg's."""
    name = config["class_name"]
    registered = config.get("registered_name", name)
    if isinstance(registered, str) and registered in known:
        return known[registered]
    module = config.get("module", "keras")
    if module is None:
        raise TypeError(
            f"Cannot deserialize object of type `{name}`. If `{name}` is a custom class, please register it using the "
            "`@gpureg.regularizers.register()` decorator."
        )
    package, _, _ = registered.rpartition(">") if isinstance(registered, str) else ("", "", "")
    ours = str(module).partition(".")[0] in _PACKAGES and package in {"", "gpureg"}
    if not ours or not isinstance(name, str) or name not in _BUILTINS:
        raise ValueError(_not_interpreted(config))
    return _BUILTINS[name]


def _plain(value: Any, where: str) -> Any:
    """Return a part of a configuration as JSON can write it."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [_plain(each, f"{where}[{index}]") for index, each in enumerate(value)]
    if isinstance(value, dict):
        return {key: _plain(each, f"{where}[{key!r}]") for key, each in value.items()}
    if callable(value):
        return serialize(value)
    raise TypeError(f"{where} is {value!r}; expected None, a bool, a number, a string, a list, a dict or a regularizer")


def _not_interpreted(identifier: Any) -> str:
    return (
        f"Could not interpret regularizer identifier: {identifier}; known are {', '.join(_BUILTINS)}, "
        "and what is registered"
    )
