"""The benchmarks' own arithmetic; what they measure is nobody's to assert."""

from __future__ import annotations

import pytest

from tests.bench import linux
from tests.bench.footprint import resident_beyond_ram
from tests.bench.guest import Series, parse, rows
from tests.bench.net import big_packet, checksum
from tests.bench.table import LESS, MORE, PYVMM, Row, from_json, ratio, render, to_json
from tests.bench.vmm import BenchError, Line

ROW = Row("walk", "km/h", MORE, {PYVMM: [4.0, 6.0, 2.0], "dog": [2.0, 2.0, 2.0], "cat": []})


def test_a_ratio_is_formed_within_each_round() -> None:
    paired = Row("", "", LESS, {PYVMM: [10.0, 100.0, 30.0], "dog": [5.0, 50.0, 10.0]})
    assert ratio(paired, "dog") == (2.0, 2.0, 3.0)
    assert ratio(ROW, "dog") == (2.0, 1.0, 3.0)


@pytest.mark.parametrize("other", ["cat", "fish"])
def test_who_was_not_measured_has_no_ratio(other: str) -> None:
    assert ratio(ROW, other) is None


def test_the_table() -> None:
    head, rule, line = render([ROW]).splitlines()
    assert head.split(" | ")[-3:] == ["÷ dog           ", "÷ cat", "better |"]
    assert set(rule) == {"|", "-"}
    assert line == "| walk | 4.00  | km/h | 2.00 (1.00–3.00) | –     | more   |"
    assert len(head) == len(rule) == len(line)


def test_rows_survive_being_written_to_a_file() -> None:
    assert from_json(to_json([ROW])) == [ROW]


LINES = [
    Line(1.0, "some firmware's banner"),
    Line(1.0, "began: 3e8"),
    Line(1.5, "steps: a 64"),
    Line(3.0, "ended: bb8"),
]


def test_a_guests_lines() -> None:
    report = parse(LINES)
    assert report.frequency == 1000  # 2000 ticks in 2 s
    assert report.rate("steps") == 100  # 10 in 100 ticks


def test_a_guest_that_failed_is_not_measured() -> None:
    with pytest.raises(BenchError, match="FAIL: steps"):
        parse([*LINES, Line(2.0, "FAIL: steps")])


def test_counts_and_durations_become_rows() -> None:
    reports = {PYVMM: [parse(LINES)]}
    (rate,) = rows(reports, {"steps": Series("steps", "k/s", 1e-3)}, MORE)
    (duration,) = rows(reports, {"steps": Series("steps", "ms", 1e3)}, LESS)
    assert rate.samples == {PYVMM: [pytest.approx(0.1)]}
    assert duration.samples == {PYVMM: [pytest.approx(10.0)]}  # 10 ticks


def test_the_guests_ram_is_not_counted() -> None:
    smaps = """\
7f0000000000-7f0010000000 rw-s 00000000 00:01 5 /memfd:pyvmm-guest-ram
Size:             262144 kB
Rss:               99999 kB
55d000000000-55d000100000 r-xp 00000000 00:01 6 /usr/bin/python3.11
Size:               1024 kB
Rss:                 512 kB
"""
    assert resident_beyond_ram(smaps) == 0.5


def test_the_big_packets_header_is_one_that_a_network_stack_accepts() -> None:
    packet = big_packet()
    virtio, ip = packet[:10], packet[24:44]
    assert len(packet) == 10 + 14 + 20 + 20 + 65160
    assert virtio[0] == 1
    assert checksum(ip) == 0xFFFF


def test_what_fio_and_iperf3_say_in_linux() -> None:
    terse = "3;fio-3.33;bench;0;0;" + ";".join(str(n) for n in range(6, 131))
    text = [f"{name}:{terse}" for name in linux.FIO] + [
        "send:[  5]   0.00-3.00   sec  300 MBytes  840000 Kbits/sec   17        sender",
        "send:[  5]   0.00-3.01   sec  298 MBytes  800000 Kbits/sec            receiver",
        "receive:[  5]   0.00-3.00   sec  150 MBytes  400000.5 Kbits/sec       receiver",
    ]
    lines = [Line(0.0, line) for line in text]
    assert linux.figures(lines) == {
        "fio: sequential read, 1 MiB": pytest.approx(7 * 1.024e-3),
        "fio: sequential write, 1 MiB": pytest.approx(48 * 1.024e-3),
        "fio: random read, 4 KiB, depth 32": pytest.approx(8e-3),
        "fio: random write, 4 KiB, depth 32": pytest.approx(49e-3),
        "iperf3: guest to host": pytest.approx(100.0),
        "iperf3: host to guest": pytest.approx(50.0, rel=1e-3),
    }
    with pytest.raises(BenchError, match="no figure for 'iperf3: host to guest'"):
        linux.figures(lines[:-1])


def test_what_linux_is_told_to_do_fits_on_its_command_line() -> None:
    assert len(linux.append()) < 2048  # COMMAND_LINE_SIZE of x86
    assert linux.append().count('"') == 2
