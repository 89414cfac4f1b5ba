"""The formats of a trace: what they look like, and that others can read them."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm.trace.jsonl import JsonLines
from pyvmm.trace.perfetto import CONSOLES, DEVICES, QUEUES, RUN, VCPUS, Perfetto
from pyvmm.trace.text import Text
from pyvmm.trace.tracer import Format

Event = dict[str, Any]

HEADER: Event = {
    "trace": "pyvmm",
    "version": 1,
    "started": "2026-11-21T16:00:00.123+00:00",
    "kernel": "bzImage",
    "command_line": "console=ttyS0 quiet",
    "cpus": 2,
    "memory": 256 << 20,
    "host": "hardware KVM",
}
LCR: Event = {
    "ns": 12_345_678,
    "kind": "exit",
    "vcpu": 0,
    "rip": 0x1000F3,
    "reason": "IO",
    "device": "serial COM1",
    "register": "LCR",
    "access": "write",
    "address": 0x3FB,
    "size": 1,
    "value": 0x83,
    "meaning": "8 bits, no parity, DLAB",
    "took": 3_400,
}
SYMBOL: Event = {
    "ns": 12_400_000,
    "kind": "exit",
    "vcpu": 1,
    "rip": 0xFFFF_FFFF_8100_0000,
    "symbol": "start_kernel+0x12",
    "reason": "MMIO",
    "device": "virtio-blk vda",
    "register": "device_status",
    "access": "read",
    "address": 0xC000_0014,
    "size": 1,
    "value": 0x0F,
    "meaning": "",
    "took": 2_000_000,
}
BURST: Event = {
    **LCR,
    "register": "THR",
    "count": 3,
    "data": "414243",
    "value": 0x41,
    "meaning": "'ABC'",
}
NOBODY: Event = {**LCR, "device": "", "register": "port", "address": 0x1F0, "access": "read"}
CRASH: Event = {
    "ns": 13_000_000,
    "kind": "exit",
    "vcpu": 0,
    "rip": 0x10,
    "reason": "INTERNAL_ERROR",
    "device": "",
    "register": "",
    "meaning": "KVM can't emulate an instruction",
    "took": 5_000,
}
REQUEST: Event = {
    "ns": 14_000_000,
    "kind": "request",
    "device": "virtio-blk vda",
    "queue": 0,
    "what": "read 8 sectors at 2048",
    "bytes": 4096,
    "took": 68_100,
    "depth": 2,
    "status": "ok",
}
OTHERS: list[Event] = [
    {"ns": 0, "kind": "phase", "phase": "setup", "detail": ""},
    {"ns": 1_000, "kind": "phase", "phase": "entry", "detail": "again"},
    {"ns": 15_000_000, "kind": "interrupt", "device": "serial COM1", "gsi": 4, "level": 1},
    {"ns": 15_000_001, "kind": "interrupt", "device": "", "gsi": 4, "level": 0},
    {"ns": 15_000_002, "kind": "interrupt", "device": "virtio-rng", "msi": 1, "vector": 0x26},
    {"ns": 15_000_003, "kind": "doorbell", "device": "virtio-rng", "queue": 0},
    {"ns": 15_000_004, "kind": "console", "console": "COM1", "text": 'say "Grüße"'},
    {"ns": 15_000_005, "kind": "memory", "resident": 3 << 20},
    {**REQUEST, "status": "I/O error", "depth": 1},
    {**REQUEST, "device": "virtio-net net0", "took": 0, "depth": 0, "what": "receive 60 bytes"},
]
EVENTS = [LCR, SYMBOL, BURST, NOBODY, CRASH, REQUEST, *OTHERS]
END: Event = {
    "ns": 16_000_000,
    "kind": "end",
    "reason": "powered off",
    "detail": "",
    "status": 0,
    "dropped": 0,
}


def written(format_: Format, events: list[Event] = EVENTS) -> str:
    return format_.begin(HEADER) + format_.events(events) + format_.end(END)


class TestJsonLines:
    def test_each_line_is_an_event(self) -> None:
        lines = [json.loads(line) for line in written(JsonLines()).splitlines()]
        assert lines == [HEADER, *EVENTS, END]

    def test_keys_stay_in_order(self) -> None:
        """The fast way of writing an access and the encoder's are one."""
        for event in EVENTS:
            line = JsonLines().events([event])
            assert list(json.loads(line)) == list(event)

    @given(device=st.text(), register=st.text(), meaning=st.text(), symbol=st.none() | st.text())
    def test_any_text_comes_through(
        self, device: str, register: str, meaning: str, symbol: str | None
    ) -> None:
        event = {**LCR, "device": device, "register": register, "meaning": meaning}
        if symbol is not None:
            event["symbol"] = symbol
        line = JsonLines().events([event])
        assert line.count("\n") == 1
        assert json.loads(line) == event


