import pytest

from tasks.sentinel_url import SentinelUrl


def test_url_names_sentinels_master_database_and_password() -> None:
    url = SentinelUrl.parse("sentinel://:p%40ss@a:1,b/2?master=kw")
    assert url == SentinelUrl(hosts=(("a", 1), ("b", 26379)), master="kw", db=2, password="p@ss")
    assert url.for_kombu() == "sentinel://:p%40ss@a:1/2;sentinel://:p%40ss@b:26379/2"


def test_bare_host_is_enough() -> None:
    url = SentinelUrl.parse("sentinel://a")
    assert (url.hosts, url.master, url.db, url.password) == ((("a", 26379),), "mymaster", 0, None)
    assert url.for_kombu() == "sentinel://a:26379/0"


@pytest.mark.parametrize("wrong", ["sentinel://", "sentinel://a:x", "sentinel://a/none", "redis://a"])
def test_wrong_url_is_refused(wrong: str) -> None:
    with pytest.raises(ValueError, match=r"sentinel|database"):
        SentinelUrl.parse(wrong)
