"""Which URLs and addresses may be downloaded from, decided without any network."""

from __future__ import annotations

import dataclasses
import socket
from ipaddress import ip_address
from typing import Any

import pytest

from workers.artifacts import FetchFailed, FetchPolicy, UrlRefused
from workers.artifacts.addresses import refusal, resolve
from workers.artifacts.targets import follow, parse_target

PUBLIC = FetchPolicy(max_bytes=1000, timeout_s=5)

REFUSED_URLS = [
    "file:///etc/passwd",
    "ftp://example.com/x",
    "gopher://example.com/x",
    "data:text/plain,x",
    "//example.com/x",
    "example.com/x",
    "http:example.com/x",
    "http:///x",
    "http://",
    "",
    "http://user@example.com/",
    "http://user:secret@example.com/",
    "http://example.com@127.0.0.1/",
    "http://127.0.0.1\\@example.com/",
    "http://exa mple.com/",
    "http://example.com/a b",
    "http://example.com/\r\nHost: x",
    "http://exam\tple.com/",
    " http://example.com/",
    "http://example.com:0/",
    "http://example.com:22/",
    "http://example.com:6667/",
    "http://example.com:65536/",
    "http://example.com:99999999/",
    "http://example.com:-1/",
    "http://example.com:8o/",
    "http://127.0.0.1/",
    "http://127.0.0.1./",
    "http://127.255.255.254/",
    "http://0.0.0.0/",
    "http://0/",
    "http://2130706433/",
    "http://017700000001/",
    "http://0177.0.0.1/",
    "http://0x7f.0.0.1/",
    "http://0x7f000001/",
    "http://0x7f.1/",
    "http://127.1/",
    "http://example.0x/",
    "http://1.2.3.4.5/",
    "http://256.1.1.1/",
    "http://\u0661\u0662\u0667.0.0.1/",
    "http://\uff11\uff12\uff17.0.0.1/",
    "http://ex\u00e4mple.com/",
    "http://10.0.0.1/",
    "http://172.16.0.1/",
    "http://192.168.1.1/",
    "http://100.64.0.1/",
    "http://100.100.100.200/",
    "http://169.254.169.254/latest/meta-data/",
    "http://168.63.129.16/",
    "http://192.0.0.192/",
    "http://192.0.2.1/",
    "http://198.18.0.1/",
    "http://224.0.0.1/",
    "http://240.0.0.1/",
    "http://255.255.255.255/",
    "http://[::1]/",
    "http://[::]/",
    "http://[::127.0.0.1]/",
    "http://[::ffff:127.0.0.1]/",
    "http://[::ffff:a9fe:a9fe]/",
    "http://[::ffff:10.0.0.1]/",
    "http://[64:ff9b::a9fe:a9fe]/",
    "http://[64:ff9b:1::1]/",
    "http://[2002:a9fe:a9fe::]/",
    "http://[2001::1]/",
    "http://[2001:db8::1]/",
    "http://[3fff::1]/",
    "http://[fc00::1]/",
    "http://[fd00:ec2::254]/",
    "http://[fe80::1]/",
    "http://[fe80::1%25eth0]/",
    "http://[fec0::1]/",
    "http://[ff02::1]/",
    "http://[::1/",
    "http://[::1]x/",
    "http://x[::1]/",
    "http://[v1.x]/",
    "http://-example.com/",
    "http://exa..mple.com/",
    "http://.example.com/",
    "http://" + "a" * 64 + ".com/",
    "http://example.com/" + "a" * 9000,
    "http://example.com/\ud800",
]


@pytest.mark.parametrize("url", REFUSED_URLS, ids=lambda url: ascii(url)[:50])
def test_refuses_the_url(url: str) -> None:
    with pytest.raises(UrlRefused) as caught:
        parse_target(url, PUBLIC)
    assert not caught.value.retryable
    assert not caught.value.node_fault
    str(caught.value).encode()


@pytest.mark.parametrize(
    ("url", "normal"),
    [
        ("https://example.com/bin", "https://example.com/bin"),
        ("HTTPS://Example.COM:443", "https://example.com/"),
        ("http://example.com.:8080/a?b=c#d", "http://example.com:8080/a?b=c"),
        ("http://example.com:/x", "http://example.com/x"),
        ("http://1.1.1.1/x", "http://1.1.1.1/x"),
        ("http://[2606:4700:4700:0::1111]:8080/x", "http://[2606:4700:4700::1111]:8080/x"),
        ("http://xn--exmple-cua.com/", "http://xn--exmple-cua.com/"),
        ("http://a_b.example.com/%2F~x", "http://a_b.example.com/%2F~x"),
        ("http://example.com/\u00e4?\u00f6", "http://example.com/%C3%A4?%C3%B6"),
    ],
)
def test_accepts_and_normalises_the_url(url: str, normal: str) -> None:
    assert parse_target(url, PUBLIC).url == normal


def test_never_shows_the_query_of_a_signed_url() -> None:
    assert parse_target("https://example.com/bin?signature=secret", PUBLIC).shown == "https://example.com/bin"


def test_refusal_of_a_password_names_the_way_out_and_not_the_password() -> None:
    with pytest.raises(UrlRefused, match="user name or password; use a signed URL") as caught:
        parse_target("http://me:secret@example.com/", PUBLIC)
    assert "secret" not in str(caught.value)


