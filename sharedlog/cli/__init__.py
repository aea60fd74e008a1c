"""The `sharedlog` command.

`sharedlog --help` must answer at once, so nothing heavy is imported before it is needed: a
command's module when the command runs, the client library (gRPC, asyncio) inside the command, rich
only to write on a terminal. `tests/cli/test_cli_imports.py` holds that.

| module     | holds                                                                          |
|------------|--------------------------------------------------------------------------------|
| `root`     | the top of the tree: names, one-line descriptions, where each command is       |
| `app`      | what all share: lazy groups, help with examples, global options, exit codes    |
| `failures` | from an exception to an exit code and one line for a person                    |
| `contexts` | named clusters in the user's configuration file                                |
| `output`   | JSON, tables, figures                                                          |
| `session`  | from a command to the client library and back                                  |
| the rest   | one module for each command or group                                           |

Data goes to stdout and all else to stderr. Exit codes: 0 done, 1 failed, 2 usage, 3 not found or a
condition lost, 4 may succeed if tried again, 130 interrupted.
"""

from __future__ import annotations


def main() -> None:
    """Entry point of the `sharedlog` script; ends the process with the exit code."""
    from sharedlog.cli.root import cli

    cli.main(prog_name="sharedlog")
