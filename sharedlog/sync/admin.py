"""What those who run a cluster ask of it; see `sharedlog.admin`."""

from __future__ import annotations

from sharedlog import admin as aio
from sharedlog.sync.facade import Facade, blocking, iterating


class Admin(Facade[aio.Admin]):
    """The cluster from its operator's side. Made by `Cluster.admin`."""

    reconfigure = blocking(aio.Admin.reconfigure)
    accept_loss = blocking(aio.Admin.accept_loss)
    fork_log = blocking(aio.Admin.fork_log)
    restore_archive = iterating(aio.Admin.restore_archive)
    archived_clusters = blocking(aio.Admin.archived_clusters)
    set_node_state = blocking(aio.Admin.set_node_state)
    remove_node = blocking(aio.Admin.remove_node)
    describe_cluster = blocking(aio.Admin.describe_cluster)
    rename_cluster = blocking(aio.Admin.rename_cluster)
    describe_node = blocking(aio.Admin.describe_node)
    digest = iterating(aio.Admin.digest)
    check = iterating(aio.Admin.check)
    offload = iterating(aio.Admin.offload)
    trim = iterating(aio.Admin.trim)
    purge = blocking(aio.Admin.purge)
    describe_archive = blocking(aio.Admin.describe_archive)
    verify_archive = iterating(aio.Admin.verify_archive)
    sweep_archive = iterating(aio.Admin.sweep_archive)
