"""The deterministic simulator: virtual time, a simulated network, disks and metadata store.

A seed decides everything: the same seed twice gives the same trace. See `docs/simulation.md`.
"""

from helpers.sim.log_store import SimDisk, SimLogStore
from helpers.sim.loop import Deadlock, Host, Livelock, SimLoop, VirtualTimeExceeded, run_virtual
from helpers.sim.metadata_store import SimMetadata, SimMetadataStore
from helpers.sim.network import NetworkConfig, SimNetwork
from helpers.sim.transport import SimServer, SimTransport
from helpers.sim.world import SimClock, Trace, World

__all__ = [
    "Deadlock",
    "Host",
    "Livelock",
    "NetworkConfig",
    "SimClock",
    "SimDisk",
    "SimLogStore",
    "SimLoop",
    "SimMetadata",
    "SimMetadataStore",
    "SimNetwork",
    "SimServer",
    "SimTransport",
    "Trace",
    "VirtualTimeExceeded",
    "World",
    "run_virtual",
]
