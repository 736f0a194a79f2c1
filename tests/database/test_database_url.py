"""A DATABASE_URL means here what it means to libpq."""

from __future__ import annotations

from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegis.config import Config, DatabaseConfig
from aegis.config._postgres import PostgresUrl, parse_postgres_url
from aegis.errors import ConfigError


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("postgresql://", PostgresUrl()),
        ("postgres://h", PostgresUrl((("h", 5432),))),
        ("postgresql://u:p@h:6543/d", PostgresUrl((("h", 6543),), "u", "p", "d")),
        ("postgresql://u@h", PostgresUrl((("h", 5432),), "u")),
        ("postgresql://u:@h/d", PostgresUrl((("h", 5432),), "u", "", "d")),
        ("postgresql://u:a%40b%2Fc+d@h/x%20y", PostgresUrl((("h", 5432),), "u", "a@b/c+d", "x y")),
        ("postgresql://[2001:db8::1]:5433/d", PostgresUrl((("2001:db8::1", 5433),), database="d")),
        ("postgresql://a,b:5433/d", PostgresUrl((("a", 5432), ("b", 5433)), database="d")),
        ("postgresql://a:1,b:2,c:3", PostgresUrl((("a", 1), ("b", 2), ("c", 3)))),
        ("postgresql:///d?host=a,b&port=7", PostgresUrl((("a", 7), ("b", 7)), database="d")),
        ("postgresql:///d?host=a,b&port=7,8", PostgresUrl((("a", 7), ("b", 8)), database="d")),
        ("postgresql://u:@/d?host=/run/pg", PostgresUrl((("/run/pg", 5432),), "u", "", "d")),
        ("postgresql://%2Frun%2Fpg/d", PostgresUrl((("/run/pg", 5432),), database="d")),
        ("postgresql://:6000/d?host=/run/pg", PostgresUrl((("/run/pg", 6000),), database="d")),
        ("postgresql://:6000/d", PostgresUrl((("localhost", 6000),), database="d")),
        ("postgresql://h/d?user=x&user=y&password=z", PostgresUrl((("h", 5432),), "y", "z", "d")),
        ("postgresql://h/d?dbname=e", PostgresUrl((("h", 5432),), database="e")),
        ("postgresql://h?ssl=true", PostgresUrl((("h", 5432),), tls={"sslmode": "require"})),
        (
            "postgresql://h/d?sslmode=verify-full&sslrootcert=/ca.pem&keepalives=1",
            PostgresUrl((("h", 5432),), database="d", tls={"sslmode": "verify-full", "sslrootcert": "/ca.pem"}),
        ),
        (
            "postgresql://h/d?options=-c%20search_path%3Dx&target_session_attrs=read-write",
            PostgresUrl(
                (("h", 5432),), database="d",
                options={"options": "-c search_path=x", "target_session_attrs": "read-write"},
            ),
        ),
    ],
)  # fmt: skip
def test_a_url_is_read_as_libpq_reads_it(url, expected):
    """Hosts with ports by position, sockets, escapes, a literal plus, the last duplicate."""
    assert parse_postgres_url(url) == expected


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("mysql://h", "expected a URL such as"),
        ("h:5432", "expected a URL such as"),
        ("postgresql://u:hunter2%@h", "two hexadecimal digits"),
        ("postgresql://u:hunter2%00@h", "%00"),
        ("postgresql://u:%ff@h", "not UTF-8"),
        ("postgresql://h:port/d", "a port is not"),
        ("postgresql://h:0/d", "a port is not"),
        ("postgresql://h:70000/d", "a port is not"),
        ("postgresql://u:hunter2/x@h/d", "an @ stands after a slash"),
        ("postgresql://u:1/hunter2@h/d", "an @ stands after a slash"),
        ("postgresql://u:hunt?hunter2@h/d=1", "not shown"),
        ("postgresql://2001:db8::1/d", "brackets"),
        ("postgresql:///d?host=a,b,c&port=1,2", "2 ports for 3 hosts"),
        ("postgresql://h/d?sslmod=require", "unknown parameter; did you mean sslmode"),
        ("postgresql://h/d?user", "exactly one ="),
        ("postgresql://h/d?user=a=b", "exactly one ="),
        ("postgresql://h/d?target_session_attrs=writable", "none of any"),
    ],
)
def test_what_cannot_be_read_is_refused_without_repeating_it(url, problem):
    """The message names the part that is wrong, and never holds the password."""
    with pytest.raises(ValueError) as caught:
        parse_postgres_url(url)
    assert problem in str(caught.value)
    assert "hunter2" not in str(caught.value)


@given(user=st.text(min_size=1), password=st.text(), database=st.text(min_size=1), host=st.text(min_size=1))
def test_whatever_is_quoted_comes_back(user, password, database, host):
    """Any user, password, database and host that is percent-encoded survives the way through a URL."""
    words = [user, password, database, host]
    if any("\0" in word or "," in word for word in words) or any("\ud800" <= c <= "\udfff" for w in words for c in w):
        return
    url = "postgresql://{}:{}@{}/{}".format(*(quote(word, safe="") for word in (user, password, host, database)))
    assert parse_postgres_url(url) == PostgresUrl(((host, 5432),), user, password, database)


def test_the_configuration_reads_the_same_parts_from_the_url():
    """Whoever shows the configuration sees host, user and database of the URL; the password stays hidden."""
    url = "postgresql://me:hunter2@db1:6000,db2/market?target_session_attrs=read-write&connect_timeout=3&pgbouncer=true"
    config = Config.load({"DATABASE_URL": url}, None).database
    assert (config.host, config.port, config.name, config.user) == ("db1,db2", 6000, "market", "me")
    assert (config.target_session_attrs, config.connect_timeout, config.pgbouncer) == ("read-write", 3.0, True)
    assert config.password.get_secret_value() == "hunter2"
    assert "hunter2" not in repr(config)


@pytest.mark.parametrize(
    ("environ", "problem"),
    [
        ({"DATABASE_URL": "postgresql://u:hunter2@h/d", "DB_HOST": "other"}, "DB_HOST: contradicts DATABASE_URL"),
        ({"DATABASE_URL": "postgresql://u:hunter2@h/d", "DB_PASSWORD": "x"}, "DB_PASSWORD: contradicts DATABASE_URL"),
        ({"DATABASE_URL": "postgresql://u:hunter2%@h/d"}, "DATABASE_URL"),
        ({"DATABASE_URL": "postgresql://h/d", "DATABASE_REPLICA_URL": "nonsense"}, "DATABASE_REPLICA_URL"),
    ],
)
def test_contradictions_are_reported_by_variable(environ, problem):
    """A URL and a different part, or a URL that cannot be read: named, without the secret."""
    with pytest.raises(ConfigError) as caught:
        Config.load(environ, None)
    assert problem in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_the_same_part_twice_is_no_contradiction():
    """A URL beside equal parts is fine; embedded: says nothing about them."""
    config = Config.load({"DATABASE_URL": "postgresql://u@h:5432/d", "DB_HOST": "h", "DB_PORT": "5432"}, None).database
    assert config.host == "h"
    assert DatabaseConfig(url="embedded:").embedded