def test_scheme_can_be_narrowed() -> None:
    policy = dataclasses.replace(PUBLIC, schemes=frozenset({"https"}))
    with pytest.raises(UrlRefused, match="only https is allowed"):
        parse_target("http://example.com/", policy)


def test_host_patterns_admit_what_they_name_only() -> None:
    policy = dataclasses.replace(PUBLIC, hosts=("*.example.com", "Files.example.org", "1.1.1.1"))
    for admitted in ("a.example.com", "b.A.example.com", "files.example.org", "1.1.1.1"):
        parse_target(f"http://{admitted}/", policy)
    for other in (
        "example.com",
        "notexample.com",
        "a.example.com.evil.org",
        "x.files.example.org",
        "1.0.0.1",
    ):
        with pytest.raises(UrlRefused, match="not among the hosts"):
            parse_target(f"http://{other}/", policy)


@pytest.mark.parametrize(
    ("address", "loopback", "private"),
    [
        ("127.0.0.1", True, False),
        ("::1", True, False),
        ("::ffff:127.0.0.1", True, False),
        ("10.1.2.3", False, True),
        ("192.168.0.1", False, True),
        ("100.64.0.1", False, True),
        ("fd12::1", False, True),
        ("0.0.0.0", False, False),
        ("169.254.169.254", False, False),
        ("100.100.100.200", False, False),
        ("168.63.129.16", False, False),
        ("fd00:ec2::254", False, False),
        ("fe80::1%eth0", False, False),
        ("64:ff9b::a00:1", False, False),
        ("224.0.0.1", False, False),
    ],
)
def test_settings_open_their_own_ranges_only(address: str, loopback: bool, private: bool) -> None:
    with_loopback = dataclasses.replace(PUBLIC, allow_loopback=True)
    with_private = dataclasses.replace(PUBLIC, allow_private=True)
    assert refusal(ip_address(address), PUBLIC) is not None
    assert (refusal(ip_address(address), with_loopback) is None) == loopback
    assert (refusal(ip_address(address), with_private) is None) == private


@pytest.mark.parametrize("address", ["8.8.8.8", "172.32.0.1", "2606:4700::1", "::ffff:8.8.8.8", "2a00:1450::1"])
def test_public_addresses_are_allowed(address: str) -> None:
    assert refusal(ip_address(address), PUBLIC) is None


def _answers(*addresses: str) -> Any:
    def resolver(host: str, port: int, *, type: int) -> list[tuple[Any, ...]]:
        rows: list[tuple[Any, ...]] = []
        for address in addresses:
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            rows.append((family, type, 6, "", (address, port, 0, 0) if ":" in address else (address, port)))
        return rows

    return resolver


def test_one_inside_address_refuses_the_whole_answer() -> None:
    with pytest.raises(UrlRefused, match=r"'both\.test' has the address 10\.0\.0\.7, which is a private address"):
        resolve("both.test", 80, PUBLIC, _answers("8.8.8.8", "2606:4700::1", "10.0.0.7"))


def test_lookup_keeps_the_order_and_drops_doubles() -> None:
    endpoints = resolve("x.test", 81, PUBLIC, _answers("2606:4700::1", "8.8.8.8", "8.8.8.8"))
    assert [endpoint.sockaddr[:2] for endpoint in endpoints] == [("2606:4700::1", 81), ("8.8.8.8", 81)]


def test_failed_or_empty_lookup_is_retryable() -> None:
    def broken(*_args: object, **_more: object) -> list[tuple[Any, ...]]:
        raise socket.gaierror(socket.EAI_AGAIN, "try again")

    for resolver in (broken, _answers()):
        with pytest.raises(FetchFailed) as caught:
            resolve("x.test", 80, PUBLIC, resolver)
        assert caught.value.retryable


@pytest.mark.parametrize(
    ("location", "url"),
    [
        ("/other", "https://example.com/other"),
        ("other?x=1", "https://example.com/dir/other?x=1"),
        ("//cdn.example.com/x", "https://cdn.example.com/x"),
        ("http://cdn.example.com:8080/a b", "http://cdn.example.com:8080/a%20b"),
        ("/\u00c3\u00a4", "https://example.com/%C3%A4"),
    ],
)
def test_redirects_are_followed_as_written(location: str, url: str) -> None:
    start = parse_target("https://example.com/dir/bin?signature=s", PUBLIC)
    assert follow(start, location, PUBLIC).url == url


@pytest.mark.parametrize(
    "location",
    ["file:///etc/passwd", "http://169.254.169.254/", "http://[::1]/", "//u@h/", "http://[", "//0/"],
)
def test_redirects_are_checked_like_first_urls(location: str) -> None:
    with pytest.raises(UrlRefused, match=r"https://example\.com/bin redirects to a"):
        follow(parse_target("https://example.com/bin", PUBLIC), location, PUBLIC)


@pytest.mark.parametrize(
    "change",
    [
        {"schemes": frozenset({"ftp"})},
        {"schemes": frozenset()},
        {"hosts": ("https://example.com",)},
        {"hosts": ("example.com:80",)},
        {"hosts": ("*",)},
        {"max_bytes": 0},
        {"timeout_s": -1},
        {"read_timeout_s": float("nan")},
        {"max_redirects": -1},
    ],
)
def test_policy_refuses_values_without_sense(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be"):
        FetchPolicy(**({"max_bytes": 1, "timeout_s": 1} | change))
