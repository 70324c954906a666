"""Values as jsonpickle text and back: what goes in comes out, or is refused with a reason.

Plain data (scalars, lists, dicts with string keys, tuples, sets) are written and read by this module alone, as jsonpickle would,
without importing it: that is most of what is ever sent, and a worker's start is short. Everything else goes through jsonpickle,
set up so that it keeps what its defaults lose, and is decoded again and compared before it is sent.

Only the SDK decodes: decoding imports modules and runs their code. ``plain`` is for everyone else.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence

from . import errors, limits

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType
    from typing import Any, Dict, List, Optional, Set, Tuple

    Roots = Dict[str, Any]
    """What is encoded, by the name that a message gives it: ``argument 1``, ``argument 'x'``, ``the value``."""

TUPLE, SET, KEY = "py/tuple", "py/set", "json://"
NAMES = ("py/object", "py/type", "py/function")
"""Tags whose value is the dotted name of a class or function."""

MAX_INTEGER_BITS = 14_000
"""Python 3.11 and later read no integer of more than 4,300 digits (14,284 bits): ``sys.set_int_max_str_digits``."""

STORAGE_HINT = "Save large data to storage (e.g. S3) and pass its location instead."


class _NotPlain(Exception):
    """A value, or a text, that takes jsonpickle."""


def encode_input(args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """Arguments as text in ASCII: ``[args as a tuple, kwargs as a dict]``.

    Equal plain arguments give equal text. Raises EncodingError, which names the argument, and FunctionInputSizeLimitExceeded.
    """
    roots = {f"argument {number}": value for number, value in enumerate(args, 1)}
    roots.update({f"argument {name!r}": value for name, value in kwargs.items()})
    text = _encode([tuple(args), dict(kwargs)], roots)
    if len(text) > limits.MAX_CHARACTERS:
        message = _too_long("The encoded arguments are", text)
        raise errors.FunctionInputSizeLimitExceeded(message, STORAGE_HINT)
    return text


def encode_plain_input(args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """As `encode_input`, for arguments that came as JSON: plain data alone, without jsonpickle.

    Raises EncodingError also for keys that mean something in jsonpickle's text.
    """
    try:
        text = _dump(_flatten_plain([tuple(args), dict(kwargs)], set()))
    except (_NotPlain, RecursionError):
        message = f"The arguments are no plain JSON: a key begins with 'py/' or '{KEY}', an integer has over 4,214 digits, or they are nested too deeply."
        hint = "Send them as `inputs`, jsonpickle's text, as the SDK does."
        raise errors.EncodingError(message, hint) from None
    if len(text) > limits.MAX_CHARACTERS:
        message = _too_long("The encoded arguments are", text)
        raise errors.FunctionInputSizeLimitExceeded(message, STORAGE_HINT)
    return text


def encode_output(value: Any) -> str:
    """A result or yielded value as text in ASCII. Raises EncodingError and FunctionOutputSizeLimitExceeded."""
    text = _encode(value, {"the value": value})
    if len(text) > limits.MAX_CHARACTERS:
        message = _too_long("The encoded result or yielded value is", text)
        raise errors.FunctionOutputSizeLimitExceeded(message, STORAGE_HINT)
    return text


def decode(text: str) -> Any:
    """The value of a text. Raises DecodingError where this program lacks a class of it, or the text is none of ours.

    Imports the modules of the classes that the text names.
    """
    try:
        if '"py/' not in text and f'"{KEY}' not in text:
            return json.loads(text)
        return json.loads(text, object_hook=_restore_plain)
    except _NotPlain:
        pass
    except (ValueError, RecursionError) as error:
        message = f"This is no jsonpickle text: {error}."
        raise errors.DecodingError(message) from error
    return _restore(text)


def plain(text: str) -> Any:
    """The text as data that any JSON takes, without decoding classes: for showing.

    Tuples and sets are lists, NaN and the infinities are strings, keys are strings, instances stay the dicts of jsonpickle.
    Raises DecodingError where the text is no JSON.
    """
    try:
        return _plain(json.loads(text))
    except (ValueError, RecursionError) as error:
        message = f"This is no jsonpickle text: {error}."
        raise errors.DecodingError(message) from error


# --- encoding ---


def _encode(value: Any, roots: Roots) -> str:
    try:
        return _dump(_flatten_plain(value, set()))
    except _NotPlain:
        pass
    except RecursionError as error:
        raise _refusal(_all_of(roots), "it is nested too deeply") from error
    try:
        return _encode_any(value, roots)
    except RecursionError as error:
        raise _refusal(_all_of(roots), "it is nested too deeply") from error


def _dump(data: Any) -> str:
    return json.dumps(data, separators=(",", ":"))


def _flatten_plain(value: Any, seen: Set[int]) -> Any:
    """``value`` as jsonpickle's JSON. Raises _NotPlain for what is not plain, and for lists and dicts that occur twice."""
    kind = type(value)
    if value is None or kind in (str, float, bool):
        return value
    if kind is int:
        if value.bit_length() > MAX_INTEGER_BITS:
            raise _NotPlain
        return value
    if kind is tuple:
        return {TUPLE: [_flatten_plain(item, seen) for item in value]}
    if kind is set:
        return {SET: [_flatten_plain(item, seen) for item in _in_order(value)]}
    if (kind is not list and kind is not dict) or id(value) in seen:
        raise _NotPlain
    seen.add(id(value))
    if kind is list:
        return [_flatten_plain(item, seen) for item in value]
    if not all(map(_is_plain_key, value)):
        raise _NotPlain
    return {key: _flatten_plain(item, seen) for key, item in value.items()}


