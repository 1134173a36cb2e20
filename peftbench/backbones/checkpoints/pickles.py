"""Pickles read as data: a small machine that follows the opcodes and never calls what a file names.

Names of classes and functions stay names. Tensors and numpy arrays become descriptions that are
held against the bytes that the file has before anything is made of them; objects of other classes
become `Inert`. So a training script's arguments do not stand in the way of its weights, and nothing
in a file can run.
"""

from __future__ import annotations

import pickletools
import re
import sys
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import IO, Any

from peftbench.backbones.checkpoints.pickled import (
    Inert,
    Name,
    PickledArray,
    Refused,
    array_from_buffer,
    fill_array,
    reconstructed,
    stored_tensor,
    typed_tensor,
)

# instructions of one pickle; a file of weights has tens for each tensor, and an instruction of one
# byte can make an object of 200 bytes
MOST_INSTRUCTIONS = 2_000_000
MOST_KEY = 2**31  # of the numbers that name entries of a dictionary
STDLIB_DATA = (  # of the standard library, only these hold nothing but data
    "argparse.Namespace",
    "collections.",
    "copyreg._reconstructor",
    "copyreg.__newobj__",
    "datetime.",
    "decimal.Decimal",
    "enum.",
    "fractions.Fraction",
    "functools.partial",
    "operator.getitem",
    "pathlib.",
    "types.SimpleNamespace",
    "typing.",
    "uuid.UUID",
    "_codecs.encode",
    *(
        f"builtins.{name}"
        for name in (
            *("set", "frozenset", "dict", "list", "tuple", "complex", "bytearray", "bytes"),
            *("slice", "range", "int", "float", "str", "bool", "object", "type", "getattr"),
        )
    ),
)
MAPPINGS = ("collections.OrderedDict", "collections.defaultdict", "collections.Counter")
INERT_CALLS = re.compile(  # functions and types that stand for a value which weights do not need
    r"numpy\.(core|_core)\.multiarray\.scalar|numpy\.dtypes\..*|numpy\.random\..*"
    r"|numpy\.ma\.core\._mareconstruct"
    r"|torch\.(Size|device|Generator|finfo|iinfo)|torch\.serialization\._get_layout"
    r"|(argparse|datetime|decimal|enum|fractions|functools|pathlib|types|typing|uuid)\..*"
    r"|operator\.getitem|collections\.deque"
    r"|builtins\.(complex|bytearray|bytes|slice|range|int|float|str|bool|object)"
)


class _Mark:
    pass


def read(file: IO[bytes], stored: Callable[[Any], Any]) -> Any:
    """The next pickle of `file` as data; `stored` describes what a persistent id means,
    such as a `Storage`.

    Raises:
        Refused: it calls a function, or names a part of the standard library that is no data.
        ValueError: it is damaged.
    """
    try:
        return _run(file, stored)
    except ValueError:
        raise
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        MemoryError,
        RecursionError,
        TypeError,
    ) as e:
        raise ValueError(f"the pickle in it is damaged: {type(e).__name__}") from e


@dataclass(eq=False)
class _Machine:
    """The state of one pickle: what its instructions have put on the stack, and remembered."""

    stored: Callable[[Any], Any]
    stack: list[Any] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)
    protocol: int = 0

    def above_mark(self) -> list[Any]:
        """What was put on the stack since the last mark, taken off with it."""
        for i in range(len(self.stack) - 1, -1, -1):
            if isinstance(self.stack[i], _Mark):
                values = self.stack[i + 1 :]
                del self.stack[i:]
                return values
        raise ValueError("the pickle in it is damaged: no mark")

    def last(self, length: int) -> tuple[Any, ...]:
        """The last values of the stack, taken off."""
        if len(self.stack) < length:
            raise ValueError("the pickle in it is damaged: the stack is too short")
        values = tuple(self.stack[-length:])
        del self.stack[-length:]
        return values

    def named(self, argument: str) -> Name:
        """The class or function of an instruction that names it in one text."""
        module, _, qualified = argument.partition(" ")
        return _named(*_current(module, qualified, self.protocol))


def _run(file: IO[bytes], stored: Callable[[Any], Any]) -> Any:
    machine = _Machine(stored)
    for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        name = opcode.name
        if count > MOST_INSTRUCTIONS:
            raise ValueError(f"the pickle in it has more than {MOST_INSTRUCTIONS:,} instructions")
        if name == "STOP":
            return machine.stack.pop()
        if name in PUSHED:
            machine.stack.append(PUSHED[name](machine, argument))
        elif name in CHANGES:
            CHANGES[name](machine, argument)
        else:
            raise Refused(f"the pickle in it uses {name}, which weights do not need")
    raise ValueError("the pickle in it has no end")


def _of_two_names(machine: _Machine, argument: Any) -> Name:
    qualified, module = machine.stack.pop(), machine.stack.pop()
    return _named(module, qualified)


def _reduced(machine: _Machine, argument: Any) -> Any:
    arguments, called = machine.stack.pop(), machine.stack.pop()
    return _call(called, arguments)


