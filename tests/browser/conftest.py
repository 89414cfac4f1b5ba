"""The browser tier: pages that PyVMM writes, in headless Chromium, which is installed for it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from browser.chromium import Browser, chromium

from guests import debian


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    debian.ensure("chromium")
    with chromium() as found:
        yield found
