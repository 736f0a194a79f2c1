"""
The registry: every variable of aegis, its type, unit, default and meaning. Add one here and nowhere else.

The variable of a field is the section's prefix and the field's name in capitals, unless the field names another.
Times are seconds, sizes are bytes; in the environment they carry a unit (`30s`, `16MiB`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self
from urllib.parse import unquote, urlsplit

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, model_validator

from aegis.config._postgres import parse_postgres_url
from aegis.config._types import Duration, Int, Port, PositiveDuration, PositiveInt, Size, Switch

REAL_KIS_URL = "https://openapi.koreainvestment.com:9443"
PAPER_KIS_URL = "https://openapivts.koreainvestment.com:29443"


def var(default: Any, meaning: str, *, name: str = "", example: str = "") -> Any:
    """One variable: its default, its meaning, and where the prefix rule does not give it, its name."""
    extra: dict[str, Any] = {"variable": name, "example": example}
    return Field(default, description=meaning, validate_default=True, json_schema_extra=extra)


class Section(BaseModel):
    """The variables of one component. Frozen; an unknown field is an error; errors never show an input."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)
    prefix: ClassVar[str] = ""

    @classmethod
    def variables(cls) -> Mapping[str, str]:
        """Field name to variable name, in the order of the registry."""
        names: dict[str, str] = {}
        for field, info in cls.model_fields.items():
            extra = info.json_schema_extra
            named = extra.get("variable") if isinstance(extra, dict) else None
            names[field] = str(named) if named else cls.prefix + field.upper()
        return names


class RedisConfig(Section):
    """The Redis or Valkey server that all processes share."""

    prefix = "REDIS_"

    enabled: Switch = var(True, "false turns every Redis feature into a no-op without any I/O")
    url: SecretStr | None = var(
        None,
        "where the server is, instead of the parts: redis://, rediss:// (TLS), unix:///path, or embedded:",
        example="redis://user:password@localhost:6379/0",
    )
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

    @model_validator(mode="before")
    @classmethod
    def _parts_from_url(cls, values: Any) -> Any:
        """Spell `url` out into the parts, so that readers of this record look at one place."""
        if not isinstance(values, Mapping) or not values.get("url"):
            return values
        url = values["url"]
        parts = redis_parts(url.get_secret_value() if isinstance(url, SecretStr) else str(url))
        for field, value in parts.items():
            given = values.get(field)
            given = given.get_secret_value() if isinstance(given, SecretStr) else given
            if given is not None and str(given).lower() != str(value).lower():
                shown = "" if field == "password" else f" ({given} against {value})"
                raise ValueError(f"REDIS_URL and REDIS_{field.upper()} contradict each other{shown}; set only one")
        return {**values, **parts}

    @model_validator(mode="after")
    def _pairs(self) -> Self:
        if (self.tls_cert_file is None) != (self.tls_key_file is None):
            raise ValueError("REDIS_TLS_CERT_FILE and REDIS_TLS_KEY_FILE go together; set both or none")
        return self

    @property
    def embedded(self) -> bool:
        """Whether the runtime shall start a server of its own."""
        return self.url is not None and self.url.get_secret_value() == "embedded:"

    @property
    def address(self) -> str:
        """Where the server is, for messages: never holds a secret."""
        return f"unix:{self.socket}" if self.socket else f"{self.host}:{self.port}"


def redis_parts(url: str) -> dict[str, Any]:
    """The fields that a Redis URL spells out. Raises ValueError without repeating the URL: it may hold a password."""
    if url == "embedded:":
        return {}
    try:
        split = urlsplit(url)
        port = split.port
    except ValueError:
        raise ValueError("not a URL that can be read; expected redis://host:port/db") from None
    if split.scheme not in {"redis", "rediss", "unix"}:
        raise ValueError(f"scheme {split.scheme!r} is none of redis, rediss, unix, embedded")
    parts: dict[str, Any] = {}
    if split.username:
        parts["username"] = unquote(split.username)
    if split.password:
        parts["password"] = unquote(split.password)
    query = dict(pair.partition("=")[::2] for pair in split.query.split("&") if pair)
    database = query.pop("db", None)
    if query:
        raise ValueError(f"unknown option {min(query)!r}; only db= is known")
    if split.scheme == "unix":
        parts["socket"] = unquote(split.path)
    else:
        parts["tls"] = split.scheme == "rediss"
        parts["host"] = split.hostname or "localhost"
        parts["port"] = port or 6379
        database = database or split.path.strip("/") or None
    if database is not None:
        if not database.isdigit():
            raise ValueError(f"database {database!r} is not a number")
        parts["db"] = int(database)
    return parts


class DatabaseConfig(Section):
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

    @model_validator(mode="before")
    @classmethod
    def _parts_from_url(cls, values: Any) -> Any:
        """Spell `url` out into the parts, so that readers of this record look at one place."""
        if not isinstance(values, Mapping):
            return values
        if values.get("replica_url"):
            _spelled("DATABASE_REPLICA_URL", values["replica_url"])
        if not values.get("url"):
            return values
        parts = _spelled("DATABASE_URL", values["url"])
        for field, value in parts.items():
            given = values.get(field)
            given = given.get_secret_value() if isinstance(given, SecretStr) else given
            if given is not None and str(given).lower() != str(value).lower():
                shown = "" if field == "password" else f" ({given} against {value})"
                raise ValueError(f"DATABASE_URL and DB_{field.upper()} contradict each other{shown}; set only one")
        return {**values, **parts}

    @model_validator(mode="after")
    def _sizes(self) -> Self:
        if self.min_conns > self.max_conns:
            raise ValueError(f"DB_MIN_CONNS={self.min_conns} is above DB_MAX_CONNS={self.max_conns}")
        return self

    @property
    def embedded(self) -> bool:
        """Whether the runtime shall start a server of its own."""
        return self.url is not None and self.url.get_secret_value() == "embedded:"