def _is_plain_key(key: object) -> bool:
    return type(key) is str and not key.startswith(("py/", KEY))


def _in_order(items: Set[Any]) -> List[Any]:
    """A set's items in the same order in every process, if they can be ordered: the text is compared by idempotency keys."""
    try:
        return sorted(items)
    except TypeError:
        return list(items)


def _encode_any(value: Any, roots: Roots) -> str:
    try:
        text = _dump(_pickler().flatten(value))
        if '"__main__.' in text or '"__main__.' in text.replace("\\", ""):
            text = _dump(_rename_main_module(json.loads(text)))
    except _Refused as refused:
        raise _refusal(_path_to(refused.culprit, roots), refused.reason) from None
    except (errors.EncodingError, RecursionError):
        raise
    except Exception as error:  # whatever the value's own methods raise
        raise _refusal(_all_of(roots), f"{type(error).__name__}: {error}") from error
    if len(text) <= limits.MAX_CHARACTERS:  # else it is refused for its length
        _check_return(value, text, roots)
    return text


def _refusal(path: str, reason: str) -> errors.EncodingError:
    message = f"{path[:1].upper()}{path[1:]} cannot be encoded: {reason}."
    return errors.EncodingError(message, "Pass plain data, or what to make the object from.")


def _too_long(what: str, text: str) -> str:
    return f"{what} {len(text):,} characters long; the limit is {limits.MAX_CHARACTERS:,}."


class _Refused(Exception):
    """A part of a value that jsonpickle would take, but not bring back."""

    def __init__(self, reason: str, culprit: Any) -> None:
        super().__init__(reason)
        self.reason = reason
        self.culprit = culprit


