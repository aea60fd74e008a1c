"""The same work, in the same run, against sharedlog and what a user would pick instead.

One file for each system: how it is started on loopback, what its acknowledgement means, and a
client of asyncio that is as lean as we can make it, so that the servers are compared rather than
client libraries. The wire codecs (`resp.py`, `nats_wire.py`, `etcd_wire.py`) do no I/O.
"""
