"""The sequencer: gives appends their offsets, replicates them, and says when they are committed.

| module            | what it is                                                                |
|-------------------|---------------------------------------------------------------------------|
| `core.py`         | one loglet's order: offsets, timestamps, acks, the committed tail; no I/O |
| `find_tail.py`    | the rounds that make a tail linearizable; no I/O                          |
| `producers.py`    | which batches of which producer are in the log already; no I/O            |
| `moves.py`        | what is known of chains, and what a chain proves; no I/O                  |
| `watch.py`        | which log servers keep a log from getting on; no I/O                      |
| `loglets.py`      | a loglet as the shells below see it, and who waits for a batch            |
| `link.py`         | the one replication stream to one log server, shared by all logs          |
| `replication.py`  | all links, and the cores' effects carried out over them                   |
| `session.py`      | one append session: back-pressure in, results in order out                |
| `opening.py`      | what precedes a session: its producer is claimed, the log searched        |
| `history.py`      | the search, on the log servers                                            |
| `service.py`      | what the node uses: sessions, appends, tails, and how a log is moved      |
"""