def _pickler() -> Any:
    """jsonpickle's Pickler; non-string keys, keys like tags, order and ``bytearray`` are kept, and what would be lost refused."""
    from jsonpickle.pickler import Pickler  # lazy: 50 ms

    class ExactPickler(Pickler):  # type: ignore[misc,unused-ignore]
        def _flatten(self, obj: Any) -> Any:
            _refuse_what_cannot_return(obj)
            return super()._flatten(obj)

        def _get_flattener(self, obj: Any) -> Any:
            if _is_better_reduced(obj):
                return self._flatten_reduced if self._mkref(obj) else self._getref
            return self._flatten_set if type(obj) is set else super()._get_flattener(obj)

        def _flatten_reduced(self, obj: Any) -> Any:
            function, arguments, state, items, pairs = _reduce(obj)
            is_new = getattr(function, "__name__", "") == "__newobj__"
            parts = [
                "py/newobj" if is_new else self._flatten(function),
                self._flatten(arguments),
                self._flatten(state),
                self._flatten(tuple(items) or None),
                self._flatten(tuple(map(tuple, pairs)) or None),
            ]
            while parts[-1] is None:
                parts.pop()
            return {"py/reduce": parts}

        def _flatten_set(self, obj: Any) -> Any:
            return {SET: [self._flatten(item) for item in _in_order(obj)]}

        def _flatten_dict_obj(self, obj: Any, data: Any = None, *more: Any, **named: Any) -> Any:
            if type(obj) is not dict or data is not None:
                return super()._flatten_dict_obj(obj, data, *more, **named)
            if all(map(_is_plain_key, obj)):
                return {key: self._flatten(item) for key, item in obj.items()}
            # One key that has to be written as JSON, and all are: jsonpickle reads those last.
            return {KEY + _dump(self._flatten(key)): self._flatten(obj[key]) for key in obj}

    return ExactPickler(keys=True)


def _is_better_reduced(obj: Any) -> bool:
    """Whether jsonpickle's own way loses a part: all of a ``bytearray``, ``fold``, the order or names of keys."""
    if isinstance(obj, dict) and type(obj) is not dict:
        return hasattr(obj, "default_factory") or not all(map(_is_plain_key, obj))
    kind = type(obj)
    return kind is bytearray or (kind.__module__ == "datetime" and getattr(obj, "fold", 0) == 1)


def _refuse_what_cannot_return(obj: Any) -> None:
    kind = type(obj)
    if kind is int and obj.bit_length() > MAX_INTEGER_BITS:
        reason = "it is an integer of more than 4,214 digits, which not every Python reads"
        raise _Refused(reason, obj)
    if kind in (str, bool, int, float, bytes, list, dict, tuple, type(None)):
        return
    import inspect  # lazy: loaded by jsonpickle already
    import io

    what = ""
    if inspect.isgenerator(obj) or inspect.isasyncgen(obj) or inspect.iscoroutine(obj):
        what = f"a {kind.__name__} runs in this process only"
    elif inspect.ismodule(obj):
        what = "it is a module"
    elif inspect.ismethod(obj) or (inspect.isfunction(obj) and not _is_importable(obj)):
        what = f"{obj.__qualname__!r} is not a function that can be imported by its name"
    elif isinstance(obj, type) and not _is_importable(obj):
        what = f"{obj.__qualname__!r} is not a class that can be imported by its name"
    elif isinstance(obj, io.IOBase):
        what = "an open file belongs to this process"
    if what:
        raise _Refused(what, obj)


def _is_importable(obj: Any) -> bool:
    module = sys.modules.get(obj.__module__)
    try:
        return module is not None and _attribute(module, obj.__qualname__) is obj
    except AttributeError:
        return False


# --- the program's own module ---


def _main_module_name() -> Optional[str]:
    """The name under which another program would import the module that this one was started from, None for none."""
    main = sys.modules.get("__main__")
    spec = getattr(main, "__spec__", None)
    if spec is not None:
        name = str(spec.name)
        return name[: -len(".__main__")] if name.endswith(".__main__") else name
    path = str(getattr(main, "__file__", None) or "")
    name = path.replace("\\", "/").rsplit("/", 1)[-1]
    return name[:-3] if name.endswith(".py") and name[:-3].isidentifier() else None


def _rename_main_module(data: Any) -> Any:
    """``data`` with ``__main__.Point`` as ``main.Point``: in the other program ``__main__`` is another module."""
    if isinstance(data, list):
        return [_rename_main_module(item) for item in data]
    if not isinstance(data, dict):
        return data
    renamed = {}
    for key, item in data.items():
        if key in NAMES and isinstance(item, str):
            renamed[key] = _public_name(item)
        elif key.startswith(KEY):
            inner = _rename_main_module(json.loads(key[len(KEY) :]))
            renamed[KEY + _dump(inner)] = _rename_main_module(item)
        else:
            renamed[key] = _rename_main_module(item)
    return renamed


