"""The control plane's memory: a small versioned store, what is kept in it, what may follow what.

| key family     | value           | codec            | changed by                              |
|----------------|-----------------|------------------|-----------------------------------------|
| `cluster`      | `ClusterRecord` | `encode_cluster` | the first node, once                    |
| `controller`   | `LeaseRecord`   | `encode_lease`   | who takes, renews or leaves the lease   |
| `nodes/<node>` | `NodeRecord`    | `encode_node`    | the node, at each start; its state by   |
|                |                 |                  | operators, controller; never deleted    |
| `logs/<name>`  | `LogRecord`     | `encode_log`     | create, and every change of its chain   |

A value is `{CRC32C in hex} {JSON}` (`encoding.py`) and changes only by compare-and-swap on its
version.

    records.py           what is kept                     store.py     the store's interface
    encoding.py          records to bytes and back        keys.py      what may be a key and a value
    chain_encoding.py    long chains, small and cheap     embedded.py  LMDB here (embedded_db.py)
    quorum.py            which sets decide what           service.py   that store served over gRPC
    core.py              the pure rules                   remote.py    and reached
    archive_rules.py     what is archived, trimmed, gone  watching.py  bookkeeping of watches
    reconfiguration.py   what the next segment is         etcd.py      what lies in etcd (etcd_*.py)
    registry.py          register, create, change         retrying.py  trying again over a network
    archive_registry.py  raise what is archived, trimmed  url.py       which store, by its URL
    view.py              a node's picture of all this     lease.py     who is the controller
    migration.py         from one store to another        moved.py     what is left, what is begun
    emergency.py         dump, get, put                   tools.py     these as commands
    s3/                  values in S3, and a metadata store made of them

It is not on the append or read path: with the store down, appends and reads go on, and only
changes of nodes and chains wait.
"""
