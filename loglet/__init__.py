"""One segment of a log: the log server that stores it, and how it is sealed and repaired.

| module     | what                                                                          |
|------------|-------------------------------------------------------------------------------|
| `core`     | what a log server answers and writes; no I/O                                  |
|            | `repair_rules` is its part for repairs, `group` its bookkeeping               |
| `store`    | interface of its store; `lmdb_store` is the real one, `keys` its keys,        |
|            | `held` what stored bytes mean, `time_search` where among them a moment lies   |
| `service`  | tasks and streams around the core; beside it `reads`, `digest`, `cache`,      |
|            | `answers`                                                                     |
| `messages` | what travels on the replication stream; `wire` turns it into bytes            |
| `recovery` | seal, find the tail, repair: what to ask whom, and when it is done; no I/O    |
| `inspect`  | `python -m loglet inspect DIR`                                                |
"""
