"""One way to issue an ioctl, and to turn a C structure into plain Python values and back."""

from __future__ import annotations

import errno
from typing import Any

from pyvmm.errors import KvmError
from pyvmm.kvm._kvm import ffi, lib

_HINTS = {
    errno.ENOMEM: "the host is out of memory",
    errno.EMFILE: "raise the limit on open files: ulimit -n",
    errno.EBUSY: "another hypervisor may be using the CPU's virtualisation",
}


def ioctl(fd: int, name: str, argument: Any = ffi.NULL) -> int:
    """Issue ``name`` with a pointer; its result. Raises KvmError. EINTR is tried again."""
    return _checked(lib.pyvmm_ioctl, fd, name, argument)


def ioctl_value(fd: int, name: str, value: int = 0) -> int:
    """Issue ``name`` with a number instead of a pointer."""
    return _checked(lib.pyvmm_ioctl_value, fd, name, value)


def _checked(call: Any, fd: int, name: str, argument: Any) -> int:
    request = getattr(lib, name)
    while True:
        result: int = call(fd, request, argument)
        if result >= 0:
            return result
        if result != -errno.EINTR:
            raise KvmError(name, -result, _HINTS.get(-result, ""))


def check(name: str, result: int) -> int:
    """``result``, unless it is a negative errno: then KvmError for the ioctl ``name``."""
    if result < 0:
        raise KvmError(name, -result, _HINTS.get(-result, ""))
    return result


def to_plain(value: Any) -> Any:
    """A C structure as a dict of its fields; arrays as lists; numbers as they are."""
    if not isinstance(value, ffi.CData):
        return value
    kind = ffi.typeof(value)
    if kind.kind == "pointer":
        value, kind = value[0], kind.item
    if kind.kind == "array":
        return [to_plain(item) for item in value]
    return {name: to_plain(getattr(value, name)) for name, _ in kind.fields}


def from_plain(pointer: Any, plain: dict[str, Any]) -> Any:
    """Fill the structure behind ``pointer`` from what :func:`to_plain` gave; the pointer.

    Fields that ``plain`` lacks stay as they are. Raises AttributeError for a field that the
    structure lacks.
    """
    for name, value in plain.items():
        if isinstance(value, dict):
            from_plain(ffi.addressof(pointer, name), value)
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            for index, item in enumerate(value):
                from_plain(ffi.addressof(getattr(pointer, name), index), item)
        else:
            setattr(pointer, name, value)
    return pointer
