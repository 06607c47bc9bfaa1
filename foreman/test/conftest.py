"""What every test is held to: no failure passes unseen in the log, and no timer outlives its test."""

from __future__ import annotations

import gc
import ipaddress
import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from cryptography import x509
from hypothesis import settings
from hypothesis.internal.conjecture import providers
from twisted.internet.ssl import DefaultOpenSSLContextFactory
from twisted.internet.task import deferLater
from twisted.logger import LogEvent, LogLevel, formatEvent, globalLogPublisher

from foreman.test.certificates import certificate

# The same examples on every run: a landing must not depend on luck.  To look for new ones:
# `pytest --hypothesis-profile=dev`, or `long` for thirty times as many (of those tests that do not name a number).
settings.register_profile("ci", derandomize=True, deadline=None, database=None)
settings.register_profile("dev", deadline=None)
settings.register_profile("long", deadline=None, max_examples=3000)
settings.load_profile("ci")
# Nor on which of our modules are imported by then: Hypothesis would mix their constants into the examples.
providers._get_local_constants = lambda: providers._local_constants

# A shell's background jobs ignore Ctrl-C, and so would the processes that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Tests talk to this machine alone: a proxy that pip may need is not asked for that.
for _name in {"http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"} & os.environ.keys():
    del os.environ[_name]

# Nor does their git work on the repository whose hook runs them.
for _name in {"GIT_DIR", "GIT_INDEX_FILE", "GIT_WORK_TREE"} & os.environ.keys():
    del os.environ[_name]


def _runs_the_reactor(request: pytest.FixtureRequest) -> bool:
    """Whether the test is a coroutine or a generator that pytest-twisted runs."""
    function = getattr(request, "function", None)
    function = getattr(getattr(function, "hypothesis", None), "inner_test", function)
    return hasattr(function, "_pytest_twisted_mark")


@pytest.fixture(autouse=True)
def logged_errors(request: pytest.FixtureRequest) -> Iterator[list[LogEvent]]:
    """The failures and critical events logged so far.  Those that a test does not `clear()` fail it."""
    errors: list[LogEvent] = []

    def observe(event: LogEvent) -> None:
        if event.get("log_level") == LogLevel.critical or event.get("log_failure") is not None:
            errors.append(event)

    globalLogPublisher.addObserver(observe)  # type: ignore[arg-type]
    yield errors
    if _runs_the_reactor(request):
        # A Deferred tells of an unhandled failure when it is collected.
        gc.collect()
    globalLogPublisher.removeObserver(observe)  # type: ignore[arg-type]
    if errors:
        tracebacks = [f"{formatEvent(error)}\n{_traceback(error)}" for error in errors]
        pytest.fail("logged and not looked at:\n" + "\n".join(tracebacks), pytrace=False)


def _traceback(event: LogEvent) -> str:
    failure = event.get("log_failure")
    return "" if failure is None else str(failure.getTraceback())


@pytest.fixture(autouse=True)
def _no_timers_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fails a test that leaves a DelayedCall on the reactor."""
    if not _runs_the_reactor(request):
        yield
        return
    from twisted.internet import reactor

    clock: Any = reactor
    # Functions, not calls: what repeats itself for a whole module makes a new call each time.
    before = [call.func for call in clock.getDelayedCalls()]
    yield
    left = [call for call in clock.getDelayedCalls() if call.func not in before]
    for _ in range(3):
        if left:
            # As trial does: a connection that is being closed may have a turn or two to notice.
            pytest_twisted.blockon(deferLater(clock, 0))
            left = [call for call in left if call.active()]
    names = [str(call) for call in left]
    for call in left:
        call.cancel()
    if left:
        pytest.fail("timers left on the reactor:\n" + "\n".join(names), pytrace=False)


@pytest.fixture
def socket_file() -> Iterator[Path]:
    """Where a socket can be: its whole name has a hundred letters at most, and `tmp_path` may have more already."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        yield Path(folder) / "s"


@pytest.fixture
def tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DefaultOpenSSLContextFactory:
    """A server for `nas` and 127.0.0.1 whose certificate the system trusts."""
    names = x509.DNSName("nas"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    context = certificate(tmp_path, *names)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "root.pem"))
    return context
