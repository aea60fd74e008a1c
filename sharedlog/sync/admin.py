"""What those who run a cluster ask of it; see `sharedlog.admin`."""

from __future__ import annotations

from sharedlog import admin as aio
from sharedlog.sync.facade import Facade, blocking, iterating


class Admin(Facade[aio.Admin]):
    """The cluster from its operator's side. Made by `Cluster.admin`."""

    reconfigure = blocking(aio.Admin.reconfigure)
    accept_loss = blocking(aio.Admin.accept_loss)
    set_node_state = blocking(aio.Admin.set_node_state)
    digest = iterating(aio.Admin.digest)
    check = iterating(aio.Admin.check)