def _public_name(name: str) -> str:
    if not name.startswith("__main__."):
        return name
    module = _main_module_name()
    if module is None:
        message = (
            f"{name[9:]!r} is defined in an interactive session: no other program can import it."
        )
        hint = "Define it in a module that the caller's codebase and tasks/ both have."
        raise errors.EncodingError(message, hint)
    return f"{module}.{name[9:]}"


# --- comparing what went in with what comes out ---


def _check_return(value: Any, text: str, roots: Roots) -> None:
    try:
        returned = decode(text)
    except errors.DecodingError as error:
        raise _refusal(_all_of(roots), f"it would not come back ({error.message})") from error
    if len(roots) == 1 and "the value" in roots:
        pairs = {"the value": (value, returned)}
    else:
        names = list(roots)
        again = [*returned[0], *returned[1].values()]
        pairs = {name: (roots[name], item) for name, item in zip(names, again)}
    comparison = _Comparison()
    for name, (before, after) in pairs.items():
        difference = comparison.difference(before, after, name)
        if difference is not None:
            raise _refusal(difference.path, difference.reason)


class _Difference:
    """Where and how a decoded value is not the one that was encoded."""

    def __init__(self, path: str, reason: str) -> None:
        self.path = path
        self.reason = reason


class _Comparison:
    """Compares values with what they became, down to the parts that pickle would take them apart into."""

    def __init__(self) -> None:
        self._seen: Dict[int, Tuple[Any, Any]] = {}

    def difference(self, before: Any, after: Any, path: str) -> Optional[_Difference]:
        """The first difference, None where both are the same."""
        if before is after:
            return None
        kind = type(before)
        if kind is not type(after):
            return _Difference(path, f"{_kind(before)} would come back as {_kind(after)}")
        if kind in (str, int, bool, bytes, float):
            is_same = repr(before) == repr(after)  # NaN is NaN, -0.0 is not 0.0
            return None if is_same else _Difference(path, f"it would come back as {after!r:.50}")
        if id(before) in self._seen:
            is_same = self._seen[id(before)][1] is after or kind in (tuple, set, frozenset)
            return None if is_same or _is_hashable(before) else _Difference(path, _TWICE)
        self._seen[id(before)] = (before, after)
        if kind in (list, tuple):
            return self._in_sequence(before, after, path)
        if kind is dict:
            return self._in_dict(before, after, path)
        if kind in (set, frozenset):
            return self._in_set(before, after, path)
        return self._in_object(before, after, path)

    def _in_sequence(self, before: Any, after: Any, path: str) -> Optional[_Difference]:
        if len(before) != len(after):
            return _Difference(path, f"{len(after)} of {len(before)} items would come back")
        found = (
            self.difference(item, other, f"{path}[{index}]")
            for index, (item, other) in enumerate(zip(before, after))
        )
        return next(filter(None, found), None)

    def _in_dict(self, before: Any, after: Any, path: str) -> Optional[_Difference]:
        if len(before) != len(after):
            return _Difference(path, _what_is_lost(before, after))
        for (key, item), (other_key, other) in zip(before.items(), after.items()):
            found = self.difference(key, other_key, f"the key {key!r:.50} in {path}")
            found = found or self.difference(item, other, f"{path}[{key!r:.50}]")
            if found is not None:
                return found
        return None

    def _in_set(self, before: Any, after: Any, path: str) -> Optional[_Difference]:
        if len(before) == len(after) and before == after:
            return None
        rest = list(after)
        for item in before:
            match = next((o for o in rest if not _Comparison().difference(item, o, "")), _NONE)
            if match is _NONE:
                return _Difference(path, f"its {_kind(item)} would not come back the same")
            rest = [other for other in rest if other is not match]
        return _Difference(path, "it would come back with more items") if rest else None

    def _in_object(self, before: Any, after: Any, path: str) -> Optional[_Difference]:
        if callable(before) and hasattr(before, "__qualname__"):
            return _Difference(path, f"{_kind(before)} would come back as another one")
        try:
            function, arguments, state, *items = _reduce(before)
            other_function, other_arguments, other_state, *other_items = _reduce(after)
        except Exception as error:  # whatever the value's own methods raise
            reason = f"{_kind(before)} cannot be taken apart ({type(error).__name__}: {error})"
            return _Difference(path, reason)
        parts = [function, arguments, *items]
        other_parts = [other_function, other_arguments, *other_items]
        return self._in_state(state, other_state, path) or self._parts(parts, other_parts, path)

    def _parts(self, before: List[Any], after: List[Any], path: str) -> Optional[_Difference]:
        found = (self.difference(item, other, path) for item, other in zip(before, after))
        return next(filter(None, found), None)

    def _in_state(self, before: Any, after: Any, path: str) -> Optional[_Difference]:
        """Attributes, so that a message can say ``argument 1.callback``."""
        before, after = before or {}, after or {}
        if type(before) is not dict or type(after) is not dict:
            return self.difference(before, after, path)
        if set(before) != set(after):
            return _Difference(path, _what_is_lost(before, after))
        found = (self.difference(before[name], after[name], f"{path}.{name}") for name in before)
        return next(filter(None, found), None)


