"""Outbound requests go to public addresses over https, or where the operator allows it."""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest

from api_tests.support.dns import PUBLIC_ADDRESS, fake_resolver
from touchstone.errors import AddressRefused, RemoteUnavailable
from touchstone.net.addresses import Permits, is_closed
from touchstone.net.outbound import OutboundClient, Target


@pytest.mark.parametrize(
    "text",
    [
        *("0.0.0.0", "0.1.2.3", "10.0.0.1", "100.64.0.1", "100.100.100.200", "127.0.0.1", "127.255.255.254"),
        *("169.254.169.254", "172.16.0.1", "172.31.255.255", "192.0.0.192", "192.168.1.1", "198.18.0.1"),
        *("192.0.2.1", "192.88.99.1", "198.51.100.1", "203.0.113.1", "224.0.0.1", "239.1.1.1", "240.0.0.1"),
        *(
            "255.255.255.255",
            "168.63.129.16",
            "::",
            "::1",
            "::127.0.0.1",
            "::ffff:127.0.0.1",
            "::ffff:8.8.8.8",
        ),
        *("64:ff9b::7f00:1", "64:ff9b::8.8.8.8", "64:ff9b:1::1", "100::1", "2001::1", "2001:0:4136:e378::1"),
        *(
            "2001:10::1",
            "2001:20::1",
            "2001:db8::1",
            "2002:7f00:1::",
            "2002:808:808::1",
            "3fff::1",
            "5f00::1",
        ),
        *("fc00::1", "fd00:ec2::254", "fe80::1", "fe80::1%eth0", "fec0::1", "ff02::1", "4000::1"),
    ],
)
def test_private_and_reserved_addresses_are_refused(text: str) -> None:
    assert is_closed(ipaddress.ip_address(text))
    with pytest.raises(AddressRefused, match="private or reserved"):
        OutboundClient(resolver=fake_resolver(text)).check("https://a.example/")


@pytest.mark.parametrize(
    "text", ["8.8.8.8", PUBLIC_ADDRESS, "172.32.0.1", "100.128.0.1", "2606:4700::1111", "2a00::1"]
)
def test_public_addresses_are_allowed_over_https_only(text: str) -> None:
    assert not is_closed(ipaddress.ip_address(text))
    out = OutboundClient(resolver=fake_resolver(text))
    out.check("https://a.example/x?y=z")
    with pytest.raises(AddressRefused, match="only https"):
        out.check("http://a.example/")


@pytest.mark.parametrize(
    "url",
    [
        *("", "a.example", "//a.example", "ftp://a.example", "file:///etc/passwd", "https://", "https:///x"),
        *(
            "https://user@a.example/",
            "https://u:p@a.example/",
            "https://a.example/#x",
            "https://a.example:99999/",
        ),
        *(
            "https://a.example:0/",
            "https://a .example/",
            "https://a.example/\r\nX: y",
            "https://[::1/",
            "https://é/",
        ),
        *(
            "https://a.example/\x00",
            "https://a.example/" + "x" * 2000,
            "https://%31%32%37.0.0.1/",
            "https://[2606:4700::1111%25eth0]/",
            "https://[2606:4700::1111%eth0]/",
            "https://a%2e.example/",
            "https://a@b@c/",
        ),
    ],
)
def test_malformed_url_is_refused(url: str) -> None:
    with pytest.raises(AddressRefused):
        Target.parse(url)


@pytest.mark.parametrize(
    "host", ["127.1", "2130706433", "0x7f.1", "0177.0.0.1", "[::ffff:7f00:1]", "localhost"]
)
def test_disguised_loopback_address_is_refused(host: str) -> None:
    with pytest.raises(AddressRefused, match="private or reserved"):
        OutboundClient().check(f"https://{host}/")


def test_every_resolved_address_of_a_name_is_checked() -> None:
    with pytest.raises(AddressRefused):
        OutboundClient(resolver=fake_resolver([PUBLIC_ADDRESS, "10.0.0.1"])).check("https://a.example/")
    with pytest.raises(RemoteUnavailable, match="no address"):
        OutboundClient(resolver=fake_resolver([])).check("https://a.example/")
    with pytest.raises(RemoteUnavailable, match="cannot be resolved"):
        OutboundClient().check("https://nowhere.invalid/")


@pytest.mark.parametrize(
    ("allow", "url", "address"),
    [
        ("models.internal", "http://models.internal/", "10.0.0.1"),
        ("other, models.internal:8080", "http://MODELS.internal.:8080/", "127.0.0.1"),
        ("10.0.0.0/8", "http://a.example:1/", "10.9.9.9"),
        ("127.0.0.1", "http://127.0.0.1:5/", "127.0.0.1"),
        ("127.0.0.1:5", "http://127.0.0.1:5/", "127.0.0.1"),
        ("[::1]:5", "http://[::1]:5/", "::1"),
        ("fd00::/8", "https://a.example/", "fd12::1"),
    ],
)
def test_operator_can_allow_hosts_ports_and_networks(allow: str, url: str, address: str) -> None:
    OutboundClient(allow, resolver=fake_resolver(address)).check(url)
    with pytest.raises(AddressRefused):
        OutboundClient(resolver=fake_resolver(address)).check(url)


@pytest.mark.parametrize(
    ("allow", "url", "address"),
    [
        ("models.internal:8080", "http://models.internal:8081/", "10.0.0.1"),
        ("internal", "http://models.internal/", "10.0.0.1"),
        ("10.0.0.0/8", "http://a.example/", "11.0.0.1"),
        ("127.0.0.1:5", "http://127.0.0.1:6/", "127.0.0.1"),
        ("127.0.0.0/8", "https://a.example/", "::ffff:127.0.0.1"),
    ],
)
def test_allowed_hosts_ports_and_networks_open_no_others(allow: str, url: str, address: str) -> None:
    with pytest.raises(AddressRefused):
        OutboundClient(allow, resolver=fake_resolver(address)).check(url)


@pytest.mark.parametrize("text", ["10.0.0.1/8", "a b", "https://a", "a:b", "a:99999", "*.internal", "a:0"])
def test_invalid_allow_list_entry_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no host"):
        Permits.parse(text)


@pytest.mark.parametrize(
    ("allow", "url", "accepted"),
    [
        (None, "https://a.example/", True),
        (None, "http://a.example/", False),
        ("10.0.0.0/8", "http://a.example/", True),  # the name may resolve to it
        (None, "https://127.1/", False),
        (None, "https://2130706433/", False),
        (None, "https://api.localhost/", False),
        ("localhost", "http://localhost:9000/", True),
        ("127.0.0.1:9000", "http://127.0.0.1:9000/", True),
        ("127.0.0.1:9000", "http://127.0.0.1:9001/", False),
        (None, "https://8.8.8.8/", True),
        ("10.0.0.0/8", "http://8.8.8.8/", False),
    ],
)
def test_written_url_is_checked_without_resolving_it(allow: str | None, url: str, *, accepted: bool) -> None:
    def find(*_: Any) -> Any:
        raise AssertionError("resolved")

    outgoing = OutboundClient(allow, resolver=find)
    if accepted:
        return outgoing.check_url(url)
    with pytest.raises(AddressRefused):
        outgoing.check_url(url)
