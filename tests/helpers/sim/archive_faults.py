"""What goes wrong with the object store; nothing does where there is none."""

from __future__ import annotations

from helpers.sim.nemesis import Nemesis, fault
from helpers.sim.object_store import ARCHIVE_HOST

from loglet.archive.layout import manifest_key
from loglet.archive.manifest_codec import encode_manifest


@fault
async def archive_outage(it: Nemesis) -> bool:
    """It does not answer."""
    objects = it.cluster.objects
    if objects is None:
        return False
    objects.up = False
    await it.wait()
    objects.up = True
    return True


@fault
async def archive_trouble(it: Nemesis) -> bool:
    """Its answers get lost, its calls are made twice, or late, or not at all."""
    objects = it.cluster.objects
    if objects is None:
        return False
    objects.trouble = it.draw.choice((0.1, 0.3, 0.7))
    await it.wait(least_s=0.5)
    objects.trouble = 0.0
    return True


@fault
async def archive_damage(it: Nemesis) -> bool:
    """Bits flip in what it is given, or in what it gives."""
    objects = it.cluster.objects
    if objects is None:
        return False
    objects.damage_uploads = it.draw.choice((0.0, 0.3))
    objects.damage_reads = it.draw.choice((0.0, 0.05, 0.2))
    await it.wait(least_s=0.5)
    objects.damage_uploads = objects.damage_reads = 0.0
    return True


@fault
async def archive_lag(it: Nemesis) -> bool:
    """Its listings tell of the past."""
    objects = it.cluster.objects
    if objects is None:
        return False
    objects.lag_s = it.draw.choice((1.0, 10.0))
    await it.wait(least_s=0.5)
    objects.lag_s = 0.0
    return True


@fault
async def archive_put_back(it: Nemesis) -> bool:
    """A person puts an old manifest in the place of the new one, and undoes it, if still can be.

    Not in the usual mix: meanwhile the archive denies what it has.
    """
    objects, watch = it.cluster.objects, it.watch
    if objects is None or watch is None:
        return False
    record = it.budget.record()
    older = [found for found in watch.written(record.log_id) if found.end < record.archived_end]
    if not older:
        return False
    # So old that nobody knows the chain from that time.
    chosen = it.draw.choice(older[: len(older) // 2 + 1])
    key = manifest_key(chosen.cluster_id, record.log_id)
    watch.put(key, encode_manifest(key, chosen))
    try:
        await it.wait(least_s=0.5)
    finally:
        # Another may have put the same one back meanwhile, and the one before it be no more.
        newest = watch.newest(record.log_id)
        if newest is not None and objects.objects[key].data == encode_manifest(key, chosen):
            watch.put(key, encode_manifest(key, newest))
    return True


@fault
async def archive_cut(it: Nemesis) -> bool:
    """A node does not reach it, is refused, or its answers are lost or take long."""
    if it.cluster.objects is None:
        return False
    node, network = it.draw.choice(list(it.cluster.nodes)), it.cluster.network
    match it.draw.choice(("cut", "answers", "refuse", "slow")):
        case "cut":
            network.cut(node, ARCHIVE_HOST)
        case "answers":
            network.cut(ARCHIVE_HOST, node, both_ways=False)
        case "refuse":
            network.refuse(node, ARCHIVE_HOST)
        case _:
            network.slow(node, ARCHIVE_HOST, it.draw.choice((0.2, 2.0)))
    await it.wait(least_s=0.3)
    network.mend(node, ARCHIVE_HOST)
    network.slow(node, ARCHIVE_HOST, 0)
    return True
