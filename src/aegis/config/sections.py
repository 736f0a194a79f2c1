"""
The registry: every variable of aegis, its type, unit, default and meaning. Add one here and nowhere else.

The variable of a field is the section's prefix and the field's name in capitals, unless the field names another.
Times are seconds, sizes are bytes; in the environment they carry a unit (`30s`, `16MiB`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator, model_validator

from aegis.config._postgres import parse_postgres_url
from aegis.config._redis_url import parse_node, redis_parts, write_node
from aegis.config._section import Addressed, Section, conflict, var
from aegis.config._types import (
    AnyCase,
    BaseUrl,
    Duration,
    Int,
    Levels,
    Names,
    Port,
    PositiveDuration,
    PositiveInt,
    Size,
    Switch,
    parse_switch,
    write_duration,
)
from aegis.errors import ConfigProblem

if TYPE_CHECKING:
    from aegis.config._compare import Reload

REAL_KIS_URL = "https://openapi.koreainvestment.com:9443"
PAPER_KIS_URL = "https://openapivts.koreainvestment.com:29443"


class RedisConfig(Addressed):
    """The Redis or Valkey server, Sentinel group or cluster that all processes share."""

    prefix = "REDIS_"

    enabled: Switch = var(True, "false turns every Redis feature into a no-op without any I/O")
    url: SecretStr | None = var(
        None,
        "where the server is, instead of the parts: redis://, rediss:// (TLS), unix:///path, "
        "redis+sentinel://host:port,host:port/name, redis+cluster://host:port,host:port, or embedded:",
        example="redis://user:password@localhost:6379/0",
    )
    mode: Annotated[Literal["single", "sentinel", "cluster"], AnyCase] = var(
        "single", "one server, a primary that Sentinels watch, or a cluster"
    )
    nodes: Names = var((), "Sentinels, or some nodes of the cluster: host1:7000,host2:7001")
    sentinel_name: str | None = var(None, "name under which the Sentinels watch the primary")
    sentinel_username: str | None = var(None, "ACL user of the Sentinels; unset means the default user")
    sentinel_password: SecretStr | None = var(None, "password of the Sentinels, which is not that of the servers")
    host: str = var("localhost", "host name or address of the server")
    port: Port = var(6379, "TCP port of the server")
    socket: str | None = var(None, "path of a unix socket, instead of host and port")
    username: str | None = var(None, "ACL user; unset means the default user")
    password: SecretStr | None = var(None, "password of the user")
    db: Annotated[Int, Field(ge=0)] = var(0, "number of the database")
    tls: Switch = var(False, "speak TLS; rediss:// implies it")
    tls_ca_file: Path | None = var(None, "CA certificates (PEM) to trust instead of the system's")
    tls_cert_file: Path | None = var(None, "client certificate (PEM), for servers that ask for one")
    tls_key_file: Path | None = var(None, "key of the client certificate (PEM)")
    client_name: str = var("aegis", "name of our connections in CLIENT LIST")
    connect_timeout: PositiveDuration = var(2.0, "longest wait for a connection, its TLS and its login together")
    command_timeout: PositiveDuration = var(5.0, "longest wait for one reply, from the moment the command is given")
    hang_timeout: PositiveDuration = var(2.0, "longest silence of the server while a reply is due; then we reconnect")
    max_in_flight: PositiveInt = var(65_536, "most commands in flight on one connection; further callers wait")
    max_in_flight_bytes: Size = var(64 * 1024 * 1024, "most bytes of commands in flight; further callers wait")
    max_reply_bytes: Size = var(512 * 1024 * 1024, "largest reply accepted; a larger one closes the connection")
    topic_partitions: Annotated[Int, Field(ge=0, le=1024)] = var(
        0, "partitions of each broadcast topic, the same in all processes; 0: 1 on one server, 16 on a cluster"
    )

    @classmethod
    def spelled(cls, url: str) -> dict[str, Any]:
        """See `_redis_url.py`."""
        return redis_parts(url)

    def conflicts(self) -> Iterator[ConfigProblem]:
        """A socket or a host, the two halves of a client certificate, and what each mode needs."""
        yield from super().conflicts()
        yield from self._mode_conflicts()
        if self.socket is not None:
            for field in sorted({"host", "port"} & self.model_fields_set):
                yield conflict(f"REDIS_{field.upper()}", "REDIS_SOCKET", "a unix socket has neither host nor port")
        if (self.tls_cert_file is None) != (self.tls_key_file is None):
            one, other = "REDIS_TLS_CERT_FILE", "REDIS_TLS_KEY_FILE"
            given, missing = (one, other) if self.tls_key_file is None else (other, one)
            yield conflict(given, missing, f"needs {missing} as well; set both or none")

    def _mode_conflicts(self) -> Iterator[ConfigProblem]:
        mode = f"REDIS_MODE={self.mode}"
        if self.mode == "single":
            if self.nodes:
                yield conflict("REDIS_NODES", "REDIS_MODE", f"means nothing with {mode}; set sentinel or cluster")
            return
        for field in sorted({"host", "port", "socket"} & self.model_fields_set):
            yield conflict(f"REDIS_{field.upper()}", "REDIS_MODE", f"means nothing with {mode}; set REDIS_NODES")
        if not self.nodes:
            yield conflict("REDIS_MODE", "REDIS_NODES", f"{mode} needs REDIS_NODES=host:port,host:port")
        if self.mode == "sentinel" and not self.sentinel_name:
            yield conflict("REDIS_MODE", "REDIS_SENTINEL_NAME", f"{mode} needs the name of the primary")
        if self.mode == "cluster" and self.db:
            yield conflict("REDIS_DB", "REDIS_MODE", "a cluster has the database 0 only")

    @field_validator("nodes")
    @classmethod
    def _are_places(cls, nodes: tuple[str, ...]) -> tuple[str, ...]:
        for node in nodes:
            parse_node(node, "")
        return nodes

    @property
    def seeds(self) -> tuple[tuple[str, int], ...]:
        """Host and port of each of `nodes`."""
        return tuple(parse_node(node, self.mode) for node in self.nodes)

    def at(self, host: str, port: int) -> RedisConfig:
        """The same for one server of the group, to be found at this place."""
        place = {"url": None, "mode": "single", "nodes": (), "host": host, "port": port, "socket": None}
        return self.model_copy(update=place)

    @property
    def address(self) -> str:
        """Where the server is, for messages: never holds a secret."""
        if self.mode == "sentinel":
            return f"{self.sentinel_name} of Sentinels {','.join(self.nodes)}"
        if self.mode == "cluster":
            return f"cluster {','.join(self.nodes)}"
        return f"unix:{self.socket}" if self.socket else write_node(self.host, self.port)


class DatabaseConfig(Addressed):
    """The PostgreSQL server and the bounds of the pool."""

    prefix = "DB_"

    url: SecretStr | None = var(
        None,
        "where the server is, as libpq reads it, instead of the parts; or embedded:",
        name="DATABASE_URL",
        example="postgresql://user:password@localhost:5432/aegis",
    )
    replica_url: SecretStr | None = var(
        None,
        "where reads go that may be a little old (`db.replica`); unset: to the same server",
        name="DATABASE_REPLICA_URL",
        example="postgresql://user:password@standby1,standby2/aegis?target_session_attrs=prefer-standby",
    )
    host: str = var("localhost", "host name, address, or directory of the unix socket; several with commas")
    port: Port = var(5432, "TCP port of the server")
    name: str = var("aegis", "name of the database")
    user: str = var("postgres", "user to log in as")
    password: SecretStr | None = var(None, "password of the user")
    max_conns: PositiveInt = var(25, "most connections of one process")
    min_conns: Annotated[Int, Field(ge=0)] = var(5, "connections kept open when idle")
    max_conn_lifetime: PositiveDuration = var(3600.0, "age at which a connection is replaced; up to 10 % earlier")
    max_conn_idle_time: PositiveDuration = var(1800.0, "idle time after which a connection above the minimum closes")
    connect_timeout: PositiveDuration = var(5.0, "longest wait for one connection attempt")
    acquire_timeout: PositiveDuration = var(5.0, "longest wait for a connection from the pool")
    max_waiting: PositiveInt = var(1000, "most callers waiting for a connection; further ones are refused at once")
    statement_timeout: Duration = var(30.0, "longest statement, enforced by the server; 0 = no bound")
    lock_timeout: Duration = var(10.0, "longest wait for one lock, enforced by the server; 0 = no bound")
    idle_in_transaction_timeout: Duration = var(
        60.0, "longest silence inside a transaction; then the server ends it and its connection; 0 = no bound"
    )
    application_name: str = var("aegis", "name of our connections in pg_stat_activity")
    target_session_attrs: Literal["any", "read-write", "read-only", "primary", "standby", "prefer-standby"] = var(
        "any", "which of several hosts will do"
    )
    pgbouncer: Switch = var(False, "there is a pgbouncer in between: no named statements, no session settings or reset")
    close_timeout: Duration = var(5.0, "longest wait for borrowed connections when the pool closes; then they are cut")
    leak_after: Duration = var(60.0, "a connection held longer is reported with its borrower; 0 = never")
    reset: Literal["changed", "always"] = var(
        "changed", "changed: reset a session whose statements changed it; always: after every use (one round trip)"
    )

    @classmethod
    def spelled(cls, url: str) -> dict[str, Any]:
        """As libpq reads it."""
        parsed = parse_postgres_url(url)
        parts: dict[str, Any] = {"user": parsed.user, "password": parsed.password, "name": parsed.database}
        if parsed.hosts:
            parts |= {"host": ",".join(host for host, _ in parsed.hosts), "port": parsed.hosts[0][1]}
        for name in ("application_name", "target_session_attrs"):
            parts[name] = parsed.options.get(name)
        if "pgbouncer" in parsed.options:
            parts["pgbouncer"] = parse_switch(parsed.options["pgbouncer"])
        seconds = parsed.options.get("connect_timeout", "0")
        if not (seconds.isascii() and seconds.isdigit()):
            raise ValueError(f"connect_timeout={seconds!r} is not a whole number of seconds")
        parts["connect_timeout"] = float(seconds) or None
        return {field: value for field, value in parts.items() if value is not None}

    @field_validator("replica_url")
    @classmethod
    def _can_be_spelled_too(cls, url: SecretStr | None) -> SecretStr | None:
        return cls.checked(url)

    def conflicts(self) -> Iterator[ConfigProblem]:
        """The bounds of the pool."""
        yield from super().conflicts()
        if self.min_conns > self.max_conns:
            yield conflict("DB_MIN_CONNS", "DB_MAX_CONNS", f"{self.min_conns} is above DB_MAX_CONNS={self.max_conns}")


class HttpConfig(Section):
    """Bounds of the HTTP client; retries and breakers are set in code."""

    prefix = "HTTP_"

    timeout: PositiveDuration = var(30.0, "longest call: permit waits, all attempts and the body together")
    attempt_timeout: PositiveDuration = var(10.0, "longest single attempt, its body included")
    connect_timeout: PositiveDuration = var(5.0, "longest wait for a connection and its TLS")
    max_connections: PositiveInt = var(100, "most open connections of one process")
    max_connections_per_host: PositiveInt = var(32, "most open connections to one host")
    max_body: Size = var(16 * 1024 * 1024, "largest body accepted, on the wire and decoded")
    proxy_from_env: Switch = var(True, "honour HTTP_PROXY, HTTPS_PROXY and NO_PROXY; never on the way to this host")

    def conflicts(self) -> Iterator[ConfigProblem]:
        """Each timeout fits into the one around it."""
        for inner, outer in (("attempt_timeout", "timeout"), ("connect_timeout", "attempt_timeout")):
            if getattr(self, inner) > getattr(self, outer):
                bound = f"HTTP_{outer.upper()}={write_duration(getattr(self, outer))}"
                yield conflict(
                    f"HTTP_{inner.upper()}",
                    f"HTTP_{outer.upper()}",
                    f"{write_duration(getattr(self, inner))} is longer than {bound}",
                )
        both = {"max_connections", "max_connections_per_host"} <= self.model_fields_set
        if both and self.max_connections_per_host > self.max_connections:
            yield conflict(
                "HTTP_MAX_CONNECTIONS_PER_HOST",
                "HTTP_MAX_CONNECTIONS",
                f"{self.max_connections_per_host} is above HTTP_MAX_CONNECTIONS={self.max_connections}",
            )


class KisConfig(Section):
    """Korea Investment & Securities (한국투자증권) Open API."""

    prefix = "KIS_"

    app_key: SecretStr | None = var(None, "app key")
    app_secret: SecretStr | None = var(None, "app secret")
    account_no: str | None = var(None, "account number, as text", example="00123456-01")
    is_virtual: Switch = var(False, "paper trading (모의투자): another host and lower quotas")
    base_url: BaseUrl = var("", "host of the API; unset means the real or the paper one, as KIS_IS_VIRTUAL says")
    hts_id: str | None = var(None, "HTS user id")

    @model_validator(mode="before")
    @classmethod
    def _host_by_kind(cls, values: Any) -> Any:
        if not isinstance(values, Mapping) or values.get("base_url"):
            return values
        try:
            paper = parse_switch(values.get("is_virtual", False)) is True
        except ValueError:
            paper = False  # reported as the variable's own problem
        return {**values, "base_url": PAPER_KIS_URL if paper else REAL_KIS_URL}

    def conflicts(self) -> Iterator[ConfigProblem]:
        """Paper trading never speaks to the real host, nor the other way round: orders would be real, or none."""
        other = REAL_KIS_URL if self.is_virtual else PAPER_KIS_URL
        if _host(self.base_url) == _host(other):  # however it is written, and on whatever port
            kind, host = ("true", "real") if self.is_virtual else ("false", "paper")
            reason = f"KIS_BASE_URL is the {host} host, but KIS_IS_VIRTUAL is {kind}; leave KIS_BASE_URL unset"
            yield conflict("KIS_BASE_URL", "KIS_IS_VIRTUAL", reason)


def _host(url: str) -> str:
    return (urlsplit(url).hostname or "").rstrip(".")


class DartConfig(Section):
    """DART, the disclosure system of the Financial Supervisory Service (전자공시)."""

    prefix = "DART_"

    api_key: SecretStr | None = var(None, "API key (crtfc_key)")
    base_url: BaseUrl = var("https://opendart.fss.or.kr", "host of the API")


class NaverConfig(Section):
    """Naver's finance pages."""

    prefix = "NAVER_"

    base_url: BaseUrl = var("https://polling.finance.naver.com", "host of the real-time quotes")
    chart_url: BaseUrl = var("https://fchart.stock.naver.com", "host of the daily charts")
    client_id: str | None = var(None, "client id of Naver's open API")
    client_secret: SecretStr | None = var(None, "client secret of Naver's open API")


