"""A trace as JSON lines: one event a line, the header first, as docs/trace.md describes them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))


class JsonLines:
    """The format ``jsonl``."""

    def begin(self, header: dict[str, Any]) -> str:
        return f"{_ENCODER.encode(header)}\n"

    def events(self, events: Iterable[dict[str, Any]]) -> str:
        encode = _ENCODER.encode
        return "".join(f"{encode(event)}\n" for event in events)

    def end(self, event: dict[str, Any]) -> str:
        return f"{_ENCODER.encode(event)}\n"
