"""A trace as JSON lines: one event a line, the header first, as docs/trace.md describes them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from json.encoder import encode_basestring
from typing import Any

_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
_quote = encode_basestring


class JsonLines:
    """The format ``jsonl``."""

    def begin(self, header: dict[str, Any]) -> str:
        return f"{_encode(header)}\n"

    def events(self, events: Iterable[dict[str, Any]]) -> str:
        return "".join([_line(event) for event in events])

    def end(self, event: dict[str, Any]) -> str:
        return f"{_encode(event)}\n"


def _line(event: dict[str, Any]) -> str:
    if "access" not in event or "count" in event:
        return f"{_encode(event)}\n"
    # Nearly every event is an access: what the encoder would write, in a third of its time.
    symbol = f'"symbol":{_quote(event["symbol"])},' if "symbol" in event else ""
    return (
        f'{{"ns":{event["ns"]},"kind":"exit","vcpu":{event["vcpu"]},"rip":{event["rip"]},{symbol}'
        f'"reason":"{event["reason"]}","device":{_quote(event["device"])},'
        f'"register":{_quote(event["register"])},"access":"{event["access"]}",'
        f'"address":{event["address"]},"size":{event["size"]},"value":{event["value"]},'
        f'"meaning":{_quote(event["meaning"])},"took":{event["took"]}}}\n'
    )
