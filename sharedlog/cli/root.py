"""The top of the command's tree: what there is, and where."""

from __future__ import annotations

from typing import Final

import click

from sharedlog.cli.app import CONTEXT_SETTINGS, Lazy, RootGroup, cluster_options

_SECTIONS: Final = {
    "Records": {
        "append": Lazy("sharedlog.cli.append", "append", "Append records to a log."),
        "read": Lazy("sharedlog.cli.read", "read", "Read a log from an offset."),
        "tail": Lazy("sharedlog.cli.read", "tail", "Show a log's last records."),
    },
    "Cluster": {
        "cluster": Lazy(
            "sharedlog.cli.cluster", "cluster", "Make a cluster, show and set its defaults."
        ),
        "log": Lazy("sharedlog.cli.logs", "log", "Create, inspect and change logs."),
        "namespace": Lazy(
            "sharedlog.cli.namespaces", "namespace", "What logs inherit by their names."
        ),
        "cursor": Lazy("sharedlog.cli.cursors", "cursor", "Places in a log, kept in the cluster."),
        "archive": Lazy(
            "sharedlog.cli.archive",
            "archive",
            "Where the beginning of logs lies: check it, clean up.",
        ),
        "metadata": Lazy(
            "sharedlog.cli.metadata", "metadata", "The metadata store itself: dump, mend, move."
        ),
        "node": Lazy("sharedlog.cli.nodes", "node", "List, describe, drain and remove nodes."),
        "status": Lazy("sharedlog.cli.status", "status", "What is wrong, nodes, logs."),
    },
    "This machine": {
        "dev": Lazy("sharedlog.cli.dev", "dev", "Run a cluster here, for development."),
        "store": Lazy("sharedlog.cli.store", "store", "Look into a log server's store, offline."),
        "bench": Lazy("sharedlog.benchmark.cli", "bench", "Measure a cluster."),
    },
    "The command itself": {
        "context": Lazy("sharedlog.cli.contexts", "context", "Name clusters and switch between."),
        "completion": Lazy("sharedlog.cli.about", "completion", "Print a shell completion script."),
        "version": Lazy("sharedlog.cli.about", "version", "Print the version."),
    },
}

_EXAMPLES: Final = """
sharedlog dev                                   a cluster of three nodes, until Ctrl-C
sharedlog log create orders                     in another terminal
seq 1000 | sharedlog append orders              a record for each line
sharedlog read orders --from 990
sharedlog tail orders -f                        the last ten, then what comes
"""


@click.group(
    cls=RootGroup,
    sections=_SECTIONS,
    examples=_EXAMPLES,
    context_settings=CONTEXT_SETTINGS,
)
@cluster_options
def cli() -> None:
    """A distributed shared log: durable, totally ordered, replicated.

    Data goes to stdout and all else to stderr. Exit codes: 0 done, 1 failed, 2 usage, 3 not found
    or a condition lost, 4 may succeed if tried again.
    """