def _spelled(variable: str, url: str | SecretStr) -> dict[str, Any]:
    """The fields that a PostgreSQL URL spells out."""
    text = url.get_secret_value() if isinstance(url, SecretStr) else str(url)
    if text == "embedded:":
        return {}
    try:
        parsed = parse_postgres_url(text)
    except ValueError as exc:
        raise ValueError(f"{variable}: {exc}") from None
    parts: dict[str, Any] = {"user": parsed.user, "password": parsed.password, "name": parsed.database}
    if parsed.hosts:
        parts |= {"host": ",".join(host for host, _ in parsed.hosts), "port": parsed.hosts[0][1]}
    for name in ("application_name", "target_session_attrs", "pgbouncer"):
        parts[name] = parsed.options.get(name)
    seconds = parsed.options.get("connect_timeout")
    if seconds is not None:
        if not seconds.isdigit():
            raise ValueError(f"{variable}: connect_timeout={seconds!r} is not a whole number of seconds")
        parts["connect_timeout"] = float(seconds) or None
    return {field: value for field, value in parts.items() if value is not None}


class HttpConfig(Section):
    """Bounds of the HTTP client; retries and breakers are set in code."""

    prefix = "HTTP_"

    timeout: PositiveDuration = var(30.0, "longest call: permit waits, all attempts and the body together")
    attempt_timeout: PositiveDuration = var(10.0, "longest single attempt, its body included")
    connect_timeout: PositiveDuration = var(5.0, "longest wait for a connection and its TLS")
    max_connections: PositiveInt = var(100, "most open connections of one process")
    max_connections_per_host: PositiveInt = var(32, "most open connections to one host")
    max_body: Size = var(16 * 1024 * 1024, "largest body accepted, on the wire and decoded")
    proxy_from_env: Switch = var(False, "honour HTTP_PROXY, HTTPS_PROXY and NO_PROXY")

    @model_validator(mode="after")
    def _nested(self) -> Self:
        if self.attempt_timeout > self.timeout:
            raise ValueError(
                f"HTTP_ATTEMPT_TIMEOUT={self.attempt_timeout}s is longer than HTTP_TIMEOUT={self.timeout}s"
            )
        if self.connect_timeout > self.attempt_timeout:
            raise ValueError(
                f"HTTP_CONNECT_TIMEOUT={self.connect_timeout}s is longer than "
                f"HTTP_ATTEMPT_TIMEOUT={self.attempt_timeout}s"
            )
        return self


class KisConfig(Section):
    """Korea Investment & Securities (한국투자증권) Open API."""

    prefix = "KIS_"

    app_key: SecretStr | None = var(None, "app key")
    app_secret: SecretStr | None = var(None, "app secret")
    account_no: str | None = var(None, "account number, as text", example="00123456-01")
    is_virtual: Switch = var(False, "paper trading (모의투자): another host and lower quotas")
    base_url: str = var("", "host of the API; unset means the real or the paper one, as KIS_IS_VIRTUAL says")
    hts_id: str | None = var(None, "HTS user id")

    @model_validator(mode="before")
    @classmethod
    def _host_by_kind(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and not values.get("base_url"):
            paper = str(values.get("is_virtual", False)).strip().lower() in {"true", "yes", "on", "1"}
            return {**values, "base_url": PAPER_KIS_URL if paper else REAL_KIS_URL}
        return values


class DartConfig(Section):
    """DART, the disclosure system of the Financial Supervisory Service (전자공시)."""

    prefix = "DART_"

    api_key: SecretStr | None = var(None, "API key (crtfc_key)")
    base_url: str = var("https://opendart.fss.or.kr", "host of the API")


class NaverConfig(Section):
    """Naver's finance pages."""

    prefix = "NAVER_"

    base_url: str = var("https://polling.finance.naver.com", "host of the real-time quotes")
    chart_url: str = var("https://fchart.stock.naver.com", "host of the daily charts")
    client_id: str | None = var(None, "client id of Naver's open API")
    client_secret: SecretStr | None = var(None, "client secret of Naver's open API")


def _lower(value: Any) -> Any:
    return value.strip().lower() if isinstance(value, str) else value


class LogConfig(Section):
    """How log lines look."""

    prefix = "LOG_"

    level: Annotated[Literal["debug", "info", "warning", "error", "critical"], BeforeValidator(_lower)] = var(
        "info", "lowest level that is written"
    )
    format: Annotated[Literal["json", "console"], BeforeValidator(_lower)] = var("console", "json or console")


class MetricsConfig(Section):
    """Prometheus metrics."""

    prefix = "METRICS_"

    enabled: Switch = var(False, "serve metrics")
    port: Port = var(9090, "TCP port of the metrics")


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
    port: Port = var(8089, "TCP port of the dashboard", name="PORT")
    env: Annotated[Literal["development", "staging", "production"], BeforeValidator(_lower)] = var(
        "development", "development, staging or production", name="ENV"
    )

    @classmethod
    def load(cls, environ: Mapping[str, str] | None = None, env_file: str | Path | None = ".env") -> Config:
        """
        Read the environment and `env_file` (absent is fine), check everything, and return one frozen object.

        Raises:
            ConfigError: names every variable that is wrong, its source and the remedy; never a secret.
        """
        from aegis.config._load import load_config  # noqa: PLC0415 - the loader walks this registry

        return load_config(environ, env_file)
