"""What goes on by itself: failover, replacement, drains, backfill, re-replication, scrub, balance.

One node does it, the holder of the controller's lease; `service.py` is where to begin. Safety rests
on none of it: every action is a compare-and-swap on a chain or can be done twice, so that two
controllers at once are harmless, and without any the logs still fail over when clients complain.
"""
