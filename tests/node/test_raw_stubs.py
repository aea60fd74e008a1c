"""Any generated client will do: stubs made from `proto/` alone append and read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.processes import ALL_ROLES, ROOT, NodeProcess

PROGRAM = """
import json, sys, time
sys.path.insert(0, sys.argv[1])
import grpc
from sharedlog.v1 import cluster_pb2, cluster_pb2_grpc, log_pb2, log_pb2_grpc, types_pb2

assert log_pb2.__file__.startswith(sys.argv[1]), log_pb2.__file__
with grpc.insecure_channel(sys.argv[2]) as channel:
    logs = log_pb2_grpc.LogServiceStub(channel)
    made = logs.CreateLog(log_pb2.CreateLogRequest(name="orders", nonce="a"), timeout=10).log
    again = logs.CreateLog(log_pb2.CreateLogRequest(name="orders", nonce="a"), timeout=10).log
    assert made.log_id == again.log_id
    header = types_pb2.Header(name="type", value=b"greeting")
    records = [types_pb2.Record(value=b"hello", key=b"k", headers=[header])]
    records += [types_pb2.Record(value=bytes(1000)) for _ in range(5000)]
    records += [types_pb2.Record(value=b"", key=b"")]
    done = logs.Append(log_pb2.AppendRequest(log="orders", records=records), timeout=10)
    tail = logs.FindTail(log_pb2.FindTailRequest(log="orders"), timeout=10).tail
    read = [
        record
        for message in logs.ReadRecords(log_pb2.ReadRequest(log="orders"), timeout=10)
        for record in message.records
    ]
    some = [
        record.offset
        for message in logs.ReadRecords(log_pb2.ReadRequest(log="orders", start=7, limit=3))
        for record in message.records
    ]
    try:
        logs.Append(log_pb2.AppendRequest(log="nothing", records=records[:1]), timeout=10)
        refused = None
    except grpc.RpcError as error:
        refused = error.code().name, error.details()
    cluster = cluster_pb2_grpc.ClusterServiceStub(channel)
    for _ in range(100):  # a controller takes its lease a moment after the first node is ready
        status = cluster.GetStatus(cluster_pb2.GetStatusRequest(), timeout=10)
        if not status.problems:
            break
        time.sleep(0.1)
first, last = read[0], read[-1]
print(json.dumps({
    "append": [done.first_offset, done.next_offset], "tail": tail, "some": some,
    "offsets": [r.offset for r in read] == list(range(len(records))),
    "values": [r.value for r in read] == [r.value for r in records],
    "times": {r.timestamp_ms for r in read} == {done.timestamp_ms},
    "first": [first.value.decode(), first.key.decode(), first.headers[0].name],
    "keys": [first.HasField("key"), read[1].HasField("key"), last.HasField("key")],
    "refused": refused, "problems": len(status.problems), "known": status.logs[0].known_tail,
}))
"""


@pytest.mark.cluster
@pytest.mark.slow
def test_freshly_generated_stubs_append_and_read(tmp_path: Path) -> None:
    """CreateLog, Append, FindTail and ReadRecords from stubs that were generated a moment ago, with
    nothing of ours on the path and no option set: 5 MB pass a client's default limit of 4 MiB."""
    stubs = tmp_path / "stubs"
    stubs.mkdir()
    protos = sorted(str(path) for path in (ROOT / "proto").rglob("*.proto"))
    generate = ["-m", "grpc_tools.protoc", f"-I{ROOT / 'proto'}", f"--python_out={stubs}"]
    subprocess.run([sys.executable, *generate, f"--grpc_python_out={stubs}", *protos], check=True)
    # As packages they come before an installed `sharedlog`; without, they would come after it.
    for package in (stubs / "sharedlog", stubs / "sharedlog" / "v1"):
        (package / "__init__.py").touch()
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with NodeProcess(tmp_path / "n1", "n1", roles=ALL_ROLES) as node:
        node.wait_ready()
        ran = subprocess.run(
            # -P: neither the working directory nor the program's own offers another `sharedlog`.
            [sys.executable, "-P", str(program), str(stubs), node.address],
            check=False,
            capture_output=True,
            cwd=tmp_path,
            env=environ,
            timeout=60,
        )
    assert ran.returncode == 0, ran.stderr.decode()
    assert json.loads(ran.stdout) == {
        "append": [0, 5002],
        "tail": 5002,
        "some": [7, 8, 9],
        "offsets": True,
        "values": True,
        "times": True,
        "first": ["hello", "k", "type"],
        "keys": [True, False, True],
        "refused": ["NOT_FOUND", "there is no log 'nothing'"],
        "problems": 0,
        "known": 5002,
    }