_NONE = object()
_TWICE = "it occurs in several places, and would come back as several objects"


def _reduce(value: Any) -> Tuple[Any, Any, Any, List[Any], List[Any]]:
    """What pickle makes of an object: function, arguments, state, list items, dict items."""
    import copyreg  # lazy: loaded by jsonpickle already

    reducer: Any = copyreg.dispatch_table.get(type(value))  # type: ignore[attr-defined,unused-ignore]
    reduced: Any = reducer(value) if reducer else value.__reduce_ex__(4)
    if isinstance(reduced, str):  # the name of a global, which is the same or is none
        return reduced, None, None, [], []
    function, arguments, state, items, pairs = (*reduced, None, None, None)[:5]
    return function, arguments, state, list(items or ()), list(map(list, pairs or ()))


def _what_is_lost(before: Dict[Any, Any], after: Dict[Any, Any]) -> str:
    lost = [key for key in before if key not in after]
    if not lost:
        return "it would come back with more items"
    return f"{lost[0]!r:.50}, {_kind(before[lost[0]])}, would not come back"


def _kind(value: Any) -> str:
    name = type(value).__qualname__
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"


def _is_hashable(value: Any) -> bool:
    """Whether it is a value rather than a thing, so that two equal ones are as good as one twice."""
    own_hash: Any = type(value).__hash__
    return own_hash is not None and own_hash is not object.__hash__


def _all_of(roots: Roots) -> str:
    return next(iter(roots)) if len(roots) == 1 else "an argument"


def _path_to(culprit: Any, roots: Roots) -> str:
    """Where in ``roots`` the object is, as far as containers and attributes show it."""
    queue: List[Tuple[str, Any]] = list(roots.items())
    seen: Set[int] = set()
    while queue:
        path, item = queue.pop(0)
        if item is culprit:
            return path
        if id(item) in seen or len(seen) > 10_000:
            continue
        seen.add(id(item))
        if isinstance(item, dict):
            queue.extend((f"{path}[{key!r:.50}]", value) for key, value in item.items())
        elif isinstance(item, (list, tuple)):
            queue.extend((f"{path}[{index}]", value) for index, value in enumerate(item))
        else:
            attributes = getattr(item, "__dict__", None) or {}
            queue.extend((f"{path}.{name}", value) for name, value in attributes.items())
    return _all_of(roots)


# --- decoding ---


