"""From ``--device FILE.py:CLASS[,option=value…]`` to an instance of the user's class.

The options are the keyword arguments of the class's ``__init__``; their annotations, or else their
defaults, say how the text is to be read. The user's mistakes are told apart: an option that can't
be is a ConfigError, a file that can't be loaded or an ``__init__`` that fails a DeviceError, which
names file and line.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import sys
import types
import typing
from collections.abc import Iterable
from typing import Any

from pyvmm.errors import ConfigError, DeviceError, PyvmmError
from pyvmm.options import parse_switch
from pyvmm.user_devices.attachment import explain
from pyvmm.user_devices.interface import UserDevice

_TYPES = {int: "NUMBER", float: "NUMBER", bool: "on|off", str: "TEXT"}
_FORM = "it takes FILE.py:CLASS or MODULE:CLASS"


def instances(devices: Iterable[object]) -> tuple[UserDevice, ...]:
    """The devices themselves, of which some may be given as the option's text."""
    found = []
    for device in devices:
        if isinstance(device, str):
            device = load(device)
        if not isinstance(device, UserDevice):
            raise ConfigError(f"devices: {device!r} is no device", "derive it from PioDevice …")
        if not hasattr(device, "_label"):
            raise _no_super(f"device {type(device).__name__}", type(device))
        found.append(device)
    return tuple(found)


def load(text: str) -> UserDevice:
    """An instance of the class that ``text`` names, with the options that it gives."""
    spec, *pairs = text.split(",")
    label = f"--device {spec}"
    source, colon, name = spec.rpartition(":")
    if not colon or not source or not name:
        raise ConfigError(f"{label}: which class?", _FORM)
    module = _module(source, label)
    cls = getattr(module, name, None)
    if not isinstance(cls, type) or not issubclass(cls, UserDevice):
        raise _no_class(module, source, name, label)
    options = _options(cls, pairs, label)
    try:
        device = cls(**options)
    except PyvmmError as error:
        error.message = f"{label}: {error.message}"
        raise
    except (Exception, SystemExit) as error:
        explained = explain(error, label)
        explained.report = ()
        raise explained from error
    if not hasattr(device, "_label"):
        raise _no_super(label, cls)
    device._label = label
    return device


def _no_super(label: str, cls: type) -> DeviceError:
    return DeviceError(f"{label}: {cls.__name__}.__init__ doesn't call super().__init__()")


def _no_class(module: types.ModuleType, source: str, name: str, label: str) -> DeviceError:
    there = [
        each
        for each, value in vars(module).items()
        if isinstance(value, type)
        and issubclass(value, UserDevice)
        and value.__module__ == module.__name__
    ]
    found = f"it has {', '.join(there)}" if there else "it has no class derived from a device's"
    what = "is no device" if hasattr(module, name) else "isn't there"
    return DeviceError(f"{label}: {name} {what} in {source}", found)


def _module(source: str, label: str) -> types.ModuleType:
    is_file = source.endswith(".py") or os.sep in source
    try:
        return _import_file(source) if is_file else _import_module(source)
    except FileNotFoundError as error:
        if error.filename != source:
            raise explain(error, label) from error
        raise DeviceError(f"{label}: {source} doesn't exist") from error
    except SyntaxError as error:
        place = f"{os.path.relpath(error.filename)}:{error.lineno}" if error.filename else ""
        raise DeviceError(f"{label}: {type(error).__name__}: {error.msg}", place) from error
    except ModuleNotFoundError as error:
        if is_file or error.name is None or not f"{source}.".startswith(f"{error.name}."):
            raise _quietly(explain(error, label)) from error
        raise DeviceError(f"{label}: there is no module {error.name}") from error
    except (Exception, SystemExit) as error:
        raise _quietly(explain(error, label)) from error


def _quietly(error: DeviceError) -> DeviceError:
    """One line is enough: what failed is at the place that it names."""
    error.report = ()
    return error


def _import_file(path: str) -> types.ModuleType:
    """Once for each file, however many devices are in it. It finds its neighbours."""
    real = os.path.realpath(path)
    name = f"pyvmm_device:{real}"
    if name in sys.modules:
        return sys.modules[name]
    if not os.path.exists(real):
        raise FileNotFoundError(2, "no such file", path)
    spec = importlib.util.spec_from_file_location(name, os.path.abspath(path))
    if spec is None or spec.loader is None:
        raise ImportError("not a Python file")
    module = importlib.util.module_from_spec(spec)
    _look_into(os.path.dirname(real))
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _import_module(name: str) -> types.ModuleType:
    _look_into(os.getcwd())
    return importlib.import_module(name)


def _look_into(directory: str) -> None:
    """Last, so that nothing in it takes the place of a module that others import."""
    if directory not in sys.path:
        sys.path.append(directory)


def _options(cls: type[UserDevice], pairs: list[str], label: str) -> dict[str, Any]:
    parameters = _parameters(cls)
    found: dict[str, Any] = {}
    for pair in pairs:
        key, separator, text = pair.partition("=")
        if key not in parameters or not separator:
            known = ", ".join(f"{name}={_kind(each)}" for name, each in parameters.items())
            raise ConfigError(
                f"{label}: {pair!r} is not understood",
                f"it takes {known}" if known else "it takes no options",
            )
        found[key] = _convert(text, parameters[key], f"{label},{key}")
    for name, each in parameters.items():
        if each.default is each.empty and name not in found:
            raise ConfigError(f"{label}: {name}= is missing", f"such as {name}={_kind(each)}")
    return found


def _parameters(cls: type[UserDevice]) -> dict[str, inspect.Parameter]:
    """The keyword arguments of ``__init__``; of the next class's, too, if it hands on others."""
    found: dict[str, inspect.Parameter] = {}
    for each in cls.__mro__:
        init = each.__dict__.get("__init__")
        if init is None or each is UserDevice:
            continue
        parameters = list(inspect.signature(init).parameters.values())[1:]
        try:
            hints = typing.get_type_hints(init)
        except Exception:  # an annotation for a type checker alone
            hints = {}
        for parameter in parameters:
            if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                hint = hints.get(parameter.name, parameter.empty)
                found.setdefault(parameter.name, parameter.replace(annotation=hint))
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            break
    return found


def _wanted(parameter: inspect.Parameter) -> list[Any]:
    """The types that the text may be of."""
    hint, default = parameter.annotation, parameter.default
    if hint is not parameter.empty and hint is not Any:
        if typing.get_origin(hint) in (typing.Union, types.UnionType):
            return [each for each in typing.get_args(hint) if each is not type(None)]
        return [hint]
    if default is not parameter.empty and default is not None:
        return [type(default)]
    return [int, str]


def _kind(parameter: inspect.Parameter) -> str:
    return "|".join(dict.fromkeys(_TYPES.get(each, "TEXT") for each in _wanted(parameter)))


def _convert(text: str, parameter: inspect.Parameter, label: str) -> Any:
    for wanted in _wanted(parameter):
        try:
            if wanted is bool:
                return parse_switch(text, label)
            if wanted is int:
                return int(text, 0)
            if isinstance(wanted, type):
                return wanted(text)
            return text
        except (ValueError, TypeError, PyvmmError):
            continue
    raise ConfigError(f"{label}: {text!r} is not understood", f"it takes {_kind(parameter)}")
