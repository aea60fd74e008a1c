"""What an operator can set: one TOML file, environment variables, flags.

A flag beats a variable, a variable beats the file, the file beats the default. A variable is named
`SHAREDLOG_` and the field's name in capitals; a field of a section has two underscores between:
`SHAREDLOG_NODE_ID`, `SHAREDLOG_LOG_SERVER__RESERVE_BYTES`. Lists are separated by commas.

What can't be right is refused before anything starts, with the name of the field and where its
value came from. `docs/configuration.md` lists every field.
"""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, Protocol, get_type_hints

import msgspec

from loglet.archive.config import ArchiveConfig
from loglet.config import LogServerConfig
from metadata.config import EmbeddedConfig, EtcdConfig, MetadataSettings
from metadata.core import check_cluster_name, check_node_id
from metadata.s3.config import MetadataS3Config
from node.archive.config import OffloadConfig
from node.controller.config import ControllerConfig
from node.errors import ConfigError
from node.logs import LogFormat
from sequencer.config import SequencerConfig
from sharedlog.errors import InvalidArgument, SharedLogError

Role = Literal["log-server", "sequencer", "metadata"]
LogLevel = Literal["debug", "info", "warning", "error"]
RequestLog = Literal["off", "slow", "all"]

ENV_PREFIX: Final = "SHAREDLOG_"
_OF_THE_COMMAND: Final = frozenset(
    f"{ENV_PREFIX}{name}" for name in ("ADDRESS", "CONTEXT", "CONFIG", "DEBUG")
)
"""Variables of `sharedlog`, which an operator may have set for the same shell."""
_WILDCARD_HOSTS: Final = frozenset(("", "*", "0.0.0.0", "::"))  # noqa: S104  told apart, not bound


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeConfig:
    """Everything that `sharedlogd` can be told. Sizes are bytes, times seconds."""

    node_id: str
    """Name of the node, unique in the cluster, the same after each restart: 1 to 64 of
    a-z A-Z 0-9 . _ and -, starting with a letter or digit. No default."""

    listen: str = "127.0.0.1:4100"
    """host:port of the gRPC server. Loopback unless told otherwise: traffic is neither encrypted
    nor authenticated, so another address belongs in a network of its own. The port can't be 0,
    since others must find the node again after a restart."""

    advertise: str = ""
    """host:port at which clients and other nodes reach this one. Default: `listen`. Needed if
    `listen` is a wildcard such as 0.0.0.0."""

    http: str = "127.0.0.1:4200"
    """host:port of /metrics, /healthz and /readyz; "" serves none."""

    dir: str = "sharedlog-data"
    """Folder of all that the node keeps, made if it is missing: `store` is the log server's store,
    `metadata` the embedded metadata store of the role metadata, `cluster` the id of its cluster.
    Two nodes never share one."""

    metadata: str = ""
    """Where the metadata store is: `embedded://host:port`, the gRPC address of the process that
    hosts it; `etcd://host:port,host:port,host:port/prefix`, the members of an etcd cluster and
    where in it; or `s3://bucket/prefix`. Needed, and the same on all nodes; a node with the role
    metadata hosts the store itself and may leave it out."""

    cluster: str = ""
    """Name of the cluster that the node belongs to, as `sharedlog cluster init` gave it. A node
    that finds another one in the metadata store is refused; if there is none yet, it waits. Empty:
    whichever is there, and the first node makes it."""

    location: str = ""
    """Where the node is, largest part first, e.g. `eu-1.zone-a.rack-7`. New segments are spread
    over locations, and their nodesets keep it."""

    roles: tuple[Role, ...] = ("log-server", "sequencer")
    """What the node does: `log-server` stores batches, `sequencer` orders logs, `metadata` hosts
    the embedded metadata store (one node of the cluster, a single point of failure). Every node
    serves the public API."""

    replicas: int = 3
    """Copies of each batch in a log whose creator does not say; fewer if the cluster has fewer log
    servers. 1 to 7."""

    append_timeout_s: float = 30.0
    """A plain `Append` call that has not reached its write quorum by then ends as indefinite.
    Sessions are bounded by their clients."""

    peer_timeout_s: float = 5.0
    """Longest wait for another node when a session is opened or a tail is looked up there, and
    longest pause that a caller bears while a log gets another sequencer. Above it the call fails
    as unavailable."""

    ping_timeout_s: float = 0.4
    """A node that is suspected to be dead has so long to answer a ping, twice. Shorter: the logs of
    a node that was cut off or paused go on sooner; longer: a node that is only slow keeps its logs.
    A process that has ended is found out at once. At most half of
    `peer_timeout_s`."""

    sessions_max: int = 1_000
    """Append sessions and plain appends at once through this node; one more is refused as
    overloaded."""

    reads_max: int = 1_000
    """Reads open at once through this node's public API; one more is refused as overloaded."""

    shutdown_grace_s: float = 10.0
    """After SIGTERM or SIGINT: so long may it take to hand over the logs that this node orders, and
    appends in flight to be committed, before they are cut off, and are indefinite. It ends sooner
    if there is nothing left to do, or nobody to hand over to; a second signal ends it at once. At
    most 60."""

    switch_interval_s: float = 0.0005
    """How long a thread of the interpreter may run while another waits. Smaller favours the store's
    writer thread, so latency; larger favours the event loop, so throughput. Python's own default of
    0.005 delays each fsync's answer by up to that much."""

    log_level: LogLevel = "info"
    """Least severe log lines that are written: debug, info, warning or error."""

    log_format: LogFormat = "auto"
    """`json` is one object a line, `text` is for people, `auto` is text on a terminal and JSON
    elsewhere."""

    request_log: RequestLog = "slow"
    """Which public requests have a line in the log, `request.done`: `all`, `slow` or `off`."""

    slow_request_s: float = 1.0
    """A call that takes so long is slow, and a stream whose first answer does, unless it is a read
    that follows. Above 0."""

    log_server: LogServerConfig = field(default_factory=LogServerConfig)
    """Section `[log_server]`, of the role log-server."""

    sequencer: SequencerConfig = field(default_factory=SequencerConfig)
    """Section `[sequencer]`, of the role sequencer."""

    metadata_store: EmbeddedConfig = field(default_factory=EmbeddedConfig)
    """Section `[metadata_store]`, of the role metadata."""

    metadata_etcd: EtcdConfig = field(default_factory=EtcdConfig)
    """Section `[metadata_etcd]`, if the metadata is kept in etcd."""

    metadata_s3: MetadataS3Config = field(default_factory=MetadataS3Config)
    """Section `[metadata_s3]`, if the metadata is kept in S3."""

    controller: ControllerConfig = field(default_factory=ControllerConfig)
    """Section `[controller]`, of the node that is the controller, and of the scrub."""

    archive: ArchiveConfig = field(default_factory=ArchiveConfig)
    """Section `[archive]`, the same on all nodes."""

    offload: OffloadConfig = field(default_factory=OffloadConfig)
    """Section `[offload]`."""

    @property
    def address(self) -> str:
        """host:port at which others reach the gRPC server."""
        return self.advertise or self.listen

    @property
    def http_address(self) -> str:
        """host:port at which others reach the HTTP server; "" if it is off."""
        if not self.http:
            return ""
        host, port = split_address("http", self.http)
        if host in _WILDCARD_HOSTS:
            host = split_address("advertise", self.address)[0]
        return join_address(host, port)

    @property
    def metadata_url(self) -> str:
        """Where the metadata store is, its default filled in."""
        return self.metadata or f"embedded://{self.address}"

    @property
    def metadata_settings(self) -> MetadataSettings:
        """What the store of `metadata_url` needs beside it."""
        return MetadataSettings(etcd=self.metadata_etcd, s3=self.metadata_s3)

    def validate(self) -> None:
        """Check what no single field shows.

        Raises:
            ConfigError: the configuration can't be right; the message names the field.
        """
        self._validate_identity()
        self._validate_addresses()
        for name in (
            "append_timeout_s",
            "ping_timeout_s",
            "switch_interval_s",
            "slow_request_s",
        ):
            _need(getattr(self, name) > 0, name, f"is {getattr(self, name)}; it must be above 0")
        _need(
            2 * self.ping_timeout_s <= self.peer_timeout_s,
            "peer_timeout_s",
            f"is {self.peer_timeout_s}; it must have room for two pings of ping_timeout_s",
        )
        for name in ("sessions_max", "reads_max"):
            _need(getattr(self, name) >= 1, name, "must be at least 1")
        _need(0 <= self.shutdown_grace_s <= 60, "shutdown_grace_s", "must be from 0 to 60 seconds")
        _need(1 <= self.replicas <= 7, "replicas", f"is {self.replicas}; 1 to 7 are possible")
        for section in (
            "log_server",
            "sequencer",
            "metadata_store",
            "metadata_etcd",
            "metadata_s3",
            "controller",
            "archive",
            "offload",
        ):
            _validate_section(section, getattr(self, section))

    def _validate_identity(self) -> None:
        try:
            check_node_id(self.node_id)
        except InvalidArgument as error:
            raise ConfigError(f"node_id: {error}") from error
        if self.cluster:
            try:
                check_cluster_name(self.cluster)
            except InvalidArgument as error:
                raise ConfigError(f"cluster: {error}") from error
        _need(bool(self.roles), "roles", "is empty: a node without a role has nothing to do")
        _need(len(set(self.roles)) == len(self.roles), "roles", "names a role twice")
        _need(bool(self.dir), "dir", "is empty: name a folder")
        if "metadata" in self.roles:
            _need(
                self.metadata in ("", f"embedded://{self.address}"),
                "metadata",
                f"is {self.metadata!r}, but with the role metadata this node hosts the store at "
                f"embedded://{self.address}: leave it out, or drop the role",
            )
        else:
            _need(
                bool(self.metadata),
                "metadata",
                "is missing: name the metadata store, e.g. embedded://127.0.0.1:4099, or give the "
                "node the role metadata",
            )
        from metadata.url import parse_metadata_url  # late: it loads the messages of the wire

        try:
            parse_metadata_url(self.metadata_url)
        except InvalidArgument as error:
            raise ConfigError(f"metadata: {error}") from error

    def _validate_addresses(self) -> None:
        host, port = split_address("listen", self.listen)
        _need(port != 0, "listen", "names port 0: others must find the node after a restart")
        if host in _WILDCARD_HOSTS:
            _need(
                bool(self.advertise),
                "listen",
                f"is the wildcard {self.listen}: set `advertise` to the host:port that others use",
            )
        if self.advertise:
            host, port = split_address("advertise", self.advertise)
            _need(host not in _WILDCARD_HOSTS, "advertise", "is a wildcard: name a host")
            _need(port != 0, "advertise", "names port 0")
        if self.http:
            split_address("http", self.http)
            _need(self.http != self.listen, "http", f"and listen are both {self.http}")


