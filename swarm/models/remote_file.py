"""One file of a hub repository, read by byte range over HTTP.

The hub is asked once for size, ETag and place (`HEAD`), and again when the place, which is a signed
address that expires, no longer answers. Nothing that the other side sends is believed beyond what
was asked for: more bytes are not read, another size, ETag or range is an error, the token goes to
the hub alone, and redirects and repeats are counted.
"""

import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import urljoin, urlsplit

import httpx2
from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

from swarm.errors import CheckpointError, ModelNotFoundError

MAX_FAILURES = 5
"""In a row, each with less than `STEADY_BYTES` between."""
STEADY_BYTES = 64 << 10
MAX_REDIRECTS = 4
MAX_WAIT_S = 30.0
_TRANSIENT = (httpx2.TransportError, httpx2.StreamError)
_TRANSIENT_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
_EXPIRED_STATUS = frozenset({400, 401, 403, 404, 410})
"""How a signed address answers that is no longer valid."""
_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)")


@dataclass(frozen=True)
class FileFacts:
    """What the hub says of a file at one commit."""

    etag: str
    size: int


class _TryAgainError(Exception):
    """A failure that may pass; `wait_s` is what the other side asks for."""

    def __init__(self, why: str, wait_s: float = 0.0) -> None:
        super().__init__(why)
        self.wait_s = wait_s


