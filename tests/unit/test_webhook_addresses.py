"""Where webhooks may go: the public Internet, what an operator lists, and nothing that only looks like it."""

from __future__ import annotations

import ipaddress

import pytest

from app.webhooks.addresses import Reach, ascii_host, is_public, objection, parse_target
from tasks.attachments import Webhook


def refusal_of(url: str) -> str | None:
    try:
        return objection(parse_target(url), Reach())
    except ValueError as error:
        return str(error)


INSIDE = [
    "127.0.0.1",
    "127.255.255.254",
    "0.0.0.0",
    "10.1.2.3",
    "172.16.0.1",
    "192.168.1.1",
    "169.254.169.254",  # where clouds keep credentials
    "100.64.0.1",  # carriers' shared space
    "192.0.0.8",
    "192.0.2.1",
    "198.18.0.1",
    "224.0.0.1",
    "239.255.255.250",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::7f00:1",  # IPv4-compatible, of old
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "::ffff:a9fe:a9fe",
    "64:ff9b::7f00:1",  # through a NAT64 gateway
    "64:ff9b:1::1",
    "2002:7f00:1::",  # 6to4
    "2001:0:7f00:1::",  # Teredo
    "2001:db8::1",
    "fc00::1",
    "fd12:3456::1",
    "fe80::1",
    "fe80::1%eth0",
    "fec0::1",
    "ff02::1",
]
OUTSIDE = ["1.1.1.1", "93.184.215.14", "172.32.0.1", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"]


@pytest.mark.parametrize("address", INSIDE)
def test_address_that_is_not_of_the_public_internet_is_out_of_reach(address: str):
    assert not Reach().allows(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", OUTSIDE)
def test_public_address_is_within_reach(address: str):
    assert is_public(ipaddress.ip_address(address))
    assert Reach().allows(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/",
        "https://[::1]:8443/x",
        "http://[::ffff:127.0.0.1]/",
        "http://[::ffff:7f00:1]/",
        "http://127.1/",
        "http://2130706433/",
        "http://0x7f000001/",
        "http://0177.0.0.1/",
        "http://localhost/",
        "http://LOCALHOST./",
        "http://metrics.localhost/",
        "http://169.254.169.254/latest/meta-data",
        "http://①②⑦.0.0.1/",
        "http://127。0。0。1/",
    ],
)
def test_url_of_a_machine_of_ours_is_refused_by_its_spelling(url: str):
    assert refusal_of(url)


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("ftp://example.com/", "http or https"),
        ("file:///etc/passwd", "http or https"),
        ("gopher://example.com:70/", "http or https"),
        ("//example.com/x", "http or https"),
        ("example.com", "http or https"),
        ("https://", "http or https"),
        ("https://user:pw@example.com/", "user name or password"),
        ("https://example.com\\@127.0.0.1/", "user name or password"),
        ("https://example.com:0/", "not a valid URL"),
        ("https://example.com:99999/", "not a valid URL"),
        ("https://exa\nmple.com/", "not a valid URL"),
        ("https://example.com/" + "x" * 2048, "longer than"),
    ],
)
def test_what_is_no_plain_http_url_is_refused(url: str, problem: str):
    with pytest.raises(ValueError, match=problem):
        parse_target(url)


def test_host_is_in_ascii_and_the_origin_names_no_path():
    url = parse_target("https://Bücher.example:8443/hook/token?key=secret#x")
    assert ascii_host(url) == "xn--bcher-kva.example"
    assert Webhook(url=str(url)).origin == "https://xn--bcher-kva.example:8443"


def test_url_that_another_version_wrote_and_nobody_reads_has_an_origin_all_the_same():
    assert Webhook(url="https://[x/token").origin == "unreadable"


@pytest.mark.parametrize("name", ["https://exa mple.com/", "https://-a.example/", "https://a..b/", "https://a%00/"])
def test_host_that_is_no_name_is_refused(name: str):
    assert refusal_of(name)


def test_an_operator_allows_names_addresses_and_networks():
    reach = Reach.parse(["hooks.internal", "10.1.0.0/16", "192.168.0.7", "fd00::/8"])
    assert reach.names_host("hooks.internal") and reach.names_host("hooks.internal.")
    for address in ("10.1.255.1", "192.168.0.7", "fd00::1", "::ffff:10.1.0.1"):
        assert reach.allows(ipaddress.ip_address(address)), address
    for address in ("10.2.0.1", "192.168.0.8", "127.0.0.1", "::1"):
        assert not reach.allows(ipaddress.ip_address(address)), address
    assert objection(parse_target("http://10.1.0.1/"), reach) is None
    assert objection(parse_target("http://hooks.internal/"), reach) is None


@pytest.mark.parametrize("item", ["10.1.0.1/16", "a b", "http://x", "10.0.0.0/33", ""])
def test_item_that_is_neither_name_nor_network_is_refused(item: str):
    with pytest.raises(ValueError, match="no host name, address or CIDR block"):
        Reach.parse([item])