def _new_object(machine: _Machine, argument: Any) -> Any:
    arguments, called = machine.stack.pop(), machine.stack.pop()
    return _instance(called, arguments)


def _new_object_with_names(machine: _Machine, argument: Any) -> Any:
    machine.stack.pop()
    return _new_object(machine, argument)


def _object_above_mark(machine: _Machine, argument: Any) -> Any:
    called, *rest = machine.above_mark()
    return _instance(called, tuple(rest))


def _frozen_set(machine: _Machine, argument: Any) -> Inert:
    machine.above_mark()
    return Inert(SET)


def _set_protocol(machine: _Machine, argument: Any) -> None:
    machine.protocol = argument


def _append(machine: _Machine, argument: Any) -> None:
    value = machine.stack.pop()
    _extend(machine.stack[-1], [value])


def _append_above_mark(machine: _Machine, argument: Any) -> None:
    values = machine.above_mark()
    _extend(machine.stack[-1], values)


def _set_item(machine: _Machine, argument: Any) -> None:
    value, key = machine.stack.pop(), machine.stack.pop()
    _set_items(machine.stack[-1], [key, value])


def _set_items_above_mark(machine: _Machine, argument: Any) -> None:
    values = machine.above_mark()
    _set_items(machine.stack[-1], values)


def _put(machine: _Machine, argument: Any) -> None:
    machine.memo[argument] = machine.stack[-1]


def _memoize(machine: _Machine, argument: Any) -> None:
    machine.memo[len(machine.memo)] = machine.stack[-1]


def _build(machine: _Machine, argument: Any) -> None:
    state = machine.stack.pop()
    _set_state(machine.stack[-1], state)


SET = Name("builtins", "set")  # no weights lie in one, so none is made and nothing hashed for it
VALUES = (
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "BINUNICODE8"),
    *("SHORT_BINUNICODE", "BINBYTES", "BINBYTES8", "SHORT_BINBYTES", "BYTEARRAY8"),
)
# what each instruction puts on the stack
PUSHED: Mapping[str, Callable[[_Machine, Any], Any]] = {
    "NONE": lambda machine, argument: None,
    "NEWTRUE": lambda machine, argument: True,
    "NEWFALSE": lambda machine, argument: False,
    "EMPTY_TUPLE": lambda machine, argument: (),
    "EMPTY_LIST": lambda machine, argument: [],
    "EMPTY_DICT": lambda machine, argument: {},
    "EMPTY_SET": lambda machine, argument: Inert(SET),
    "MARK": lambda machine, argument: _Mark(),
    **dict.fromkeys(VALUES, lambda machine, argument: argument),
    "TUPLE1": lambda machine, argument: machine.last(1),
    "TUPLE2": lambda machine, argument: machine.last(2),
    "TUPLE3": lambda machine, argument: machine.last(3),
    "TUPLE": lambda machine, argument: tuple(machine.above_mark()),
    "LIST": lambda machine, argument: machine.above_mark(),
    "DICT": lambda machine, argument: _pairs(machine.above_mark()),
    "FROZENSET": _frozen_set,
    **dict.fromkeys(
        ("GET", "BINGET", "LONG_BINGET"), lambda machine, argument: machine.memo[argument]
    ),
    "DUP": lambda machine, argument: machine.stack[-1],
    "GLOBAL": lambda machine, argument: machine.named(argument),
    "STACK_GLOBAL": _of_two_names,
    "BINPERSID": lambda machine, argument: machine.stored(machine.stack.pop()),
    "PERSID": lambda machine, argument: machine.stored(argument),
    "REDUCE": _reduced,
    "NEWOBJ": _new_object,
    "NEWOBJ_EX": _new_object_with_names,
    "INST": lambda machine, argument: _instance(
        machine.named(argument), tuple(machine.above_mark())
    ),
    "OBJ": _object_above_mark,
}
# and what the others do to what is there
CHANGES: Mapping[str, Callable[[_Machine, Any], object]] = {
    "PROTO": _set_protocol,
    "FRAME": lambda machine, argument: None,
    "APPEND": _append,
    **dict.fromkeys(("APPENDS", "ADDITEMS"), _append_above_mark),
    "SETITEM": _set_item,
    "SETITEMS": _set_items_above_mark,
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), _put),
    "MEMOIZE": _memoize,
    "POP": lambda machine, argument: machine.stack.pop(),
    "POP_MARK": lambda machine, argument: machine.above_mark(),
    "BUILD": _build,
}


def _current(module: str, qualified: str, protocol: int) -> tuple[str, str]:
    """Python 3's name: up to protocol 2, pickles call `subprocess.Popen` commands.Popen."""
    if protocol >= 3:
        return module, qualified
    if (module, qualified) in NAME_MAPPING:
        return NAME_MAPPING[(module, qualified)]
    return IMPORT_MAPPING.get(module, module), qualified


def _named(module: Any, qualified: Any) -> Name:
    if not isinstance(module, str) or not isinstance(qualified, str):
        raise ValueError("the pickle in it is damaged: a class without a name")
    name = Name(module, qualified)
    top = name.module.partition(".")[0]
    data = any(
        str(name) == known or (known.endswith(".") and str(name).startswith(known))
        for known in STDLIB_DATA
    )
    if top in sys.stdlib_module_names and top != "__main__" and not data:
        raise Refused(f"it holds code: {name}")
    return name


