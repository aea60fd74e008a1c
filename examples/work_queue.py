"""A work queue: several workers, one of which is killed, and no job is lost.

The queue is a handful of logs, its *partitions*; a job goes to one of them by its id. Each has a
cursor, "workers", which is kept in the cluster and says how far the jobs are done. A worker takes a
partition's cursor over, does the jobs from there on, and commits each one when it is done. If it
dies, whoever takes the cursor over next goes on behind the last commit.

- Every job is done **at least once**. What was done and not committed is done again, so a result
  carries its job's id, and of two results of a job the first one counts.
- A cursor has one owner. A worker that was only slow, and lost its partition to another one, hears
  of that at its next commit (`CursorLost`), and stops.

    python examples/work_queue.py [--address 127.0.0.1:4100]
"""

from __future__ import annotations

import asyncio
import multiprocessing
import secrets
from collections import Counter
from multiprocessing.context import SpawnProcess
from typing import Final
from zlib import crc32

import running

import sharedlog
from sharedlog import CursorLost

PARTITIONS: Final = 3
WORK_S: Final = 0.01
"""A job takes so long."""
END: Final = b"end"
"""Key of the last record of a partition."""


class Queue:
    """A queue of jobs from the side of who submits them. Made by its first job."""

    def __init__(self, cluster: sharedlog.Cluster, name: str) -> None:
        self.partitions = [f"{name}/{number}" for number in range(PARTITIONS)]
        self._logs = [cluster.log(partition, create=True) for partition in self.partitions]

    async def submit(self, job_id: str, job: bytes) -> None:
        """Put a job into the queue; it will be done, once this has returned."""
        key = job_id.encode()
        await self._logs[crc32(key) % PARTITIONS].append(job, key=key)

    async def end(self) -> None:
        """Nothing more will be submitted: workers stop when they have done what is there."""
        for log in self._logs:
            await log.append(b"", key=END)


async def work(address: str, partition: str, results: str, name: str) -> None:
    """Do the jobs of a partition, from where its last worker had come, to their end."""
    async with sharedlog.connect(address) as cluster:
        done = cluster.log(results)
        jobs = cluster.log(partition)
        try:
            # A commit is noted at once and written ten times a second: what a killed worker has
            # done since then is done again.
            async with jobs.cursor("workers", commit_every_s=0.1, owner_name=name) as cursor:
                async for job in cursor.read(follow=True):
                    if job.key == END:
                        return
                    await asyncio.sleep(WORK_S)
                    await done.append(job.value.upper(), key=job.key, headers=_by(name))
                    await cursor.commit()
        except CursorLost:
            print(f"{name}: somebody else does these jobs by now")


def _by(name: str) -> dict[str, bytes]:
    return {"worker": name.encode()}


def start_worker(address: str, partition: str, results: str, name: str) -> SpawnProcess:
    """A worker in a process of its own."""
    process = multiprocessing.get_context("spawn").Process(
        target=_work_in_process,
        args=(address, partition, results, name),
        name=name,
        daemon=True,  # it does not outlive this program
    )
    process.start()
    return process


def _work_in_process(address: str, partition: str, results: str, name: str) -> None:
    asyncio.run(work(address, partition, results, name))


async def wait_for_results(results: sharedlog.Log, name: str, count: int) -> None:
    """Return when the worker has done so many jobs."""
    async for result in results.read(follow=True):
        count -= result.headers == _by(name)
        if count == 0:
            return


async def main(address: str) -> None:
    """Three workers; one is killed while jobs keep coming, and another one takes its place."""
    name = f"examples/jobs-{secrets.token_hex(4)}"
    async with sharedlog.connect(address) as cluster:
        results = await cluster.create_log(f"{name}/results")
        queue = Queue(cluster, name)
        job_ids = [f"job-{number}" for number in range(120)]
        for job_id in job_ids[:60]:
            await queue.submit(job_id, b"do this")

        workers = [
            start_worker(address, partition, results.name, f"worker-{number}")
            for number, partition in enumerate(queue.partitions)
        ]
        await wait_for_results(results, "worker-0", count=5)
        workers[0].kill()
        print("worker-0 was killed; jobs keep coming")
        for job_id in job_ids[60:]:
            await queue.submit(job_id, b"do that")
        await queue.end()
        workers.append(start_worker(address, queue.partitions[0], results.name, "worker-3"))
        for worker in workers:
            await asyncio.to_thread(worker.join)
        print("how the workers ended:", {worker.name: worker.exitcode for worker in workers})

        done = Counter([result.key async for result in results.read()])
        again = sum(count - 1 for count in done.values())
        print("jobs that were done again, since their commit was not written yet:", again)
        assert set(done) == {job_id.encode() for job_id in job_ids}
        print(f"all {len(done)} jobs are done")


if __name__ == "__main__":
    running.run(main, about=__doc__)
