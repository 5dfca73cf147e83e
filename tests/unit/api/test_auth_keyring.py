"""Keys follow their source without a restart, outlast its absence, and no flood of tokens makes it suffer."""

from __future__ import annotations

import gzip
import logging
import os
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import pytest

from app.api.auth.keyring import FileKeyring, KeysAway, Pace, UrlKeyring
from app.api.auth.keys import BadKeys
from app.api.auth.source import MAX_BYTES, FileSource, NotRead, UrlSource
from tests.factories import until
from tests.issuer import Issuer, KeyServer, key_server, key_set

OLD, NEW = Issuer(key_id="old"), Issuer(key_id="new", number=1)
PACE = Pace(refresh_s=300, interval_s=10, max_age_s=3600)


class Clock:
    """A clock that a test turns."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def server() -> Iterator[KeyServer]:
    with key_server(key_set(OLD.jwk())) as told:
        yield told


@pytest.fixture
def ring(server: KeyServer, clock: Clock) -> UrlKeyring:
    return UrlKeyring(UrlSource(server.url), ["ES256"], PACE, clock)


def knows(ring: UrlKeyring | FileKeyring, key_id: str) -> bool:
    return [key.id for key in ring.find("ES256", key_id)] == [key_id]


def settled(ring: UrlKeyring) -> Callable[[], bool]:
    """Whether no fetch runs."""
    return lambda: ring._running is None


class TestFile:
    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        path = tmp_path / "keys.json"
        path.write_bytes(key_set(OLD.jwk()))
        return path

    @pytest.fixture
    def ring(self, file: Path, clock: Clock) -> FileKeyring:
        ring = FileKeyring(FileSource(file), ["ES256"], PACE, clock)
        ring.load()
        return ring

    def replace(self, file: Path, text: bytes) -> None:
        fresh = file.with_suffix(".new")
        fresh.write_bytes(text)
        fresh.rename(file)

    def test_a_new_file_in_its_place_is_followed(self, ring: FileKeyring, file: Path) -> None:
        assert knows(ring, "old") and not knows(ring, "new")
        self.replace(file, key_set(NEW.jwk(), OLD.jwk()))
        assert knows(ring, "old") and knows(ring, "new")
        self.replace(file, key_set(NEW.jwk()))
        assert knows(ring, "new") and not knows(ring, "old")

    def test_writes_in_place_are_followed_even_two_within_one_tick_of_the_clock(
        self, ring: FileKeyring, file: Path
    ) -> None:
        seen = file.stat()
        for one, other in ((NEW, OLD), (OLD, NEW)) * 5:
            file.write_bytes(key_set(one.jwk()))
            os.utime(file, ns=(seen.st_atime_ns, seen.st_mtime_ns))
            assert knows(ring, str(one.key_id)) and not knows(ring, str(other.key_id))

    def test_an_old_file_is_not_read_again(self, file: Path, clock: Clock) -> None:
        os.utime(file, (1, 1))
        reads = []

        class Counted(FileSource):
            def read(self) -> bytes:
                reads.append(1)
                return super().read()

        ring = FileKeyring(Counted(file), ["ES256"], PACE, clock)
        for _ in range(100):
            assert knows(ring, "old")
        assert len(reads) == 1

    @pytest.mark.parametrize(
        "text", [b"", key_set(NEW.jwk())[:-30], b"\xff", b"[]", b'{"keys": {}}', b"x" * (MAX_BYTES + 1)]
    )
    def test_half_a_file_leaves_the_old_keys_and_is_logged_once(
        self, ring: FileKeyring, file: Path, text: bytes, caplog: pytest.LogCaptureFixture
    ) -> None:
        file.write_bytes(text)
        with caplog.at_level(logging.WARNING):
            assert all(knows(ring, "old") for _ in range(10))
        assert len([record for record in caplog.records if "stay as they were" in record.message]) == 1
        file.write_bytes(key_set(NEW.jwk()))
        assert knows(ring, "new")

    def test_an_empty_set_trusts_nobody(self, ring: FileKeyring, file: Path) -> None:
        self.replace(file, key_set())
        assert not knows(ring, "old")

    def test_a_file_that_is_gone_leaves_the_old_keys_for_a_while(
        self, ring: FileKeyring, file: Path, clock: Clock
    ) -> None:
        file.unlink()
        clock.now += 3600
        assert knows(ring, "old")
        clock.now += 1
        with pytest.raises(KeysAway):
            ring.find("ES256", "old")
        file.write_bytes(key_set(OLD.jwk()))
        assert knows(ring, "old")

    def test_a_start_without_usable_keys_is_refused(self, file: Path, clock: Clock) -> None:
        file.write_bytes(b"{")
        with pytest.raises(BadKeys, match="not JSON"):
            FileKeyring(FileSource(file), ["ES256"], PACE, clock).load()
        file.unlink()
        with pytest.raises(NotRead, match="No such file"):
            FileKeyring(FileSource(file), ["ES256"], PACE, clock).load()


class TestUrl:
    def test_keys_are_fetched_when_first_needed_and_then_kept(self, ring: UrlKeyring, server: KeyServer) -> None:
        assert server.asked == 0
        assert all(knows(ring, "old") for _ in range(100))
        assert server.asked == 1

    def test_an_unknown_id_fetches_at_most_once_an_interval(
        self, ring: UrlKeyring, server: KeyServer, clock: Clock
    ) -> None:
        assert knows(ring, "old")
        for round_number in range(1, 4):
            clock.now += 10
            for number in range(200):
                assert not knows(ring, f"flood-{round_number}-{number}")
            assert server.asked == 1 + round_number
        assert knows(ring, "old")

    def test_a_rotated_key_is_known_with_the_first_token_of_it(
        self, ring: UrlKeyring, server: KeyServer, clock: Clock
    ) -> None:
        assert knows(ring, "old")
        server.body = key_set(NEW.jwk(), OLD.jwk())
        clock.now += 10
        assert knows(ring, "new") and knows(ring, "old")
        server.body = key_set(NEW.jwk())
        clock.now += 10
        assert not knows(ring, "other")
        assert not knows(ring, "old")

    def test_keys_are_fetched_again_when_they_are_old_without_holding_anyone_up(
        self, ring: UrlKeyring, server: KeyServer, clock: Clock
    ) -> None:
        assert knows(ring, "old")
        server.hold = threading.Event()
        server.body = key_set(NEW.jwk())
        clock.now += 301
        assert knows(ring, "old"), "the old keys hold while the new ones come"
        server.hold.set()
        until(lambda: not knows(ring, "old"))
        assert knows(ring, "new")

    def test_a_flood_while_the_server_hangs_holds_no_valid_token_up(self, server: KeyServer, clock: Clock) -> None:
        ring = UrlKeyring(UrlSource(server.url), ["ES256"], Pace(300, 10, 3600, wait_s=20, waiters=2), clock)
        assert knows(ring, "old")
        server.hold = threading.Event()
        clock.now += 10
        away = threading.Semaphore(0)

        def unknown(number: int) -> bool:
            try:
                return knows(ring, f"flood-{number}")
            except KeysAway:
                away.release()
                return False

        with ThreadPoolExecutor(16) as pool:
            flood = [pool.submit(unknown, number) for number in range(16)]
            for _ in range(14):
                assert away.acquire(timeout=20), "all but two are sent away"
            assert all(knows(ring, "old") for _ in range(100))
            server.hold.set()
            assert not any(one.result(20) for one in flood)
        assert server.asked == 2

    def test_a_hundred_at_once_fetch_once(self, ring: UrlKeyring, server: KeyServer) -> None:
        roomy = UrlKeyring(UrlSource(server.url), ["ES256"], Pace(wait_s=20, waiters=100))
        with ThreadPoolExecutor(50) as pool:
            assert all(pool.map(lambda _: knows(roomy, "old"), range(100)))
        assert server.asked == 1

    def test_a_server_that_is_away_leaves_the_last_good_keys_for_a_while(
        self, ring: UrlKeyring, server: KeyServer, clock: Clock
    ) -> None:
        assert knows(ring, "old")
        server.status = 500
        for _ in range(11):
            clock.now += 320
            assert knows(ring, "old")
            until(settled(ring))
        assert server.asked == 12
        clock.now += 320
        with pytest.raises(KeysAway):
            ring.find("ES256", "old")
        server.status = 200
        clock.now += 10
        assert knows(ring, "old")

    def test_without_any_good_answer_ever_there_is_nothing_to_check_with(
        self, ring: UrlKeyring, server: KeyServer, clock: Clock
    ) -> None:
        server.status = 503
        for _ in range(20):
            with pytest.raises(KeysAway):
                ring.find("ES256", "old")
        assert server.asked == 1
        server.status = 200
        clock.now += 10
        assert knows(ring, "old")

    @pytest.mark.parametrize("body", [b"", b"<html>", b'{"keys"', b"{}", b" " * (MAX_BYTES + 1)])
    def test_nonsense_leaves_the_old_keys(self, ring: UrlKeyring, server: KeyServer, clock: Clock, body: bytes) -> None:
        assert knows(ring, "old")
        server.body = body
        clock.now += 10
        assert not knows(ring, "new")
        assert server.asked == 2
        assert knows(ring, "old")


class TestAddress:
    @pytest.mark.parametrize("to", ["file:///etc/passwd", "gopher://127.0.0.1/", "http://127.0.0.1:1/", "/elsewhere"])
    def test_no_redirect_is_followed(self, server: KeyServer, to: str) -> None:
        server.status, server.headers = 302, {"Location": to}
        with pytest.raises(NotRead, match="answered 302"):
            UrlSource(server.url).read()
        assert server.asked == 1

    def test_too_much_is_not_read(self, server: KeyServer) -> None:
        server.body = b"x" * (MAX_BYTES + 1)
        with pytest.raises(NotRead, match="more than"):
            UrlSource(server.url).read()

    def test_nobody_answers(self) -> None:
        with pytest.raises(NotRead, match="ConnectionError"):
            UrlSource("http://127.0.0.1:1/keys").read()

    def test_no_password_of_the_users_is_sent_along(
        self, server: KeyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password secret\n")
        monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
        source = UrlSource(server.url)
        source._http.trust_env = True
        source.read()
        assert "Authorization" not in server.seen[0]

    def test_a_server_that_drips_is_given_up(self, server: KeyServer, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("app.api.auth.source.TOTAL_S", 0.0)
        with pytest.raises(NotRead, match="longer than"):
            UrlSource(server.url).read()


KEYS = key_set(OLD.jwk())
CHUNKED = b"%x\r\n%s\r\n0\r\n\r\n" % (len(KEYS), KEYS)
PACKED, BOMB = gzip.compress(KEYS), gzip.compress(bytes(MAX_BYTES * 4))


class TestOnTheWire:
    @pytest.fixture
    def read(self) -> Iterator[Callable[[bytes], bytes]]:
        """What a source reads from a server that sends these bytes and closes the connection."""
        listening = socket.create_server(("127.0.0.1", 0))

        def read(sent: bytes) -> bytes:
            def serve() -> None:
                connection, _ = listening.accept()
                with connection:
                    connection.recv(4096)
                    connection.sendall(b"HTTP/1.1 200 OK\r\n" + sent)

            with ThreadPoolExecutor(1) as pool:
                served = pool.submit(serve)
                try:
                    return UrlSource(f"http://127.0.0.1:{listening.getsockname()[1]}/keys").read()
                finally:
                    wait([served], 20)

        yield read
        listening.close()

    @pytest.mark.parametrize(
        "sent",
        [b"\r\n" + KEYS, b"Transfer-Encoding: chunked\r\n\r\n" + CHUNKED, b"Content-Encoding: gzip\r\n\r\n" + PACKED],
        ids=["until the end", "chunked", "gzip"],
    )
    def test_every_form_is_read(self, read: Callable[[bytes], bytes], sent: bytes) -> None:
        assert read(sent) == KEYS

    @pytest.mark.parametrize(
        "sent",
        [b"Content-Length: 9999\r\n\r\n" + KEYS, b"Transfer-Encoding: chunked\r\n\r\n" + CHUNKED[:40],
         b"Content-Encoding: gzip\r\n\r\nhello", b"Content-Encoding: gzip\r\n\r\n" + BOMB],
        ids=["cut short", "cut in a chunk", "no gzip", "a bomb"],
    )  # fmt: skip
    def test_what_is_broken_is_not(self, read: Callable[[bytes], bytes], sent: bytes) -> None:
        with pytest.raises(NotRead):
            read(sent)
