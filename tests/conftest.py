"""Settings for all tiers.

Hypothesis takes no test for failed because a busy machine was slow. `make test` also has it try
the same examples each time (``--hypothesis-profile repeatable``), so that a commit passes or
fails for what it is; `pytest` by itself looks for new ones.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("default", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("repeatable", settings.get_profile("default"), derandomize=True)
settings.load_profile("default")


@pytest.fixture
def namespace() -> Iterator[None]:
    """A network of the test's own, without even a loopback interface."""
    from kvm.namespace import network_namespace  # here, because few tests need it

    try:
        with network_namespace():
            yield
    except PermissionError:
        pytest.skip("needs root")
