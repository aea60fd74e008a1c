"""`sharedlogd`: one node of the cluster.

    sharedlogd --config node.toml
    sharedlogd --node-id n1 --role metadata --role log-server --role sequencer --dir data

Exit codes: 0 stopped as asked, 1 failed, 2 told something that can't be right.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

EXIT_FAILED = 1
EXIT_USAGE = 2

_FLAGS = (
    ("--node-id", "node_id", "name of the node, unique in the cluster"),
    ("--listen", "listen", "host:port of the gRPC server"),
    ("--http", "http", "host:port of /metrics, /healthz and /readyz; '' for none"),
    ("--dir", "dir", "folder of all that the node keeps"),
    ("--metadata", "metadata", "where the metadata store is, e.g. embedded://127.0.0.1:4099"),
    ("--cluster", "cluster", "name of the cluster that the node belongs to"),
    ("--location", "location", "where the node is, e.g. eu-1.zone-a"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a node until it is told to stop; returns the exit code."""
    options = _parser().parse_args(arguments)
    # Late: `sharedlogd --help` answers without the server's libraries.
    from node.config import dump_config, load_config, unknown_variables
    from node.errors import ConfigError
    from node.logs import configure_logging

    flags = {name: getattr(options, name) for _, name, _ in _FLAGS}
    flags["roles"] = options.roles
    given = {name: value for name, value in flags.items() if value is not None}
    try:
        config = load_config(options.config, environ=os.environ, flags=given)
    except ConfigError as error:
        print(f"sharedlogd: {error}", file=sys.stderr)  # noqa: T201  logging is not set up yet
        return EXIT_USAGE
    if options.print_config:
        print(json.dumps(dump_config(config), indent=2))  # noqa: T201  the data that was asked for
        return 0
    configure_logging(config.log_level, config.log_format, sys.stderr)
    unknown = unknown_variables(os.environ)
    if unknown:
        logging.getLogger("node").warning("config.unknown_variables", extra={"variables": unknown})
    from sharedlog.tuning import tune_process

    tune_process()  # before gRPC is imported
    from node.process import run_node
    from node.told_settings import told_settings

    return run_node(config, told_settings(config, environ=os.environ, flags=given))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sharedlogd",
        description="One node of a shared log cluster.",
        epilog="Every setting can also come from the file, or from the environment as "
        "SHAREDLOG_NODE_ID or SHAREDLOG_LOG_SERVER__RESERVE_BYTES. A flag beats a variable, a "
        "variable beats the file. docs/configuration.md lists them.",
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="TOML file with the settings")
    for flag, name, text in _FLAGS:
        parser.add_argument(flag, dest=name, metavar=name.upper(), help=text)
    parser.add_argument(
        "--role",
        dest="roles",
        action="append",
        metavar="ROLE",
        help="log-server, sequencer or metadata; repeat it for several",
    )
    parser.add_argument(
        "--print-config",
        action="store_true",
        help="print the settings that would be in effect, as JSON, and end",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