def load_config(
    path: Path | None, *, environ: Mapping[str, str], flags: Mapping[str, object]
) -> NodeConfig:
    """The configuration of file, environment and flags, validated.

    Raises:
        ConfigError: it can't be read or can't be right.
    """
    merged = _read_file(path) if path is not None else {}
    for name, text in sorted(environ.items()):
        place = _place_of(name)
        if place:
            _set(merged, place, _parse(name, _type_of(name, place), text))
    for name, value in flags.items():
        merged[name] = value
    origin = str(path) if path is not None else "the configuration"
    if "node_id" not in merged:
        raise ConfigError(
            "node_id is missing: name the node with --node-id, SHAREDLOG_NODE_ID or in the file"
        )
    try:
        config = msgspec.convert(merged, NodeConfig)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{origin}: {_readable(error)}") from error
    config.validate()
    return config


def unknown_variables(environ: Iterable[str]) -> list[str]:
    """Variables that look like ours and are neither a field of the node nor the command's."""
    return sorted(
        name
        for name in environ
        if name.startswith(ENV_PREFIX) and name not in _OF_THE_COMMAND and _place_of(name) is None
    )


def dump_config(config: NodeConfig) -> dict[str, Any]:
    """The effective configuration as plain values, sections as objects."""
    plain: dict[str, Any] = msgspec.to_builtins(config)
    return plain


