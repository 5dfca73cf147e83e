"""Downloads from a real HTTP server: what arrives, what is refused, what is shared, what ends in time."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import hashlib
import http.server
import os
import socket
import socketserver
import ssl
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from workers.artifacts import (
    ArtifactCache,
    CacheUnusable,
    ChecksumMismatch,
    DiskFull,
    FetchCancelled,
    FetchFailed,
    FetchPolicy,
    InvalidDigest,
    TooLarge,
    UrlRefused,
)

PROGRAM = b"#!/bin/sh\necho fabric\n"
LOCAL = FetchPolicy(max_bytes=1_000_000, timeout_s=20, allow_loopback=True)


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class Origin(http.server.ThreadingHTTPServer):
    """A file server whose pages are functions, which counts what it is asked and can hold answers back."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.pages: dict[str, Callable[[_Handler], None]] = {}
        self.asked: Counter[str] = Counter()
        self.headers_seen: list[dict[str, str]] = []
        self.opened = threading.Event()
        self.hung_up = threading.Event()

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def serve(self, path: str, content: bytes, status: int = 200, **headers: str) -> str:
        def page(handler: _Handler) -> None:
            handler.begin(status, {"Content_Length": str(len(content))} | headers)
            handler.wfile.write(content)

        self.pages[path] = page
        return self.url(path)

    def serve_with(self, path: str, page: Callable[[_Handler], None]) -> str:
        self.pages[path] = page
        return self.url(path)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is part of these tests."""


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Origin

    def do_GET(self) -> None:
        self.server.asked[self.path] += 1
        self.server.headers_seen.append(dict(self.headers))
        page = self.server.pages.get(self.path)
        if page is None:
            self.begin(404, {"Content-Length": "0"})
        else:
            page(self)

    def begin(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def drip(self, byte: bytes = b"x") -> None:
        """One byte every 20 ms until the client hangs up."""
        self.server.opened.set()
        with contextlib.suppress(OSError):
            while True:
                self.wfile.write(byte)
                self.wfile.flush()
                time.sleep(0.02)
        self.server.hung_up.set()

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


@contextlib.contextmanager
def running(origin: socketserver.BaseServer) -> Iterator[None]:
    thread = threading.Thread(target=origin.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        origin.shutdown()
        thread.join()
        origin.server_close()


@pytest.fixture
def origin() -> Iterator[Origin]:
    server = Origin()
    with running(server):
        yield server


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., ArtifactCache]]:
    caches: list[ArtifactCache] = []

    def factory(policy: FetchPolicy = LOCAL, max_bytes: int = 10_000_000, **more: Any) -> ArtifactCache:
        caches.append(ArtifactCache(tmp_path / "cache", max_bytes, policy, **more))
        return caches[-1]

    yield factory
    for cache in caches:
        cache.close()


Make = Callable[..., ArtifactCache]


def files(tmp_path: Path) -> list[str]:
    return sorted(os.listdir(tmp_path / "cache"))


def until(condition: Callable[[], bool]) -> None:
    """Wait until something that another thread does has happened."""
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.005)


def to_loopback(host: str, port: int, *, type: int) -> list[tuple[Any, ...]]:
    return [(socket.AF_INET, type, 6, "", ("127.0.0.1", port))]


# What arrives


def test_fetches_verifies_and_serves_again_from_the_cache(origin: Origin, make: Make) -> None:
    url = origin.serve("/bin", PROGRAM)
    cache = make()
    steps: list[tuple[int, int | None]] = []
    with cache.fetch(url, sha(PROGRAM).upper(), progress=lambda got, of: steps.append((got, of))) as artifact:
        assert not artifact.cached
        assert artifact.size == len(PROGRAM)
        assert subprocess.run([artifact.path], capture_output=True, check=True).stdout == b"fabric\n"
    assert steps[-1] == (len(PROGRAM), len(PROGRAM))
    with cache.fetch(url, sha(PROGRAM)) as again:
        assert again.cached
    assert origin.asked["/bin"] == 1


def test_chunked_and_endless_answers_arrive(origin: Origin, make: Make) -> None:
    def chunked(handler: _Handler) -> None:
        handler.begin(200, {"Transfer-Encoding": "chunked"})
        handler.wfile.write(b"5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n")

    def until_close(handler: _Handler) -> None:
        handler.begin(200, {})
        handler.wfile.write(b"hello earth")

    cache = make()
    cache.fetch(origin.serve_with("/chunked", chunked), sha(b"hello world")).release()
    cache.fetch(origin.serve_with("/close", until_close), sha(b"hello earth")).release()


def test_sends_nothing_of_the_environment(
    origin: Origin, make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / ".netrc").write_text("default login me password secret\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    make().fetch(origin.serve("/bin", PROGRAM, Set_Cookie="a=b"), sha(PROGRAM)).release()
    (headers,) = origin.headers_seen
    assert headers["Host"] == f"127.0.0.1:{origin.port}"
    assert headers["Accept-Encoding"] == "identity"
    assert set(headers) == {"Host", "User-Agent", "Accept", "Accept-Encoding", "Connection"}


def test_encoded_body_is_taken_as_it_is(origin: Origin, make: Make) -> None:
    url = origin.serve("/bin.gz", b"not really gzip", Content_Encoding="gzip")
    make().fetch(url, sha(b"not really gzip")).release()
    with pytest.raises(ChecksumMismatch, match="Content-Encoding 'gzip'"):
        make().fetch(url, sha(PROGRAM))


# What is refused


def test_other_bytes_are_refused_and_leave_nothing(origin: Origin, make: Make, tmp_path: Path) -> None:
    url = origin.serve("/bin", b"something else")
    with pytest.raises(ChecksumMismatch, match=sha(b"something else")) as caught:
        make().fetch(url, sha(PROGRAM))
    assert not caught.value.retryable
    until(lambda: files(tmp_path) == [])


@pytest.mark.parametrize("digest", ["", "abc", "g" * 64, "0" * 63, "../" + "0" * 61, "0" * 64 + "\n"])
def test_digest_must_be_one(origin: Origin, make: Make, digest: str) -> None:
    with pytest.raises(InvalidDigest):
        make().fetch(origin.serve("/bin", PROGRAM), digest)
    assert not origin.asked


@pytest.mark.parametrize(
    "target",
    [
        "http://169.254.169.254/latest/meta-data/",
        "http://10.0.0.1/",
        "http://[fd00:ec2::254]/",
        "file:///etc/passwd",
    ],
)
def test_redirect_to_the_inside_is_refused(origin: Origin, make: Make, target: str) -> None:
    url = origin.serve("/bin", b"", status=302, Location=target)
    with pytest.raises(UrlRefused, match="redirects to a URL that is refused") as caught:
        make().fetch(url, sha(b""))
    assert not caught.value.retryable


def test_redirect_to_a_name_with_an_inside_address_is_refused(origin: Origin, make: Make) -> None:
    def resolver(host: str, port: int, *, type: int) -> list[tuple[Any, ...]]:
        address = "10.0.0.1" if host == "inside.test" else "127.0.0.1"
        return [(socket.AF_INET, type, 6, "", (address, port))]

    origin.serve("/bin", b"", status=307, Location="http://inside.test/")
    with pytest.raises(UrlRefused, match="private"):
        make(resolver=resolver).fetch(f"http://outside.test:{origin.port}/bin", sha(b""))
    assert origin.asked["/bin"] == 1


def test_loopback_needs_its_setting(origin: Origin, make: Make) -> None:
    cache = make(dataclasses.replace(LOCAL, allow_loopback=False), resolver=to_loopback)
    for url in (origin.serve("/bin", PROGRAM), f"http://innocent.test:{origin.port}/bin"):
        with pytest.raises(UrlRefused, match="loopback"):
            cache.fetch(url, sha(PROGRAM))
    assert not origin.asked


def test_url_is_checked_even_if_the_program_is_cached(origin: Origin, make: Make) -> None:
    cache = make()
    cache.fetch(origin.serve("/bin", PROGRAM), sha(PROGRAM)).release()
    with pytest.raises(UrlRefused):
        cache.fetch("http://169.254.169.254/", sha(PROGRAM))


def test_rebinding_name_is_connected_at_the_address_that_was_checked(origin: Origin, make: Make) -> None:
    asked: list[str] = []

    def rebinding(host: str, port: int, *, type: int) -> list[tuple[Any, ...]]:
        asked.append(host)
        address = "127.0.0.1" if len(asked) == 1 else "10.0.0.1"
        return [(socket.AF_INET, type, 6, "", (address, port))]

    origin.serve("/bin", PROGRAM)
    make(resolver=rebinding).fetch(f"http://rebinding.test:{origin.port}/bin", sha(PROGRAM)).release()
    assert asked == ["rebinding.test"]
    assert origin.headers_seen[0]["Host"] == f"rebinding.test:{origin.port}"


def test_next_address_is_tried_when_one_does_not_answer(origin: Origin, make: Make) -> None:
    def two(host: str, port: int, *, type: int) -> list[tuple[Any, ...]]:
        return [(socket.AF_INET, type, 6, "", (address, port)) for address in ("127.0.0.2", "127.0.0.1")]

    origin.serve("/bin", PROGRAM)
    make(resolver=two).fetch(f"http://two.test:{origin.port}/bin", sha(PROGRAM)).release()


# What the server does wrong


def test_redirects_are_followed_up_to_the_limit(origin: Origin, make: Make) -> None:
    cache = make(dataclasses.replace(LOCAL, max_redirects=2))
    origin.serve("/2", PROGRAM)
    origin.serve("/1", b"", status=301, Location="/2")
    cache.fetch(origin.serve("/0", b"", status=303, Location="1"), sha(PROGRAM)).release()
    loop = origin.serve("/loop", b"", status=308, Location="/loop")
    with pytest.raises(FetchFailed, match="redirects more than 2 times") as caught:
        cache.fetch(loop, sha(b"other"))
    assert not caught.value.retryable
    assert origin.asked["/loop"] == 3


@pytest.mark.parametrize(
    ("status", "retryable"),
    [(code, False) for code in (204, 206, 304, 401, 404, 410)] + [(code, True) for code in (408, 429, 500, 503)],
)
def test_status_decides_who_is_to_blame(origin: Origin, make: Make, status: int, retryable: bool) -> None:
    with pytest.raises(FetchFailed, match=f"/bin answers {status}") as caught:
        make().fetch(origin.serve("/bin", b"", status=status), sha(b""))
    assert caught.value.retryable is retryable
    assert not caught.value.node_fault


def test_refused_connection_and_no_http_are_retryable(origin: Origin, make: Make) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(FetchFailed, match="refused") as caught:
            make().fetch(f"http://127.0.0.1:{unused.getsockname()[1]}/", sha(b""))
        assert caught.value.retryable

    def smtp(handler: _Handler) -> None:
        handler.wfile.write(b"220 smtp ready\r\n")

    url = origin.serve_with("/bin", smtp)
    with pytest.raises(FetchFailed, match="could not be fetched") as caught:
        make().fetch(url, sha(b""))
    assert caught.value.retryable


def test_oversize_is_refused_by_its_header_and_by_its_bytes(origin: Origin, make: Make, tmp_path: Path) -> None:
    cache = make(dataclasses.replace(LOCAL, max_bytes=1000))

    def endless(handler: _Handler) -> None:
        handler.begin(200, {})
        with contextlib.suppress(OSError):
            while True:
                handler.wfile.write(b"x" * 1000)

    declared = origin.serve_with("/declared", lambda handler: handler.begin(200, {"Content-Length": "1001"}))
    for url in (declared, origin.serve_with("/endless", endless)):
        with pytest.raises(TooLarge, match="1000 bytes") as caught:
            cache.fetch(url, sha(b""))
        assert not caught.value.retryable
    exact = b"x" * 1000
    cache.fetch(origin.serve("/exact", exact), sha(exact)).release()
    until(lambda: files(tmp_path) == [sha(exact)])


def test_lies_about_the_length_never_pass(origin: Origin, make: Make) -> None:
    short = origin.serve("/short", PROGRAM, Content_Length="500")
    with pytest.raises(FetchFailed, match=f"broke off after {len(PROGRAM)} of 500 bytes") as caught:
        make().fetch(short, sha(PROGRAM))
    assert caught.value.retryable
    with pytest.raises(ChecksumMismatch):
        make().fetch(origin.serve("/long", PROGRAM, Content_Length="5"), sha(PROGRAM))


def test_slow_drip_ends_at_the_total_timeout(origin: Origin, make: Make) -> None:
    def body(handler: _Handler) -> None:
        handler.begin(200, {"Content-Length": "1000"})
        handler.drip()

    def header(handler: _Handler) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
        handler.drip()

    cache = make(dataclasses.replace(LOCAL, timeout_s=0.4))
    for page in (body, header):
        origin.hung_up.clear()
        start = time.monotonic()
        with pytest.raises(FetchFailed, match=r"not complete after 0\.4 s") as caught:
            cache.fetch(origin.serve_with("/slow", page), sha(b""))
        assert caught.value.retryable
        assert time.monotonic() - start < 1.5
        assert origin.hung_up.wait(5), "the connection outlived its fetch"


def test_silence_ends_at_the_read_timeout(origin: Origin, make: Make) -> None:
    release = threading.Event()

    def silent(handler: _Handler) -> None:
        release.wait(10)

    url = origin.serve_with("/silent", silent)
    with pytest.raises(FetchFailed, match="timed out") as caught:
        make(dataclasses.replace(LOCAL, read_timeout_s=0.2)).fetch(url, sha(b""))
    release.set()
    assert caught.value.retryable


# What is shared


def test_many_callers_share_one_download(origin: Origin, make: Make) -> None:
    go = threading.Event()

    def gated(handler: _Handler) -> None:
        handler.begin(200, {"Content-Length": str(len(PROGRAM))})
        origin.opened.set()
        go.wait(10)
        handler.wfile.write(PROGRAM)

    url, cache = origin.serve_with("/bin", gated), make()
    with ThreadPoolExecutor(12) as pool:
        futures = [pool.submit(cache.fetch, url, sha(PROGRAM)) for _ in range(12)]
        assert origin.opened.wait(10)
        until(lambda: sum(flight._waiters for flight in cache._flights.values()) == 12)
        go.set()
        artifacts = [future.result(10) for future in futures]
    assert origin.asked["/bin"] == 1
    assert {artifact.path.read_bytes() for artifact in artifacts} == {PROGRAM}
    for artifact in artifacts:
        artifact.release()


def test_one_callers_cancel_leaves_the_others_download_alone(origin: Origin, make: Make) -> None:
    go, cancelled = threading.Event(), threading.Event()

    def gated(handler: _Handler) -> None:
        origin.opened.set()
        go.wait(10)
        handler.begin(200, {"Content-Length": str(len(PROGRAM))})
        handler.wfile.write(PROGRAM)

    url, cache = origin.serve_with("/bin", gated), make()
    with ThreadPoolExecutor(2) as pool:
        leaving = pool.submit(cache.fetch, url, sha(PROGRAM), cancelled)
        staying = pool.submit(cache.fetch, url, sha(PROGRAM))
        assert origin.opened.wait(10)
        until(lambda: sum(flight._waiters for flight in cache._flights.values()) == 2)
        cancelled.set()
        with pytest.raises(FetchCancelled):
            leaving.result(10)
        go.set()
        staying.result(10).release()
    assert origin.asked["/bin"] == 1


def test_wrong_or_slow_url_does_not_harm_others_with_the_same_digest(origin: Origin, make: Make) -> None:
    def slow(handler: _Handler) -> None:
        handler.begin(200, {"Content-Length": "100000"})
        handler.drip()

    cache = make()
    with ThreadPoolExecutor(2) as pool:
        beside = pool.submit(cache.fetch, origin.serve_with("/slow", slow), sha(PROGRAM))
        assert origin.opened.wait(10)
        with pytest.raises(ChecksumMismatch):
            cache.fetch(origin.serve("/wrong", b"wrong"), sha(PROGRAM))
        cache.fetch(origin.serve("/right", PROGRAM), sha(PROGRAM)).release()
        # The program is here now, so nobody has to wait for the slow server any more.
        with beside.result(5) as artifact:
            assert artifact.path.read_bytes() == PROGRAM
    assert origin.hung_up.wait(5)


def test_failure_is_not_remembered(origin: Origin, make: Make) -> None:
    url, cache = origin.serve("/bin", b"", status=503), make()
    with pytest.raises(FetchFailed):
        cache.fetch(url, sha(PROGRAM))
    origin.serve("/bin", PROGRAM)
    cache.fetch(url, sha(PROGRAM)).release()


def test_damaged_entry_is_fetched_again(origin: Origin, make: Make, tmp_path: Path) -> None:
    url = origin.serve("/bin", PROGRAM)
    make().fetch(url, sha(PROGRAM)).release()
    path = tmp_path / "cache" / sha(PROGRAM)
    path.chmod(0o755)
    path.write_bytes(b"damaged")
    with make().fetch(url, sha(PROGRAM)) as artifact:
        assert not artifact.cached
        assert artifact.path.read_bytes() == PROGRAM
    assert origin.asked["/bin"] == 2


def test_eviction_by_bytes_passes_over_what_is_held(origin: Origin, make: Make, tmp_path: Path) -> None:
    cache = make(max_bytes=250)
    contents = [bytes([letter]) * 100 for letter in b"abcd"]
    held = cache.fetch(origin.serve("/0", contents[0]), sha(contents[0]))
    for number in (1, 2, 3):
        cache.fetch(origin.serve(f"/{number}", contents[number]), sha(contents[number])).release()
    assert files(tmp_path) == sorted([sha(contents[0]), sha(contents[3])])
    held.release()


# What ends in time


@pytest.mark.parametrize("stage", ["body", "header", "silence", "lookup"])
def test_cancel_is_noticed_within_half_a_second(origin: Origin, make: Make, tmp_path: Path, stage: str) -> None:
    release = threading.Event()

    def body(handler: _Handler) -> None:
        handler.begin(200, {"Content-Length": "100000"})
        handler.drip()

    def header(handler: _Handler) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
        handler.drip()

    def silence(handler: _Handler) -> None:
        origin.opened.set()
        release.wait(10)

    def lookup(host: str, port: int, *, type: int) -> list[tuple[Any, ...]]:
        origin.opened.set()
        release.wait(10)
        return to_loopback(host, port, type=type)

    pages = {"body": body, "header": header, "silence": silence, "lookup": body}
    url = origin.serve_with("/slow", pages[stage])
    resolver = to_loopback
    if stage == "lookup":
        url, resolver = f"http://slow.test:{origin.port}/slow", lookup
    cache, cancelled = make(resolver=resolver), threading.Event()
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(cache.fetch, url, sha(b""), cancelled)
        assert origin.opened.wait(10)
        start = time.monotonic()
        cancelled.set()
        with pytest.raises(FetchCancelled):
            future.result(5)
        assert time.monotonic() - start < 0.5
    release.set()
    until(lambda: files(tmp_path) == [])
    assert stage not in ("body", "header") or origin.hung_up.wait(5)


def test_cancelled_before_it_began_asks_nothing(origin: Origin, make: Make) -> None:
    cancelled = threading.Event()
    cancelled.set()
    with pytest.raises(FetchCancelled):
        make().fetch(origin.serve("/bin", PROGRAM), sha(PROGRAM), cancelled)
    assert not origin.asked


def test_close_ends_downloads_and_refuses_new_ones(origin: Origin, make: Make) -> None:
    def slow(handler: _Handler) -> None:
        handler.begin(200, {})
        handler.drip()

    url, cache = origin.serve_with("/slow", slow), make()
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(cache.fetch, url, sha(b""))
        assert origin.opened.wait(10)
        cache.close()
        with pytest.raises(CacheUnusable, match="closed"):
            future.result(5)
    with pytest.raises(CacheUnusable, match="closed"):
        cache.fetch(url, sha(b""))


# TLS and the disk


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate and key for files.test and 127.0.0.1."""
    x509 = pytest.importorskip("cryptography.x509")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "files.test")])
    now = datetime.datetime.now(datetime.UTC)
    names = [x509.DNSName("files.test"), x509.IPAddress(ip_address("127.0.0.1"))]
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(made.public_bytes(serialization.Encoding.PEM) + private)
    return path


