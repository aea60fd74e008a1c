"""Namespaces, for threads; see `sharedlog.namespaces`."""

from __future__ import annotations

from sharedlog import namespaces as aio
from sharedlog.sync.facade import Facade, blocking


class Namespaces(Facade[aio.Namespaces]):
    """Prefixes under which new logs inherit their configuration. Made by `Cluster.namespaces`."""

    set = blocking(aio.Namespaces.set)
    get = blocking(aio.Namespaces.get)
    list = blocking(aio.Namespaces.list)
    delete = blocking(aio.Namespaces.delete)
