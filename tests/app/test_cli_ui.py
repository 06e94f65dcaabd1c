"""``genres ui``: what reaches the web app."""

import pytest


@pytest.fixture
def launched(monkeypatch):
    calls = []
    monkeypatch.setattr("app.ui.launch", lambda **options: calls.append(options))
    return calls


def test_defaults(genres, launched):
    assert genres("ui").code == 0
    assert launched == [{"host": "127.0.0.1", "port": 7860, "share": False, "auth": None, "open_browser": True}]


def test_options(genres, launched):
    arguments = ["--host", "0.0.0.0", "--port", "80", "--share", "--auth", "me:a:b", "--no-browser"]
    assert genres("ui", *arguments).code == 0
    assert launched == [{"host": "0.0.0.0", "port": 80, "share": True, "auth": ("me", "a:b"), "open_browser": False}]


@pytest.mark.parametrize(
    "arguments",
    [["--share"], ["--auth", "name"], ["--auth", ":word"], ["--share", "--auth", "name:"], ["--port", "70000"]],
    ids=" ".join,
)
def test_refused(genres, launched, arguments):
    assert genres("ui", *arguments).code == 2
    assert launched == []