def test_tls_checks_the_name_at_the_pinned_address(origin: Origin, make: Make, certificate: Path) -> None:
    seen: list[str | None] = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    context.sni_callback = lambda _sock, name, _context: seen.append(name)
    secure = Origin()
    secure.socket = context.wrap_socket(secure.socket, server_side=True)
    secure.serve("/bin", PROGRAM)
    trusting = ssl.create_default_context(cafile=str(certificate))
    with running(secure):
        cache = make(resolver=to_loopback, tls=trusting)
        for host in ("other.test", "files.test", "127.0.0.1"):
            url = f"https://{host}:{secure.port}/bin"
            if host == "other.test":
                with pytest.raises(FetchFailed, match=r"certificate of .* is not accepted: Hostname mismatch"):
                    cache.fetch(url, sha(PROGRAM))
            else:
                cache.fetch(url, sha(PROGRAM)).release()
        with pytest.raises(FetchFailed, match="self-signed"):
            make(resolver=to_loopback).fetch(f"https://files.test:{secure.port}/bin", sha(b"other"))
    assert seen[:2] == ["other.test", "files.test"]


def test_full_disk_evicts_and_then_blames_the_node(origin: Origin, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k,mode=0755", "none", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("a small disk can only be mounted with root's rights")
    try:
        cache = ArtifactCache(disk / "cache", 10_000_000, LOCAL)
        old, new, huge = b"o" * 150_000, b"n" * 150_000, b"h" * 300_000
        cache.fetch(origin.serve("/old", old), sha(old)).release()
        held = cache.fetch(origin.serve("/new", new), sha(new))
        assert os.listdir(disk / "cache") == [sha(new)]
        with pytest.raises(DiskFull) as caught:
            cache.fetch(origin.serve("/huge", huge), sha(huge))
        assert caught.value.node_fault
        assert caught.value.retryable
        until(lambda: os.listdir(disk / "cache") == [sha(new)])
        held.release()
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
