"""How `make soak` judges what iperf3 and fio say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.soak.pulse import Pulse
from tests.soak.trial import COMPLAINTS, SoakError, fio_outcome, iperf_rates

MB = 1_000_000


def flow(*counts: int, key: str = "sum", sender: bool = False) -> dict[str, Any]:
    flows = [{key: {"bytes": count, "seconds": 1.0, "sender": sender}} for count in counts]
    return {"intervals": flows}


def report(*counts: int) -> str:
    """Of a client that receives."""
    return json.dumps(flow(*counts))


def test_a_rate_is_what_arrived() -> None:
    assert iperf_rates(report(2 * MB, 4 * MB), 2) == {"out": 3.0}
    sent = {**flow(0, 9 * MB, sender=True), "server_output_json": flow(2 * MB, 4 * MB)}
    assert iperf_rates(json.dumps(sent), 2) == {"in": 3.0}


def test_the_moment_after_the_last_second_may_be_empty() -> None:
    intervals = flow(MB, MB, MB, 0)
    intervals["intervals"][-1]["sum"]["seconds"] = 0.01
    assert iperf_rates(json.dumps(intervals), 3) == {"out": 1.0}


@pytest.mark.parametrize("counts", [(MB, 0, MB), (MB,), ()])
def test_a_stall_and_a_connection_that_ended_early(counts: tuple[int, ...]) -> None:
    with pytest.raises(SoakError):
        iperf_rates(report(*counts), 3)


def test_patience() -> None:
    assert iperf_rates(report(MB, 0, 0, 4 * MB), 4, patience=2)
    with pytest.raises(SoakError):
        iperf_rates(report(MB, 0, 0, 0), 4, patience=2)


def test_a_stall_in_one_of_two_directions() -> None:
    both = flow(MB, 0, MB, key="sum_bidir_reverse") | {"server_output_json": flow(MB, MB, MB)}
    with pytest.raises(SoakError, match=r"out, MB in each of 3 s: 1\.0, 0\.0, 1\.0"):
        iperf_rates(json.dumps(both), 3)


def test_iperf3s_own_error() -> None:
    with pytest.raises(SoakError, match="control socket has closed"):
        iperf_rates(json.dumps({"error": "control socket has closed"}), 3)


def fio(error: int, read: int) -> str:
    job = {"error": error, "read": {"io_bytes": read}, "write": {"io_bytes": 4 << 20}}
    return "fio: something first\n" + json.dumps({"jobs": [job]})


def test_fio() -> None:
    assert fio_outcome(fio(0, 3 << 20)) == "4 MiB written, 3 MiB read back and right"
    with pytest.raises(SoakError, match="error 84"):
        fio_outcome(fio(84, 3 << 20))
    with pytest.raises(SoakError, match="nothing was read back"):
        fio_outcome(fio(0, 0))


@pytest.mark.parametrize(
    "line",
    [
        "blk_update_request: I/O error, dev vdb, sector 8 op 0x1:(WRITE)",
        "NETDEV WATCHDOG: eth0 (virtio_net): transmit queue 0 timed out",
        'irq 5: nobody cared (try booting with the "irqpoll" option)',
        "virtio_net virtio2: output.0:id 7 is not a head!",
        "INFO: task jbd2/vda-8:170 blocked for more than 120 seconds.",
    ],
)
def test_what_a_kernel_may_not_say(line: str) -> None:
    assert COMPLAINTS.search(line)


def test_what_it_may_say() -> None:
    assert not COMPLAINTS.search("clocksource: timekeeping watchdog on CPU1: Marking clocksource")


def test_the_pulse_ends_with_the_console(tmp_path: Path) -> None:
    pulse = Pulse(tmp_path / "gone")
    pulse.run()
    assert pulse.gaps() == ""
