"""The control plane's memory: a small versioned store, what is kept in it, what may follow what.

| key family     | value           | codec            | changed by                                 |
|----------------|-----------------|------------------|--------------------------------------------|
| `cluster`      | `ClusterRecord` | `encode_cluster` | the first node, once                       |
| `nodes/<node>` | `NodeRecord`    | `encode_node`    | the node, at each start; never deleted     |
| `logs/<name>`  | `LogRecord`     | `encode_log`     | create, and every change of its chain      |

A value is `{CRC32C in hex} {JSON}` (`encoding.py`) and changes only by compare-and-swap on its
version.

    records.py     what is kept                       store.py      the store's interface
    encoding.py    records to bytes and back          keys.py       what may be a key and a value
    core.py        the pure rules                     embedded.py   LMDB here (embedded_db.py)
    registry.py    register a node, create a log      service.py    that store served over gRPC
    view.py        a node's picture of the cluster    remote.py     and reached
    url.py         which store, from configuration    watching.py   bookkeeping of watches

It is not on the append or read path: with the store down, appends and reads go on, and only
changes of nodes and chains wait.
"""
