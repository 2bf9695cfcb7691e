"""The stand-ins are compiled once per test process."""

from __future__ import annotations

import pytest

from gpu_rehearsal.build_standins import build_provider_standins, missing_for_provider
from gpu_rehearsal.provider import Provider


@pytest.fixture(scope="session")
def provider(tmp_path_factory: pytest.TempPathFactory) -> Provider:
    reason = missing_for_provider()
    if reason is not None:
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("cuda")
    build_provider_standins(folder)
    return Provider(folder)
