"""One segment of a log: the log server that stores it, and the quorum rules.

| module        | what                                                                  |
|---------------|-----------------------------------------------------------------------|
| `core`        | what a log server answers and writes; no I/O                          |
| `store`       | interface of its store; `lmdb_store` is the real one, `keys` its keys  |
| `service`     | tasks and streams around the core; `reads`, `cache`, `answers` beside it |
| `messages`    | what travels on the replication stream; `wire` turns it into bytes    |
| `quorum`      | which sets of servers decide what                                     |
| `inspect`     | `python -m loglet inspect DIR`                                        |
"""