def _restore_plain(data: Dict[str, Any]) -> Any:
    """``object_hook`` for texts without classes; raises _NotPlain for the others."""
    if len(data) == 1:
        (key,) = data
        if key == TUPLE:
            return tuple(data[key])
        if key == SET:
            return set(data[key])
    if not all(map(_is_plain_key, data)):
        raise _NotPlain
    return data


def _restore(text: str) -> Any:
    from jsonpickle.unpickler import Unpickler  # lazy: 50 ms

    class NamedUnpickler(Unpickler):  # type: ignore[misc,unused-ignore]
        def register_classes(self, classes: Dict[str, Any]) -> None:
            self._classes.update(classes)  # before 3.3 jsonpickle ignores the names it is given

    data = json.loads(text)
    classes = {name: _find(name) for name in _names(data)}
    unpickler = NamedUnpickler(keys=True, safe=True, on_missing=_raise_missing)
    try:
        return unpickler.restore(data, classes=classes)
    except errors.DecodingError:
        raise
    except Exception as error:  # whatever the classes' own methods raise
        message = f"A value cannot be decoded: {type(error).__name__}: {error}."
        hint = "Do the caller's codebase and tasks/ have the same classes in the same versions?"
        raise errors.DecodingError(message, hint) from error


def _names(data: Any) -> Set[str]:
    """The classes and functions that ``data`` names."""
    found: Set[str] = set()
    queue = [data]
    while queue:
        item = queue.pop()
        if isinstance(item, list):
            queue.extend(item)
        elif isinstance(item, dict):
            found.update(item[tag] for tag in NAMES if isinstance(item.get(tag), str))
            queue.extend(item.values())
            queue.extend(json.loads(key[len(KEY) :]) for key in item if key.startswith(KEY))
    return found


def _find(name: str) -> Any:
    """The class or function of a dotted name. Raises DecodingError where this program has none."""
    parts = name.split(".")
    for length in range(len(parts) - 1, 0, -1):
        module = _module(".".join(parts[:length]), name)
        if module is None:
            continue
        try:
            return _attribute(module, ".".join(parts[length:]))
        except AttributeError:
            break
    raise _missing(name, "")


def _module(module_name: str, name: str) -> Optional[ModuleType]:
    """The module, None where there is none. The program's own is never imported a second time, which would run it again."""
    if module_name in sys.modules:
        return sys.modules[module_name]
    if module_name == _main_module_name():
        return sys.modules["__main__"]
    from importlib import import_module

    try:
        return import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and (module_name + ".").startswith(error.name + "."):
            return None
        raise _missing(name, f" ({type(error).__name__}: {error})") from error
    except Exception as error:  # whatever the module's code raises
        raise _missing(name, f" ({type(error).__name__}: {error})") from error


def _raise_missing(name: str) -> None:
    raise _missing(name, "")


def _missing(name: str, reason: str) -> errors.DecodingError:
    return errors.DecodingError(
        f"This program has no {name!r}{reason}, which a value that was sent to it needs.",
        "Both codebases need it, in a module of the same name: the caller's and tasks/. "
        "Or pass plain data.",
    )


def _attribute(holder: Any, dotted: str) -> Any:
    for part in dotted.split("."):
        holder = getattr(holder, part)
    return holder


# --- showing ---


def _plain(data: Any) -> Any:
    if isinstance(data, float) and not -_INFINITY < data < _INFINITY:
        return _SPECIAL.get(data, "NaN")
    if isinstance(data, list):
        return [_plain(item) for item in data]
    if not isinstance(data, dict):
        return data
    if len(data) == 1 and isinstance(data.get(TUPLE, data.get(SET)), list):
        return [_plain(item) for item in next(iter(data.values()))]
    return {_plain_key(key): _plain(item) for key, item in data.items()}


_INFINITY = float("inf")
_SPECIAL = {_INFINITY: "Infinity", -_INFINITY: "-Infinity"}


def _plain_key(key: str) -> str:
    if not key.startswith(KEY):
        return key
    inner = json.loads(key[len(KEY) :])
    return inner if isinstance(inner, str) else _dump(_plain(inner))
