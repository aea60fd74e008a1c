"""`sharedlog bench`: how fast a cluster is, measured through the public client.

    histogram.py   latencies in bounded memory
    schedule.py    open loop: when each record was meant to be sent
    processes.py   memory and CPU of the processes
    report.py      one result as JSON or as a table
    plot.py        one result as a picture
    target.py      the cluster that is measured: a fresh one, or one that runs
    append.py, read.py, tail.py   the three workloads
    cli.py         the commands

This module stays empty, so that `sharedlog --help` does not pay for it.
"""
