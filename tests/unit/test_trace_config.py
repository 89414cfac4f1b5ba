"""What `--trace` and `--trace-filter` take, and which events a filter lets pass."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm.errors import ConfigError
from pyvmm.trace.config import KINDS, TraceConfig, TraceFilter


@pytest.mark.parametrize(
    ("text", "path", "format_"),
    [
        ("boot.txt", "boot.txt", "text"),
        ("boot.jsonl", "boot.jsonl", "jsonl"),
        ("boot.json", "boot.json", "perfetto"),
        ("-", "-", "text"),
        ("-,format=jsonl", "-", "jsonl"),
        ("x.json,format=text", "x.json", "text"),
    ],
)
def test_the_format_follows_from_the_name(text: str, path: str, format_: str) -> None:
    assert TraceConfig.parse(text) == (path, format_)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "the path is empty"),
        (",format=text", "the path is empty"),
        ("x,format=xml", "format=xml is none of text, jsonl, perfetto"),
        ("x,colour=red", "'colour=red' is not understood"),
    ],
)
def test_a_bad_trace(text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        TraceConfig.parse(text)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "--trace-filter is empty"),
        ("serial", "'serial' is not understood"),
        ("colour=red", "'colour=red' is not understood"),
        ("device=", "the device has no name"),
        ("kind=exits", "kind=exits is none of exit, request"),
        ("vcpu=-1", "'-1' is not a number from 0 to 63"),
        ("vcpu=64", "'64' is not a number from 0 to 63"),
        ("address=com1", "address=com1 is no address"),
        ("address=0x3ff-0x3f8", "is no address and no range"),
        ("address=-1", "is no address"),
        ("address=0x1-0x10000000000000000", "is no address"),
    ],
)
def test_a_bad_filter(text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        TraceFilter.parse(text)


EXIT = {
    "kind": "exit",
    "vcpu": 1,
    "device": "serial COM1",
    "register": "LCR",
    "address": 0x3FB,
    "size": 1,
}


@pytest.mark.parametrize(
    ("text", "event", "wanted"),
    [
        ("device=serial", EXIT, True),
        ("device=com1", EXIT, True),
        ("device=COM1", EXIT, True),
        ("device=pit", EXIT, False),
        ("device=serial,kind=exit,vcpu=1,address=0x3f8-0x3ff", EXIT, True),
        ("device=serial,kind=exit,vcpu=0,address=0x3f8-0x3ff", EXIT, False),
        ("kind=request", EXIT, False),
        ("address=1019", EXIT, True),
        ("address=0x3fc", EXIT, False),
        ("address=0x3fb", {**EXIT, "address": 0x3F8, "size": 4}, True),
        ("address=0x3fc", {**EXIT, "address": 0x3F8, "size": 4}, False),
        ("device=com1", {"kind": "console", "console": "COM1", "text": "hello"}, True),
        ("vcpu=0", {"kind": "interrupt", "device": "PIT", "gsi": 0}, False),
        ("address=0", {"kind": "interrupt", "device": "PIT", "gsi": 0}, False),
        ("device=x", {"kind": "memory", "resident": 4096}, False),
        ("address=0", {"kind": "exit", "vcpu": 0, "device": "", "reason": "SHUTDOWN"}, False),
    ],
)
def test_what_passes(text: str, event: dict[str, Any], wanted: bool) -> None:
    assert TraceFilter.parse(text).passes(event) is wanted


@given(st.text())
def test_any_text_is_understood_or_refused(text: str) -> None:
    for parse in (TraceConfig.parse, TraceFilter.parse):
        with contextlib.suppress(ConfigError):
            parse(text)


@given(
    device=st.none() | st.sampled_from(("serial", "com", "virtio-blk", "x")),
    kind=st.none() | st.sampled_from(KINDS),
    vcpu=st.none() | st.integers(0, 3),
    address=st.none() | st.tuples(st.integers(0, 40), st.integers(0, 40)).map(sorted),
    event=st.fixed_dictionaries(
        {"kind": st.sampled_from(KINDS), "size": st.integers(1, 8)},
        optional={
            "device": st.sampled_from(("", "serial COM1", "virtio-blk vda")),
            "vcpu": st.integers(0, 3),
            "address": st.integers(0, 40),
        },
    ),
)
def test_the_keys_of_a_filter_are_anded(
    device: str | None,
    kind: str | None,
    vcpu: int | None,
    address: list[int] | None,
    event: dict[str, Any],
) -> None:
    """As many conditions as there are keys, each by itself."""
    words: dict[str, str] = {}
    expected = True
    if device is not None:
        words["device"] = device
        expected &= device in event.get("device", "").lower()
    if kind is not None:
        words["kind"] = kind
        expected &= event["kind"] == kind
    if vcpu is not None:
        words["vcpu"] = str(vcpu)
        expected &= event.get("vcpu") == vcpu
    if address is not None:
        words["address"] = f"{address[0]:#x}-{address[1]}"
        touched = (
            set(range(event["address"], event["address"] + event["size"]))
            if ("address" in event)
            else set()
        )
        expected &= bool(touched & set(range(address[0], address[1] + 1)))
    if words:
        text = ",".join(f"{key}={value}" for key, value in words.items())
        assert TraceFilter.parse(text).passes(event) is expected
