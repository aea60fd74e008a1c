"""Errors that end the process before it serves; none of them travels between processes.

Exception
└── StartError       the node can't start; the message is one line for the operator
    └── ConfigError  because of what it was told
"""

from __future__ import annotations


class StartError(Exception):
    """The node can't start as it is."""


class ConfigError(StartError):
    """A setting is missing, misspelt, of the wrong type, or contradicts another."""
