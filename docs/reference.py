"""Writes the reference in docs/api.md, from the docstrings of what ``pyvmm`` exports:

python docs/reference.py          brings the page up to date
python docs/reference.py --check  fails if it isn't
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
from collections.abc import Callable, Iterator
from enum import Enum
from pathlib import Path

import pyvmm
from pyvmm.user_devices import interface

PAGE = Path(__file__).parent / "api.md"
START, END = "<!-- reference: made by docs/reference.py -->\n", "<!-- end of the reference -->"


SECTIONS = {
    "Machines": ["Machine", "Console", "CommandResult", "VirtualCpu", "GuestMemory", "Stats"],
    "How it ended": ["Outcome", "Reason"],
    "Devices": ["PioDevice", "MmioDevice", "PciDevice", "VirtioDevice"],
    "Errors": [
        "ExpectError",
        "CommandError",
        "PyvmmError",
        "ConfigError",
        "ImageError",
        "HostError",
        "DeviceError",
    ],
}
MADE_BY_PROGRAMS = ("Machine", "PioDevice", "MmioDevice", "PciDevice", "VirtioDevice")
"""Classes whose constructor is of interest; the others' are ours."""
SHARED = {
    "All devices": (
        interface.UserDevice,
        "What the four kinds below have in common. `lock` is held whenever the machine calls one "
        "of a device's methods; threads and programs take it to look at the device.",
    ),
    "Devices with registers": (interface._RegisterDevice, "All but a VirtioDevice."),
    "Devices at an address of their own": (
        interface._PlacedDevice,
        "A PioDevice or an MmioDevice.",
    ),
}
"""What comes before the devices: base classes without a name of their own for users."""


def plain(docstring: str | None) -> str:
    """A docstring as Markdown: roles and double backticks become code, blocks are fenced."""
    text = inspect.cleandoc(docstring or "")
    text = re.sub(r":\w+:`~?([^`]+)`", lambda role: f"`{role[1].rsplit('.', 1)[-1]}`", text)
    text = text.replace("``", "`")
    return re.sub(r"(?:^ {4}.*\n?|^\n(?= {4}))+", fenced, text, flags=re.M)


def fenced(block: re.Match[str]) -> str:
    return f"```text\n{inspect.cleandoc(block[0])}\n```\n"


def annotation(hint: object) -> str:
    """As it stands in the source."""
    return getattr(hint, "__forward_arg__", None) or str(hint)


def parameter(found: inspect.Parameter) -> str:
    """As it stands in the source."""
    stars = {found.VAR_POSITIONAL: "*", found.VAR_KEYWORD: "**"}.get(found.kind, "")
    text = stars + found.name
    if found.annotation is not found.empty:
        text += f": {annotation(found.annotation)}"
    if found.default is not found.empty:
        text += f" = {found.default!r}"
    return text


def signature(name: str, function: Callable[..., object]) -> str:
    """As it is called; one argument a line if there are many."""
    found = inspect.signature(function)
    parameters, keywords_only = [], False
    for each in found.parameters.values():
        if each.kind is each.KEYWORD_ONLY and not keywords_only:
            keywords_only = True
            parameters.append("*")
        if each.name != "self":
            parameters.append(parameter(each))
    text = ", ".join(parameters)
    if len(text) > 80:
        text = "\n    " + ",\n    ".join(parameters) + ",\n"
    returns = annotation(found.return_annotation)
    known = found.return_annotation is not found.empty and returns != "None"
    return f"{name}({text})" + (f" -> {returns}" if known else "")


def members(cls: type) -> Iterator[tuple[str, str]]:
    """(heading, docstring) of each public method and property that ``cls`` itself has."""
    for name, member in vars(cls).items():
        if isinstance(member, property) and not name.startswith("_"):
            returns = annotation(inspect.signature(member.fget).return_annotation)  # type: ignore
            yield f"{name}: {returns}", member.__doc__ or ""
        elif inspect.isfunction(member) and not name.startswith("_"):
            yield signature(name, member), member.__doc__ or ""


def attributes(cls: type) -> Iterator[tuple[str, str]]:
    """(declaration, text below it) of each public attribute in the body of ``cls``."""
    source = inspect.getsource(cls)
    (tree,) = ast.parse(source).body
    assert isinstance(tree, ast.ClassDef)
    for each, following in zip(tree.body, [*tree.body[1:], None], strict=True):
        if isinstance(each, (ast.AnnAssign, ast.Assign)):
            text = ""
            if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
                text = inspect.cleandoc(str(following.value.value))
            declared = ast.get_source_segment(source, each) or ""
            yield re.sub(r"ClassVar\[(.*)\]", r"\1", declared), text


def describe_attributes(cls: type) -> Iterator[str]:
    """Those with a text each with it, the others together."""
    plain_ones = [declared for declared, text in attributes(cls) if not text]
    if plain_ones:
        yield "```text\n" + "\n".join(plain_ones) + "\n```"
    for declared, text in attributes(cls):
        if text:
            yield f"```text\n{declared}\n```"
            yield plain(text)


def describe_shared() -> Iterator[str]:
    """The reference's sections on the devices' base classes."""
    for title, (cls, text) in SHARED.items():
        yield f"#### {title}"
        yield text
        yield from describe_attributes(cls)
        yield from describe_members(cls)


def describe_members(cls: type) -> Iterator[str]:
    for heading, docstring in members(cls):
        if docstring and not docstring.startswith("For the machine"):
            yield f"```text\n{heading}\n```"
            yield plain(docstring)


def describe(name: str) -> Iterator[str]:
    """The reference's section on one of the exported classes."""
    cls = getattr(pyvmm, name)
    yield f"#### {name}"
    if name in MADE_BY_PROGRAMS:
        yield f"```text\n{signature(name, cls.__init__)}\n```"
    fields = getattr(cls, "_fields", ())
    if fields:
        hints = [f"{field}: {annotation(cls.__annotations__[field])}" for field in fields]
        yield "```text\n" + "\n".join(hints) + "\n```"
    yield plain(cls.__doc__)
    if issubclass(cls, Enum):
        yield "\n".join(f"* `{name}.{each.name}`: {each.value}" for each in cls)
        return
    if issubclass(cls, interface.UserDevice):
        yield from describe_attributes(cls)
    yield from describe_members(cls)


def reference() -> str:
    """All of it."""
    missing = set(pyvmm.__all__) - {name for names in SECTIONS.values() for name in names}
    assert not missing, f"docs/reference.py: in no section: {', '.join(sorted(missing))}"
    texts = []
    for heading, names in SECTIONS.items():
        texts.append(f"### {heading}")
        if heading == "Devices":
            texts += [text.strip() for text in describe_shared()]
        texts += [text.strip() for name in names for text in describe(name)]
    return "\n\n".join(filter(None, texts))


def page() -> str:
    """The page as it should be."""
    text = PAGE.read_text()
    start, end = text.index(START) + len(START), text.index(END)
    return f"{text[:start]}\n{reference()}\n\n{text[end:]}"


if __name__ == "__main__":
    wanted = page()
    if "--check" in sys.argv[1:]:
        if wanted != PAGE.read_text():
            sys.exit("docs/api.md: out of date; run python docs/reference.py")
    else:
        PAGE.write_text(wanted)