class TestText:
    @pytest.mark.parametrize(
        ("event", "words"),
        [
            (LCR, "0.012346 cpu 0 io serial COM1 LCR ← 0x83: 8 bits, no parity, DLAB 3.4 µs"
                  " 1000f3"),
            (SYMBOL, "0.012400 cpu 1 mmio virtio-blk vda device_status → 0x0f 2.0 ms"
                     " start_kernel+0x12"),
            (BURST, "0.012346 cpu 0 io serial COM1 THR ← 0x41 ×3: 'ABC' 3.4 µs 1000f3"),
            (NOBODY, "0.012346 cpu 0 io port 0x1f0 → 0x83: 8 bits, no parity, DLAB 3.4 µs 1000f3"),
            (CRASH, "0.013000 cpu 0 internal error KVM can't emulate an instruction 5.0 µs 10"),
            (REQUEST, "0.014000 request virtio-blk vda queue 0: read 8 sectors at 2048"
                      " (2 in flight) 68.1 µs"),
            (OTHERS[0], "0.000000 phase ── setup"),
            (OTHERS[1], "0.000001 phase ── entry: again"),
            (OTHERS[2], "0.015000 interrupt serial COM1 GSI 4 ↑"),
            (OTHERS[3], "0.015000 interrupt GSI 4 ↓"),
            (OTHERS[4], "0.015000 interrupt virtio-rng MSI-X 1 → vector 0x26"),
            (OTHERS[5], "0.015000 doorbell virtio-rng queue 0"),
            (OTHERS[6], '0.015000 console COM1 │ say "Grüße"'),
            (OTHERS[7], "0.015000 memory 3.0 MiB of RAM in use"),
            (OTHERS[7] | {"resident": 8192}, "0.015000 memory 8 KiB of RAM in use"),
            (OTHERS[8], "0.014000 request virtio-blk vda queue 0: read 8 sectors at 2048,"
                        " I/O error 68.1 µs"),
            (OTHERS[9], "0.014000 request virtio-net net0 queue 0: receive 60 bytes"),
        ],
    )  # fmt: skip
    def test_a_line(self, event: Event, words: str) -> None:
        line = Text().events([event])
        assert line.endswith("\n")
        assert line.split() == words.split()

    def test_head_and_foot(self) -> None:
        lines = written(Text(), []).splitlines()
        started = HEADER["started"]
        assert lines[0] == f"# bzImage: 2 vCPUs, 256 MiB, on hardware KVM, {started}"
        assert lines[1] == "# console=ttyS0 quiet"
        assert lines[2].split() == ["#", "seconds", "cpu", "what", "took", "at"]
        assert lines[3] == "# 0.016000: powered off (status 0)"

    def test_columns_are_under_their_titles(self) -> None:
        titles = Text().begin(HEADER).splitlines()[-1]
        line = Text().events([LCR])
        assert line.index("3.4 µs") + len("3.4 µs") == titles.index("took") + len("took")
        assert line.index("cpu 0") == titles.index("cpu")
        assert line.index("1000f3") == titles.index(" at") + 1


def cut(text: str) -> list[Event]:
    """As Perfetto reads a trace that ends anywhere: whole events in an array that isn't closed."""
    whole = text[: text.rindex("\n") + 1].rstrip().rstrip(",")
    events: list[Event] = json.loads(whole if whole.endswith("]") else f"{whole}]")
    return events


