"""--net as users write it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm.config import MachineConfig
from pyvmm.device_config import NetConfig
from pyvmm.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("tap0", NetConfig("tap0")),
        ("tap,ifname=tap0", NetConfig("tap0")),
        ("vm-1.eth", NetConfig("vm-1.eth")),
        ("tap0,mac=52:54:00:AB:cd:ef", NetConfig("tap0", mac="52:54:00:AB:cd:ef")),
        ("tap,ifname=t,mtu=9000,queues=4", NetConfig("t", mtu=9000, queues=4)),
        ("tap0,transport=mmio", NetConfig("tap0", transport="mmio")),
        ("fd=3", NetConfig(fds=(3,))),
        ("fd=3:4,mtu=68", NetConfig(fds=(3, 4), queues=2, mtu=68)),
    ],
)
def test_cards(text: str, expected: NetConfig) -> None:
    assert NetConfig.parse(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        *("", "tap", "tap,ifname=", "tap,ifname=a b", "tap0,ifname=tap1", "tap%d", "../tap", "."),
        *("sixteen_letters_", "täp", "ifname=tap0", "tap0,", "tap0,mac", "tap0,speed=1"),
        *("tap0,mac=", "tap0,mac=52:54:00:12:34", "tap0,mac=52:54:00:12:34:5g"),
        *("tap0,mac=01:00:5e:00:00:01", "tap0,mac=00:00:00:00:00:00", "tap0,mac=525400123456"),
        *("tap0,mtu=67", "tap0,mtu=65522", "tap0,mtu=x", "tap0,queues=0", "tap0,queues=9"),
        *("tap0,queues=²", "tap0,transport=isa", "fd=", "fd=x", "fd=-1", "fd=3:", "fd=3,queues=1"),
        *("fd=3,ifname=tap0", "fd=1:2:3:4:5:6:7:8:9", "fd=99999999999"),
    ],
)
def test_what_is_no_card(text: str) -> None:
    with pytest.raises(ConfigError, match="--net"):
        NetConfig.parse(text)


@given(st.text(alphabet="tap0fd=:,macqueues1²é \0", max_size=30))
def test_any_text(text: str) -> None:
    try:
        net = NetConfig.parse(text)
    except ConfigError:
        return
    assert bool(net.ifname) != bool(net.fds)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"nets": (NetConfig("tap0"), NetConfig("tap0"))}, "--net: tap0 can't serve twice"),
        ({"nets": (NetConfig(fds=(3,)), NetConfig(fds=(4, 3)))}, "--net: fd 3 can't serve twice"),
        ({"nets": (NetConfig(fds=(3, 3)),)}, "--net: fd 3 can't serve twice"),
        ({"nets": tuple(NetConfig(f"t{n}") for n in range(9))}, "--net: 9 cards are more than 8"),
        ({"name": "a\nb"}, "--name: 'a\\nb' is not plain text"),
    ],
)
def test_machines_that_can_not_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        MachineConfig(kernel="k", **options)
    assert error.value.message == message