class RemoteFile:
    """Methods may be called from several threads.

    They raise CheckpointError when the hub contradicts itself, and ModelNotFoundError or an error
    of huggingface_hub's when it does not answer.
    """

    def __init__(self, repository: str, commit: str, name: str) -> None:
        self._commit = commit
        self._label = f"{repository}/{name}"
        self._url = hf_hub_url(repository, name, revision=commit)
        self._lock = threading.Lock()
        self._place: str | None = None
        self._facts: FileFacts | None = None
        self._etags: dict[str, str] = {}

    def facts(self) -> FileFacts:
        """Size and ETag, asked for once."""
        if self._facts is None:
            self._locate()
        assert self._facts is not None
        return self._facts

    def expect(self, facts: FileFacts) -> None:
        """Take what an earlier program was told; the hub is held to it."""
        self._facts = facts

    def read(self, start: int, end: int) -> bytes:
        """Bytes `start:end`, in memory."""
        parts: list[bytes] = []
        self.stream(start, end, parts.append)
        return b"".join(parts)

    def stream(self, start: int, end: int, write: Callable[[bytes], None]) -> None:
        """Hand bytes `start:end` to `write`, in order; goes on where a connection breaks off."""
        failures, steady = 0, 0
        while start < end:
            try:
                for chunk in self._attempt(start, end):
                    write(chunk)
                    start += len(chunk)
                    steady += len(chunk)
                    if steady >= STEADY_BYTES:
                        failures = steady = 0
            except (_TryAgainError, *_TRANSIENT) as error:
                failures, steady = failures + 1, 0
                if failures > MAX_FAILURES:
                    raise ModelNotFoundError(
                        f"{self._label}: the hub breaks off again and again "
                        f"({error or type(error).__name__}); check the network and start again, "
                        "what is here is kept"
                    ) from error
                asked_s = error.wait_s if isinstance(error, _TryAgainError) else 0.0
                time.sleep(min(MAX_WAIT_S, max(asked_s, 0.1 * 2.0**failures)))

    def _attempt(self, start: int, end: int) -> Iterator[bytes]:
        """One request for `start:end`. Ends early only with an error."""
        with self._request(start, end) as response:
            self._check(response, start, end)
            for chunk in response.iter_raw():
                data = chunk[: end - start]
                start += len(data)
                yield data
                if start >= end:
                    return
        raise _TryAgainError("the answer was shorter than asked for")

    @contextmanager
    def _request(self, start: int, end: int) -> Iterator[httpx2.Response]:
        url = self._locate()
        headers = {"Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"}
        for _ in range(MAX_REDIRECTS + 1):
            at_hub = _origin(url) == _origin(self._url)
            with get_session().stream(
                "GET",
                url,
                headers=build_hf_headers(headers=headers, token=None if at_hub else False),
                timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT,
                follow_redirects=False,
            ) as response:
                if not response.is_redirect:
                    self._check_status(response, at_hub)
                    yield response
                    return
                target = urljoin(url, response.headers.get("Location", ""))
            if urlsplit(target).scheme not in ("https", urlsplit(url).scheme):
                raise CheckpointError(f"{self._label}: the hub redirects to {target[:100]}")
            url = target
        raise CheckpointError(f"{self._label}: the hub redirects more than {MAX_REDIRECTS} times")

    def _check_status(self, response: httpx2.Response, at_hub: bool) -> None:
        status = response.status_code
        if status in (200, 206):
            return
        if status in _TRANSIENT_STATUS:
            raise _TryAgainError(f"status {status}", _retry_after_s(response))
        if not at_hub and status in _EXPIRED_STATUS:
            self._place = None
            raise _TryAgainError(f"status {status}")
        if status == 416:
            raise self._changed("has become shorter")
        hf_raise_for_status(response)
        raise CheckpointError(f"{self._label}: the hub answers with status {status}")

    def _check(self, response: httpx2.Response, start: int, end: int) -> None:
        """Is this the range that was asked for, of the file that we began with?"""
        facts = self.facts()
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise CheckpointError(f"{self._label}: the hub sends compressed data, unasked")
        if response.status_code == 200:
            if (start, end) != (0, facts.size):
                raise CheckpointError(
                    f"{self._label}: {urlsplit(self._url).netloc} does not serve byte ranges; fetch"
                    " the whole model with: hf download"
                )
        else:
            found = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
            if found is None or (int(found[1]), int(found[2]) + 1) != (start, end):
                raise CheckpointError(f"{self._label}: the hub sends other bytes than asked for")
            if found[3] not in ("*", str(facts.size)):
                raise self._changed(f"has {found[3]} bytes instead of {facts.size}")
        etag = response.headers.get("ETag")
        if etag is not None:
            # Of its place: a content network has ETags of its own.
            place = str(response.url).partition("?")[0]
            if self._etags.setdefault(place, etag) != etag:
                raise self._changed("has another ETag than before")

    def _locate(self) -> str:
        with self._lock:
            if self._place is not None:
                return self._place
            try:
                found = get_hf_file_metadata(
                    self._url, timeout=constants.HF_HUB_ETAG_TIMEOUT, retry_on_errors=True
                )
            except HfHubHTTPError as error:
                if error.response is not None and error.response.status_code in _TRANSIENT_STATUS:
                    raise ModelNotFoundError(
                        f"{self._label}: the hub is out of order (status "
                        f"{error.response.status_code}); try again later"
                    ) from error
                raise
            if not found.etag or found.size is None or found.size < 0:
                raise CheckpointError(f"{self._label}: the hub does not say its size and ETag")
            if found.commit_hash not in (None, self._commit):
                raise self._changed(f"is shown at commit {found.commit_hash}, not {self._commit}")
            facts = FileFacts(found.etag, found.size)
            if self._facts is None:
                self._facts = facts
            elif self._facts != facts:
                raise self._changed("has another size or ETag than before")
            if urlsplit(found.location).scheme not in ("https", urlsplit(self._url).scheme):
                raise CheckpointError(f"{self._label}: the hub sends us to {found.location[:100]}")
            self._place = found.location
            return self._place

    def _changed(self, how: str) -> CheckpointError:
        return CheckpointError(
            f"{self._label} {how}, which at one commit cannot be; the hub (or what HF_ENDPOINT "
            "names) is not to be trusted with it"
        )


def _origin(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return parts.scheme, parts.netloc.lower()


def _retry_after_s(response: httpx2.Response) -> float:
    text = response.headers.get("Retry-After", "")
    return float(text) if text.isdecimal() else 0.0
