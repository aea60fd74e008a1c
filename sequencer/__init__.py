"""The sequencer: gives appends their offsets, replicates them, and says when they are committed.

| module            | what it is                                                                |
|-------------------|---------------------------------------------------------------------------|
| `core.py`         | one loglet's order: offsets, timestamps, acks, the committed tail; no I/O |
| `find_tail.py`    | the rounds that make a tail linearizable; no I/O                          |
| `link.py`         | the one replication stream to one log server, shared by all logs          |
| `session.py`      | one append session: back-pressure in, results in order out                |
| `service.py`      | what the node uses: many loglets, their links, appends and tails          |
"""
