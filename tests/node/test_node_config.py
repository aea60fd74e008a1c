"""Where settings come from, which wins, and what is refused with what words."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from node.__main__ import main
from node.config import join_address, load_config, split_address, unknown_variables
from node.errors import ConfigError
from sequencer.config import SequencerConfig

MINIMAL = {"node_id": "n1", "metadata": "embedded://127.0.0.1:4099"}


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "node.toml"
    path.write_text(text)
    return path


def refusal(tmp_path: Path, text: str, environ: dict[str, str] | None = None) -> str:
    """Why this file is refused."""
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as refused:
        load_config(path, environ=environ or {}, flags={})
    return str(refused.value)


def test_flags_beat_variables_beat_the_file_beat_defaults(tmp_path: Path) -> None:
    """Each source overrides those after it, field by field, sections included."""
    path = write(
        tmp_path,
        'node_id = "file"\nlocation = "file"\nmetadata = "embedded://h:1"\nlisten = "127.0.0.1:1"\n'
        "[log_server]\nreserve_bytes = 1\nread_threads = 3\n",
    )
    environ = {
        "SHAREDLOG_LOCATION": "env",
        "SHAREDLOG_LISTEN": "127.0.0.1:2",
        "SHAREDLOG_LOG_SERVER__RESERVE_BYTES": "2",
    }
    config = load_config(path, environ=environ, flags={"listen": "127.0.0.1:3"})
    assert config.node_id == "file"
    assert config.location == "env"
    assert config.listen == "127.0.0.1:3"
    assert config.log_server.reserve_bytes == 2
    assert config.log_server.read_threads == 3
    assert config.sequencer == SequencerConfig()


def test_variables_are_parsed_as_the_fields_type() -> None:
    """Numbers and lists come as text."""
    environ = {
        "SHAREDLOG_NODE_ID": "n1",
        "SHAREDLOG_ROLES": "metadata, log-server",
        "SHAREDLOG_SWITCH_INTERVAL_S": "0.001",
        "SHAREDLOG_READS_MAX": "7",
    }
    config = load_config(None, environ=environ, flags={})
    assert config.roles == ("metadata", "log-server")
    assert config.switch_interval_s == 0.001
    assert config.reads_max == 7


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('node_id = "n1"\nlissten = "x"', ["node.toml", "unknown field lissten"]),
        ('node_id = "n1"\n[log_server]\nqueue = 1', ["unknown field log_server.queue"]),
        ('node_id = "n1"\n[log_server]\nreserve_bytes = "1"', ["log_server.reserve_bytes", "int"]),
        ('node_id = 7\nmetadata = "embedded://h:1"', ["node_id", "str"]),
        ('node_id = "n1"\nlog_server = 3', ["log_server"]),
        ('node_id = "n1"\nroles = ["server"]', ["roles", "server"]),
        ('metadata = "embedded://h:1"', ["node_id is missing"]),
        ('node_id = "n1', ["no TOML"]),
        ('node_id = "a b"\nmetadata = "embedded://h:1"', ["node_id", "'a b'"]),
        ('node_id = "n1"', ["metadata is missing"]),
        ('node_id = "n1"\nmetadata = "etcd"', ["metadata", "etcd"]),
        ('node_id = "n1"\nroles = []', ["roles is empty"]),
        ('node_id = "n1"\nroles = ["metadata", "metadata"]', ["roles", "twice"]),
        ('node_id = "n1"\nroles = ["metadata"]\nmetadata = "embedded://h:1"', ["leave it out"]),
    ],
)
def test_what_can_not_be_right_is_refused_by_name(
    tmp_path: Path, text: str, words: list[str]
) -> None:
    """Unknown fields, wrong types, missing and contradicting settings: one line that names them."""
    found = refusal(tmp_path, text)
    assert "\n" not in found
    for word in words:
        assert word in found


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"listen": "127.0.0.1:0"}, "listen"),
        ({"listen": "0.0.0.0:4100"}, "advertise"),
        ({"listen": "[::]:4100"}, "advertise"),
        ({"listen": "4100"}, "host:port"),
        ({"listen": "h:99999"}, "listen"),
        ({"advertise": "0.0.0.0:4100"}, "advertise"),
        ({"http": "127.0.0.1:4100"}, "http"),
        ({"http": "x"}, "http"),
        ({"dir": ""}, "dir"),
        ({"replicas": 8}, "replicas"),
        ({"reads_max": 0}, "reads_max"),
        ({"switch_interval_s": 0.0}, "switch_interval_s"),
        ({"shutdown_grace_s": 61.0}, "shutdown_grace_s"),
        ({"metadata_etcd": {"user": "u"}}, r"\[metadata_etcd\]: user"),
        ({"metadata_etcd": {"cert_file": "c"}}, r"\[metadata_etcd\]: cert_file"),
        ({"metadata_etcd": {"try_timeout_s": 6.0}}, r"\[metadata_etcd\]: try_timeout_s"),
    ],
)
def test_fields_that_contradict_each_other_are_refused(
    fields: dict[str, object], word: str
) -> None:
    """Rules over several fields, and ranges; a wildcard address can't be handed to others."""
    with pytest.raises(ConfigError, match=word):
        load_config(None, environ={}, flags=MINIMAL | fields)