class TestPerfetto:
    def test_a_complete_trace_is_an_array(self) -> None:
        events = json.loads(written(Perfetto()))
        assert all({"ph", "pid", "name"} <= set(event) for event in events)

    @given(st.integers(2))
    def test_a_trace_that_was_cut_off(self, length: int) -> None:
        text = written(Perfetto())
        length = 2 + length % (len(text) - 2)
        complete = json.loads(text)
        assert cut(text[:length]) == complete[: len(cut(text[:length]))]

    def test_nothing_happened(self) -> None:
        json.loads(written(Perfetto(), []))

    def test_every_event_is_on_a_track_that_has_a_name(self) -> None:
        events = json.loads(written(Perfetto()))
        groups = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}
        assert set(groups) == {RUN, VCPUS, DEVICES, QUEUES, CONSOLES}
        tracks = {
            (e["pid"], e["tid"]): e["args"]["name"] for e in events if e["name"] == "thread_name"
        }
        assert tracks.keys() >= {(e["pid"], e["tid"]) for e in events if e["ph"] in "XBEi"} - {
            (RUN, 0)
        }
        assert {"vCPU 0", "vCPU 1", "serial COM1", "virtio-blk vda (vCPU 1)"} <= {*tracks.values()}
        assert {"virtio-blk vda queue 0", "COM1", "phases", "nobody"} <= {*tracks.values()}

    def test_an_exit_is_on_the_vcpus_and_on_the_devices_track(self) -> None:
        perfetto = Perfetto()
        perfetto.begin(HEADER)
        events = [e for e in cut("[\n" + perfetto.events([LCR])) if e["ph"] == "X"]
        assert [(e["pid"], e["name"]) for e in events] == [
            (VCPUS, "serial COM1 LCR ← 0x83: 8 bits, no parity, DLAB"),
            (DEVICES, "LCR ← 0x83: 8 bits, no parity, DLAB"),
        ]
        assert [(e["ts"], e["dur"], e["args"]) for e in events] == [
            (12_345.678, 3.4, {"at": "0x1000f3"})
        ] * 2

    def test_requests_that_overlap_have_tracks_of_their_own(self) -> None:
        def request(start: int, end: int) -> Event:
            return {**REQUEST, "ns": start, "took": end - start}

        requests = [
            request(0, 9),
            request(5, 12),
            request(10, 20),
            request(10, 20),
            request(15, 30),
        ]
        events = json.loads(written(Perfetto(), requests))
        tracks = {e["tid"]: e["args"]["name"] for e in events if e["name"] == "thread_name"}
        first, second = "virtio-blk vda queue 0", "virtio-blk vda queue 0 (2)"
        slices = [e for e in events if e["pid"] == QUEUES and e["ph"] == "X"]
        assert [tracks[e["tid"]] for e in slices] == [first, second, first, first, second]
        assert [e["name"] for e in slices] == ["read 8 sectors at 2048"] * 5
        assert [e["args"]["value"] for e in events if e["ph"] == "C"] == [2, 1] * 5

    @given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 20)), max_size=30))
    def test_slices_on_a_track_do_not_overlap(self, times: list[tuple[int, int]]) -> None:
        requests = [{**REQUEST, "ns": 1000 * start, "took": 1000 * took} for start, took in times]
        events = json.loads(written(Perfetto(), requests))
        lanes: dict[int, set[tuple[float, float]]] = {}
        for event in events:
            if event["pid"] == QUEUES and event["ph"] == "X":
                lanes.setdefault(event["tid"], set()).add((event["ts"], event["ts"] + event["dur"]))
        for lane in lanes.values():
            for (_, end), (start, _) in pairwise(sorted(lane)):
                assert end <= start

    def test_phases_are_slices_that_follow_each_other(self) -> None:
        phases = [e for e in json.loads(written(Perfetto())) if e["ph"] in "BE"]
        assert [(e["ph"], e["name"]) for e in phases] == [
            *(("B", "setup"), ("E", "setup"), ("B", "entry"), ("E", "entry"))
        ]

    @given(device=st.text(), meaning=st.text(), symbol=st.text(min_size=1))
    def test_any_text_comes_through(self, device: str, meaning: str, symbol: str) -> None:
        event = {**LCR, "device": device, "meaning": meaning, "symbol": symbol}
        events = [e for e in json.loads(written(Perfetto(), [event])) if e["ph"] == "X"]
        assert {e["args"]["at"] for e in events} == {symbol}
        assert events[0]["name"].endswith(f": {meaning}" if meaning else "0x83")