def _is_class(name: Name) -> bool:
    """Whether a name outside of the standard library is written as classes are."""
    return name.qualified.rpartition(".")[2].lstrip("_")[:1].isupper()


def _instance(called: Any, arguments: Any) -> Any:
    if not isinstance(called, Name) or not isinstance(arguments, tuple):
        raise ValueError("the pickle in it is damaged: an object without a class")
    if str(called) in MAPPINGS:
        return {}
    return Inert(called, arguments)


def _call(called: Any, arguments: Any) -> Any:
    """What `called(*arguments)` stands for, where that is data; nothing is called."""
    if not isinstance(called, Name):
        raise Refused("it holds code: a call of something that has no name")
    if not isinstance(arguments, tuple):
        raise ValueError("the pickle in it is damaged: a call without arguments")
    full = str(called)
    builder = BUILDERS.get(full)
    if builder is not None:
        return builder(*arguments)
    if full in MAPPINGS:
        return {}
    if full.startswith("torch._utils._rebuild_"):
        raise ValueError(f"a tensor in it is of a kind that is not read: {called.qualified[:60]}")
    if INERT_CALLS.fullmatch(full) or (
        called.module.partition(".")[0] not in sys.stdlib_module_names and _is_class(called)
    ):
        return Inert(called, arguments)
    raise Refused(f"it holds code: a call of {full}")


def _extend(target: Any, values: list[Any]) -> None:
    if isinstance(target, list):
        target.extend(values)
    elif not isinstance(target, Inert):
        raise ValueError("the pickle in it is damaged: it appends to what is no list")


def _set_items(target: Any, values: list[Any]) -> None:
    pairs = _pairs(values)
    if isinstance(target, dict):
        target.update(pairs)
    elif isinstance(target, Inert):
        target.items.update(pairs)
    else:
        raise ValueError("the pickle in it is damaged: it sets items of what has none")


def _pairs(values: list[Any]) -> dict[Any, Any]:
    """Keys and values in turn as a dictionary; names and small numbers are the keys of weights.

    Others are left out: Python hashes a tuple by walking through it without a bound, in depth and
    in time, and large numbers can be chosen so that they all collide.
    """
    pairs = zip(values[::2], values[1::2], strict=True)
    return {k: v for k, v in pairs if type(k) is str or (type(k) is int and abs(k) <= MOST_KEY)}


def _set_state(target: Any, state: Any) -> None:
    if isinstance(target, Name):
        raise Refused(f"it holds code: it changes {target}")
    if isinstance(target, Inert):
        target.state = state
    elif isinstance(target, PickledArray):
        fill_array(target, state)


def _of_subclass(function: Any, kind: Any, arguments: Any, *_: Any) -> Any:
    return _call(function, arguments)


def _parameter(data: Any, *_: Any) -> Any:
    return data


def _dtype(*arguments: Any) -> Inert:
    return Inert(Name("numpy", "dtype"), arguments)


def _encoded(text: Any, encoding: Any = "latin1", *_: Any) -> Any:
    """Bytes, as up to protocol 2; they stay text until an array is made of them, so that a text
    which a file refers to a thousand times is there once.
    """
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise ValueError("the pickle in it is damaged: bytes in an unknown encoding")
    return text


def _remade(kind: type) -> Callable[..., Any]:
    """A list, tuple or dictionary made of another; nothing changes either, so none is copied."""

    def build(*arguments: Any) -> Any:
        if not arguments:
            return kind()
        return arguments[0] if isinstance(arguments[0], kind) else Inert(SET, arguments)

    return build


def _attribute(owner: Any, attribute: Any, *_: Any) -> Name:
    if not isinstance(owner, Name) or not isinstance(attribute, str):
        raise Refused("it holds code: a call of getattr")
    return _named(owner.module, f"{owner.qualified}.{attribute}")


def _object_of(kind: Any, *_: Any) -> Any:
    return _instance(kind, ())


BUILDERS: Mapping[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": stored_tensor,
    "torch._utils._rebuild_tensor_v2": stored_tensor,
    "torch._utils._rebuild_tensor_v3": typed_tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._tensor._rebuild_from_type_v2": _of_subclass,
    "numpy.core.multiarray._reconstruct": reconstructed,
    "numpy._core.multiarray._reconstruct": reconstructed,
    "numpy.core.numeric._frombuffer": array_from_buffer,
    "numpy._core.numeric._frombuffer": array_from_buffer,
    "numpy.dtype": _dtype,
    "_codecs.encode": _encoded,
    "builtins.getattr": _attribute,
    **{f"builtins.{kind.__name__}": _remade(kind) for kind in (list, tuple, dict)},
    **{f"builtins.{kind}": lambda *_: Inert(SET) for kind in ("set", "frozenset")},
    "copyreg._reconstructor": _object_of,
    "copyreg.__newobj__": _object_of,
}