def test_sections_check_themselves() -> None:
    """A package's own rule names the section it is broken in."""
    environ = {"SHAREDLOG_LOG_SERVER__READ_THREADS": "0"}
    with pytest.raises(ConfigError, match=r"\[log_server\]: read_threads"):
        load_config(None, environ=environ, flags=MINIMAL)


def test_a_wildcard_is_taken_with_an_address_to_advertise() -> None:
    """Others get the advertised host, for HTTP too."""
    flags = MINIMAL | {
        "listen": "0.0.0.0:4100",
        "advertise": "db1.example:4100",
        "http": "0.0.0.0:4200",
    }
    config = load_config(None, environ={}, flags=flags)
    assert config.address == "db1.example:4100"
    assert config.http_address == "db1.example:4200"


def test_the_node_that_hosts_the_metadata_knows_its_address() -> None:
    """With the role metadata the URL follows from the node's own address."""
    config = load_config(None, environ={}, flags={"node_id": "n1", "roles": ["metadata"]})
    assert config.metadata_url == "embedded://127.0.0.1:4100"


def test_etcd_is_taken_for_the_metadata() -> None:
    """Its members are named by the URL, how to speak to them by a section; not with the role."""
    flags = MINIMAL | {"metadata": "etcd://e1:2379,e2:2379/p"}
    environ = {"SHAREDLOG_METADATA_ETCD__CA_FILE": "ca.pem"}
    config = load_config(None, environ=environ, flags=flags)
    assert config.metadata_url == "etcd://e1:2379,e2:2379/p"
    assert config.metadata_settings.etcd.uses_tls
    with pytest.raises(ConfigError, match="drop the role"):
        load_config(None, environ={}, flags=flags | {"roles": ["metadata"]})


def test_a_variable_of_the_wrong_type_is_named() -> None:
    """The message says which variable, and what it holds."""
    with pytest.raises(ConfigError, match="SHAREDLOG_READS_MAX=many"):
        load_config(None, environ={"SHAREDLOG_READS_MAX": "many"}, flags=MINIMAL)


def test_a_misspelt_field_of_a_section_is_refused() -> None:
    """It can be meant for nothing else."""
    environ = {"SHAREDLOG_LOG_SERVER__RESERV_BYTES": "1"}
    with pytest.raises(ConfigError, match="SHAREDLOG_LOG_SERVER__RESERV_BYTES"):
        load_config(None, environ=environ, flags=MINIMAL)


def test_foreign_variables_are_told_apart() -> None:
    """`SHAREDLOG_ADDRESS` is the command's; a typo may be another program's: told, not refused."""
    names = ["SHAREDLOG_ADDRESS", "SHAREDLOG_NODE_ID", "SHAREDLOG_LOG_SERVER__READ_THREADS", "HOME"]
    assert unknown_variables(names) == []
    assert unknown_variables([*names, "SHAREDLOG_ADRESS"]) == ["SHAREDLOG_ADRESS"]


@pytest.mark.parametrize("address", ["127.0.0.1:80", "[::1]:80", "host.example:0"])
def test_addresses_are_split_and_joined(address: str) -> None:
    """IPv6 hosts keep their brackets outside only."""
    assert join_address(*split_address("x", address)) == address


def test_print_config_prints_what_would_be_in_effect(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--print-config` is JSON with every field, on stdout, and starts nothing."""
    monkeypatch.setenv("SHAREDLOG_REPLICAS", "5")
    path = write(tmp_path, 'metadata = "embedded://127.0.0.1:4099"\n')
    code = main(["--config", str(path), "--node-id", "n9", "--print-config"])
    printed = json.loads(capsys.readouterr().out)
    assert code == 0
    assert printed["node_id"] == "n9"
    assert printed["replicas"] == 5
    assert printed["log_server"]["read_threads"] == 2


def test_a_bad_configuration_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 2, one line on stderr, nothing on stdout."""
    assert main(["--config", "/nowhere/node.toml"]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err == "sharedlogd: can't read /nowhere/node.toml: No such file or directory\n"