def split_address(field_name: str, address: str) -> tuple[str, int]:
    """The host and port of "host:port"; an IPv6 host may be in brackets.

    Raises:
        ConfigError: not of that form.
    """
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdecimal() or int(port) > 65_535:
        raise ConfigError(f"{field_name} is {address!r}: host:port is needed, e.g. 127.0.0.1:4100")
    return host.strip("[]"), int(port)


def join_address(host: str, port: int) -> str:
    """The inverse of `split_address`."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _read_file(path: Path) -> dict[str, Any]:
    try:
        found = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"can't read {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is no TOML: {error}") from error
    _refuse_unknown(path, "", NodeConfig, found)
    return found


def _refuse_unknown(path: Path, prefix: str, cls: type[Any], found: Mapping[str, object]) -> None:
    """Refuse fields that a dataclass does not have: msgspec would pass over a typo in silence."""
    known = get_type_hints(cls)
    for name, value in found.items():
        if name not in known:
            near = ", ".join(sorted(known))
            raise ConfigError(f"{path}: unknown field {prefix}{name}; known are {near}")
        if isinstance(value, Mapping) and dataclasses.is_dataclass(known[name]):
            section: type[Any] = known[name]
            _refuse_unknown(path, f"{prefix}{name}.", section, value)


def _place_of(variable: str) -> list[str] | None:
    """Section and field that a variable names; None if it is not for the node.

    A misspelt field of a section is for nobody else, so it has a place and is refused later.
    """
    if not variable.startswith(ENV_PREFIX):
        return None
    place = variable.removeprefix(ENV_PREFIX).lower().split("__")
    hints = get_type_hints(NodeConfig)
    if place[0] not in hints or dataclasses.is_dataclass(hints[place[0]]) != (len(place) == 2):
        return None
    return place


def _type_of(variable: str, place: list[str]) -> Any:
    """Type of the field that a variable names."""
    cls: Any = NodeConfig
    for name in place:
        hints = get_type_hints(cls)
        if name not in hints:
            raise ConfigError(f"{variable}: unknown field {'.'.join(place)}")
        cls = hints[name]
    return cls


def _parse(variable: str, wanted: Any, text: str) -> object:
    """A variable's text as the field's type."""
    raw: object = text
    if str(wanted).startswith("tuple"):
        raw = [part.strip() for part in text.split(",") if part.strip()]
    try:
        return msgspec.convert(raw, wanted, strict=False)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{variable}={text}: {_readable(error)}") from error


def _set(target: dict[str, Any], place: list[str], value: object) -> None:
    *sections, name = place
    for section in sections:
        target = target.setdefault(section, {})
    target[name] = value


def _readable(error: msgspec.ValidationError) -> str:
    """What msgspec says, with the field's path as an operator writes it."""
    reason, _, where = str(error).partition(" - at ")
    field_name = where.strip("`").removeprefix("$").lstrip(".")
    return f"{field_name}: {reason}" if field_name else reason


class _Section(Protocol):
    def validate(self) -> None:
        """Raises `SharedLogError` or `ValueError`."""
        ...


def _validate_section(name: str, section: _Section) -> None:
    try:
        section.validate()
    except (SharedLogError, ValueError) as error:
        raise ConfigError(f"[{name}]: {error}") from error


def _need(condition: bool, field_name: str, problem: str) -> None:
    if not condition:
        raise ConfigError(f"{field_name} {problem}")
