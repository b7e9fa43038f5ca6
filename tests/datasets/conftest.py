import pytest

from .local_server import serve


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv('no_proxy', '*')
    with serve() as server:
        yield server