class LogConfig(Section):
    """How log lines look."""

    prefix = "LOG_"

    level: Annotated[Literal["debug", "info", "warning", "error", "critical"], AnyCase] = var(
        "info", "lowest level that is written", live=True
    )
    format: Annotated[Literal["json", "console"], AnyCase] = var(
        "console", "one JSON object a line, or lines for people", live=True
    )
    levels: Levels = var(
        (), "levels of single loggers and what is below them", example="aegis.http=debug,asyncio=error", live=True
    )
    burst: PositiveInt = var(
        5, "how many of the same warning are written within LOG_BURST_WINDOW; then they are folded"
    )
    burst_window: Duration = var(10.0, "how long the same warning is folded into a count; 0 = never")


class MetricsConfig(Section):
    """Prometheus metrics."""

    prefix = "METRICS_"

    enabled: Switch = var(False, "serve metrics")
    host: str = var("127.0.0.1", "address to serve them on; 0.0.0.0 for a scraper on another host")
    port: Port = var(9090, "TCP port of the metrics; one of the processes of a host serves those of all")


class Config(Section):
    """Everything, as one frozen object. Build it with `Config.load()`."""

    redis: RedisConfig = Field(default_factory=RedisConfig)
    database: DatabaseConfig = Field(default_factory=DatabaseConfig)
    http: HttpConfig = Field(default_factory=HttpConfig)
    kis: KisConfig = Field(default_factory=KisConfig)
    dart: DartConfig = Field(default_factory=DartConfig)
    naver: NaverConfig = Field(default_factory=NaverConfig)
    log: LogConfig = Field(default_factory=LogConfig)
    metrics: MetricsConfig = Field(default_factory=MetricsConfig)
    key_prefix: str = var("aegis", "prefix of every key that aegis writes", name="AEGIS_PREFIX")
    ignore: Names = var(
        (), "names of our families that belong to other programs; * and ? are wildcards", name="AEGIS_IGNORE"
    )
    process: str | None = var(
        None, "name of this process in logs and metrics; unset means that of the program", name="AEGIS_PROCESS"
    )
    port: Port = var(8089, "TCP port of the dashboard", name="PORT")
    env: Annotated[Literal["development", "staging", "production"], AnyCase] = var(
        "development", "development, staging or production", name="ENV"
    )

    @classmethod
    def load(
        cls,
        environ: Mapping[str, str] | None = None,
        env_file: str | Path | None = ".env",
        *,
        overrides: Mapping[str, str] | None = None,
    ) -> Config:
        """
        Read the environment and `env_file`, check everything, and return one frozen object.

        `overrides` are variables, too, and win over both. A `.env` that does not exist is fine; a file of another name
        that does not exist is an error. What is doubtful but not wrong is logged as a warning of `aegis.config`.

        Raises:
            ConfigError: names every variable that is wrong, its source and the remedy; never a secret.
        """
        from aegis.config._load import load_config  # noqa: PLC0415 - the loader walks this registry

        return load_config(environ, env_file, overrides)

    def fingerprint(self) -> str:
        """12 hexadecimal digits over every value that is no secret: equal for processes that are configured alike."""
        from aegis.config._compare import fingerprint  # noqa: PLC0415

        return fingerprint(self)

    def reload(
        self,
        environ: Mapping[str, str] | None = None,
        env_file: str | Path | None = ".env",
        *,
        overrides: Mapping[str, str] | None = None,
    ) -> Reload:
        """
        Read everything again and say what differs; this object does not change.

        The result's `config` has taken over the variables that can change while a process runs, and those alone; for
        the others its `waiting` says which of them need a restart.

        Raises:
            ConfigError: as `load`; go on with what you have.
        """
        from aegis.config._compare import compare  # noqa: PLC0415

        return compare(self, Config.load(environ, env_file, overrides=overrides))
