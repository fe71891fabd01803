"""One running page per file of tests, started with the file's FLAGS, and the official client at its door."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from gradio_client import Client

from tests.serving import Served, serve


@pytest.fixture(scope="module")
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serve(tmp_path_factory.mktemp("app"), *getattr(request.module, "FLAGS", ())) as running:
        yield running


@pytest.fixture(scope="module")
def client(served: Served, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    downloads = tmp_path_factory.mktemp("downloads")
    client = Client(served.url, verbose=False, analytics_enabled=False, download_files=str(downloads))
    yield client
    client.close()
