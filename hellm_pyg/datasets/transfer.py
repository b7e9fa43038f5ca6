"""One HTTP answer at a time, and whether a failure is worth another attempt."""

from __future__ import annotations

import random
import socket
import string
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cache
from http.client import (
    HTTPConnection,
    HTTPException,
    HTTPResponse,
    HTTPSConnection,
)
from ssl import SSLCertVerificationError, SSLContext, create_default_context
from threading import Timer
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urljoin, urlsplit
from urllib.request import (
    HTTPDefaultErrorHandler,
    HTTPErrorProcessor,
    HTTPHandler,
    HTTPSHandler,
    OpenerDirector,
    ProxyHandler,
    Request,
)

CHUNK = 1 << 16
MAX_REDIRECTS = 8
# A server that asks for a longer pause is given up.
MAX_WAIT = 300.0
# Larger numbers in a header are taken for this one.
MAX_NUMBER = 1e18
TRANSIENT = {408, 425, 429, 500, 502, 503, 504}
REDIRECTS = {301, 302, 303, 307, 308}
HTML = {'text/html', 'application/xhtml+xml'}


class TransferError(ValueError):
    """A transfer that failed.

    Args:
        message: What happened.
        reason: The same in a word or two, for counting.
        again: Whether another attempt may succeed.
        after: Seconds that the server asks to wait.
    """

    def __init__(
        self,
        message: str,
        reason: str = 'failed',
        again: bool = False,
        after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.again = again
        self.after = after


def open_url(
    url: str, timeout: float, headers: Mapping[str, str] | None = None
) -> HTTPResponse:
    """Opens an http(s) address and follows its redirects to http(s) addresses.

    Args:
        url: The address.
        timeout: Seconds without an answer after which to give up.
        headers: Further headers of the request.

    Raises:
        TransferError: If there is no answer, or one with an error status.
    """
    for _ in range(MAX_REDIRECTS + 1):
        try:
            return _request(url, timeout, headers or {})
        except HTTPError as error:
            with error:
                target = error.headers.get('Location')
                if error.code not in REDIRECTS or not target:
                    raise _refused(url, error) from None
            try:
                url = urljoin(url, target)
            except ValueError as problem:
                raise TransferError(
                    f"'{url}' redirects to no address: {problem}", 'address refused'
                ) from None
    raise TransferError(
        f"'{url}' redirects in a loop, or more than {MAX_REDIRECTS} times",
        'redirect loop',
    )


class _Connection(HTTPConnection):
    """Whose answer has to begin in time, also if it comes byte by byte."""

    def getresponse(self) -> HTTPResponse:
        late = False

        def cut() -> None:
            nonlocal late
            late = True
            with suppress(OSError, AttributeError):  # closed meanwhile
                self.sock.shutdown(socket.SHUT_RDWR)

        timer = Timer(self.timeout or MAX_WAIT, cut)
        timer.daemon = True
        timer.start()
        try:
            response = super().getresponse()
            if late:  # what was cut looks like a whole header
                response.close()
                raise TimeoutError('the header does not end')
            return response
        finally:
            timer.cancel()


class _SecureConnection(_Connection, HTTPSConnection):
    pass


class _HTTPHandler(HTTPHandler):
    def http_open(self, req: Request) -> HTTPResponse:
        return self.do_open(_Connection, req)


class _HTTPSHandler(HTTPSHandler):
    def https_open(self, req: Request) -> HTTPResponse:
        return self.do_open(_SecureConnection, req, context=_certificates())


@cache
def _certificates() -> SSLContext:
    return create_default_context()


def _request(url: str, timeout: float, headers: Mapping[str, str]) -> HTTPResponse:
    opener = OpenerDirector()
    for handler in (
        ProxyHandler,
        _HTTPHandler,
        _HTTPSHandler,
        HTTPDefaultErrorHandler,
        HTTPErrorProcessor,
    ):
        opener.add_handler(handler())
    try:
        if urlsplit(url).scheme.lower() not in ('http', 'https'):
            raise ValueError('only http and https are fetched')
        request = Request(
            quote(url, safe=string.punctuation),
            headers={'User-Agent': 'hellm_pyg', **headers},
        )
        return opener.open(request, timeout=timeout)
    except HTTPError:
        raise
    except (OSError, HTTPException) as error:
        untrusted = isinstance(
            getattr(error, 'reason', error), SSLCertVerificationError
        )
        shown = error.reason if isinstance(error, URLError) else repr(error)
        raise TransferError(
            f"'{url}' does not answer: {shown}", again=not untrusted
        ) from error
    except ValueError as error:  # a malformed address fails in many ways
        raise TransferError(
            f"'{url}' is no address to fetch from: {error}", 'address refused'
        ) from error


def _refused(url: str, error: HTTPError) -> TransferError:
    message = f"'{url}' answers {error.code} {error.reason}"
    if error.code not in TRANSIENT:
        reasons = {404: 'not found', 410: 'not found', 416: 'range refused'}
        return TransferError(message, reasons.get(error.code, 'refused'))
    after = _retry_after(error.headers.get('Retry-After'))
    if after is not None and after > MAX_WAIT:
        message += f' and asks to wait {after:.0f} seconds; try again then'
        return TransferError(message, 'too busy')
    return TransferError(message, again=True, after=after)


def _retry_after(text: str | None) -> float | None:
    """Seconds from a number of seconds or an HTTP date."""
    if text is None:
        return None
    if text.strip().isdecimal():
        return min(float(text), MAX_NUMBER)  # of any number of digits
    with suppress(ValueError, OverflowError):
        moment = parsedate_to_datetime(text)
        moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        return max((moment - datetime.now(UTC)).total_seconds(), 0.0)
    return None


def pause(error: TransferError, failures: int, wait: float) -> float:
    """Seconds before the next attempt: the server's wish, or doubling from wait.

    Args:
        error: The last failure.
        failures: Failures so far, from 1.
        wait: Seconds after the first failure; up to half more is added at random,
            so that parallel transfers do not come back at once.
    """
    if error.after is not None:
        return error.after
    return min(wait * 2.0 ** (failures - 1), MAX_WAIT) * random.uniform(1, 1.5)


def content_length(response: HTTPResponse) -> int | None:
    """Number of bytes that the body is said to have, if it is said."""
    text = response.headers.get('Content-Length', '')
    if not (text.isascii() and text.isdecimal()):
        return None
    return int(min(float(text), MAX_NUMBER)) if len(text) > 15 else int(text)


def is_html(response: HTTPResponse) -> bool:
    """Whether the answer is a web page, as error pages with status 200 are."""
    return response.headers.get_content_type() in HTML


def read_chunks(
    response: HTTPResponse, url: str, timeout: float, min_speed: float = 1024
) -> Iterator[bytes]:
    """The body piece by piece, exactly as long as its header says.

    Args:
        response: The open answer.
        url: Its address, for messages.
        timeout: Seconds over which the speed is measured.
        min_speed: Bytes a second below which the transfer is given up.

    Raises:
        TransferError: If the body is cut off, or comes too slowly.
    """
    remaining = content_length(response)
    start, received = time.monotonic(), 0
    while remaining is None or remaining > 0:
        try:
            chunk = response.read1(
                CHUNK if remaining is None else min(CHUNK, remaining)
            )
        except (OSError, HTTPException) as error:
            raise TransferError(
                f"'{url}' is cut off: {error!r}", 'cut off', again=True
            ) from error
        if not chunk:
            if remaining is None:
                return
            raise TransferError(
                f"'{url}' is cut off, {remaining} bytes before the end that its "
                f"'Content-Length' names",
                'cut off',
                again=True,
            )
        yield chunk
        received += len(chunk)
        remaining = None if remaining is None else remaining - len(chunk)
        elapsed = time.monotonic() - start
        if elapsed > timeout:
            if received < min_speed * elapsed:
                raise TransferError(
                    f"'{url}' comes with less than {min_speed:.0f} bytes a second",
                    'too slow',
                    again=True,
                )
            start, received = time.monotonic(), 0
