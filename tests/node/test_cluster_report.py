"""The cluster's status, put together from what nodes answer; cheap however many logs there are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, cast

import pytest

from metadata.records import LogRecord, NodeRecord, Replica, Segment
from metadata.store import Version
from metadata.view import ClusterView
from node.cluster_service import LOGS_LISTED_MAX, ClusterReport, LocalReport
from node.controller.index import SegmentIndex
from node.controller.work import WorkBoard
from node.peers import Peers
from node.problem_codes import ProblemCode
from node.problems import ERROR, LOG_PROBLEMS_MAX, problem_of
from sharedlog.clock import SystemClock
from sharedlog.errors import SharedLogError, Unreachable, WrongStorage
from sharedlog.ids import Generation, LogId, NodeId, Offset, SequencerId, StorageId
from sharedlog.rpc.methods import GET_STATUS, LIST_LOGLETS
from sharedlog.rpc.transport import ClientStream, Method, Req, Resp
from sharedlog.v1 import cluster_pb2, log_server_pb2

NAMES = ("n1", "n2", "n3")
ROLES = ("log-server", "sequencer")


def node(name: str, *, generation: int = 1, store: str = "") -> NodeRecord:
    return NodeRecord(
        node_id=NodeId(name),
        generation=Generation(generation),
        storage_id=StorageId(store or name * 16),
        address=f"{name}:1",
        http_address="",
        location="",
        roles=ROLES,
    )


def log(name: str, sequencer: str = "n1", log_id: int = 1) -> LogRecord:
    replicas = tuple(
        Replica(node_id=NodeId(it), storage_id=StorageId(it * 16), location=f"zone-{log_id % 3}")
        for it in NAMES
    )
    segment = Segment(
        index=0,
        base=Offset(0),
        sequencer=SequencerId(NodeId(sequencer), Generation(1)),
        nodeset=replicas,
        write_quorum=2,
    )
    return LogRecord(
        log_id=LogId(log_id),
        name=name,
        replicas=3,
        write_quorum=2,
        created_ms=0,
        create_nonce="",
        chain=(segment,),
    )


@dataclass(slots=True)
class FakeView:
    """What a `ClusterView` would know."""

    records: list[LogRecord]
    known: dict[str, NodeRecord] = field(default_factory=lambda: {it: node(it) for it in NAMES})
    connected: bool = True
    damaged: Mapping[str, SharedLogError] = field(default_factory=dict)

    def nodes(self) -> list[NodeRecord]:
        return [self.known[name] for name in sorted(self.known)]

    def node(self, node_id: NodeId) -> NodeRecord | None:
        return self.known.get(node_id)

    def logs(self) -> list[tuple[LogRecord, Version]]:
        return [(record, Version(1)) for record in sorted(self.records, key=lambda it: it.name)]


class FakeNodes:
    """A transport whose far ends are three nodes that do as they are told."""

    def __init__(self, view: FakeView) -> None:
        self.view = view
        self.calls: Counter[str] = Counter()
        self.down: set[str] = set()
        self.read_only: set[str] = set()
        self.uptime_s = 60.0
        self.lagging: dict[int, list[str]] = {}  # as n1 tells it
        self.tails: dict[str, int] = {}  # committed tail that a node knows of every log
        self.asked_max = 0
        self.work: list[cluster_pb2.Work] = []  # of n2
        self.unrepairable: dict[int, str] = {}  # by log_id, as n2 tells it
        self.problems: list[cluster_pb2.Problem] = []  # as n2 and n3 tell them

    async def call(
        self, address: str, method: Method[Req, Resp], request: Req, *, timeout_s: float
    ) -> Resp:
        self.calls[method.path] += 1
        name = address.partition(":")[0]
        if name in self.down:
            raise Unreachable(f"can't reach {address}")
        if method.path == GET_STATUS.path:
            return cast("Resp", self.status(name))
        assert method.path == LIST_LOGLETS.path
        assert isinstance(request, log_server_pb2.ListLogletsRequest)
        if request.storage_id != self.view.known[name].storage_id:
            raise WrongStorage("another store")
        self.asked_max = max(self.asked_max, len(request.loglets))
        statuses = [
            log_server_pb2.LogletStatus(loglet=it, committed_tail=self.tails.get(name, 0))
            for it in request.loglets
        ]
        return cast("Resp", log_server_pb2.ListLogletsResponse(loglets=statuses))

    def status(self, name: str) -> cluster_pb2.GetStatusResponse:
        record = self.view.known[name]
        own = cluster_pb2.NodeStatus(
            node_id=name,
            alive=True,
            generation=record.generation,
            storage_id=record.storage_id,
            read_only=name in self.read_only,
            uptime_s=self.uptime_s,
        )
        logs = [
            cluster_pb2.LogStatus(log_id=log_id, under_replicated_on=nodes)
            for log_id, nodes in self.lagging.items()
            if name == "n1"
        ]
        if name == "n1":
            return cluster_pb2.GetStatusResponse(nodes=[own], logs=logs)
        logs = [
            cluster_pb2.LogStatus(log_id=log_id, unrepairable=text)
            for log_id, text in self.unrepairable.items()
            if name == "n2"
        ]
        work = self.work if name == "n2" else []
        return cluster_pb2.GetStatusResponse(
            nodes=[own], logs=logs, work=work, problems=self.problems
        )

    def stream(self, address: str, method: Method[Req, Resp]) -> ClientStream[Req, Resp]:
        raise AssertionError("not called by what is tested")

    async def close(self) -> None: ...


@dataclass(slots=True)
class FakeController:
    """What a `Controller` would know."""

    holder: str = "n1"
    term: Any = None


class Case:
    """A report over fake nodes."""

    def __init__(self, *records: LogRecord) -> None:
        self.stopping = False
        self.view = FakeView(list(records))
        self.nodes = FakeNodes(self.view)
        view = cast("ClusterView", self.view)
        self.controller = FakeController()
        self.board = WorkBoard(NodeId("n1"))
        self.index = SegmentIndex()
        for record in records:
            self.index.learn(record, Version(1))
        local = LocalReport(
            cluster_id="c",
            own=node("n1"),
            view=view,
            log_server=None,
            sequencer=None,
            board=self.board,
            controller=cast("Any", self.controller),
            stopping=lambda: self.stopping,
            clock=SystemClock(),
            started_s=0,
        )
        self.report = ClusterReport(
            local=local,
            view=view,
            index=self.index,
            peers=Peers(view=view, transport=self.nodes),
            metadata_url="embedded://h:1",
        )

    async def status(self) -> cluster_pb2.GetStatusResponse:
        return await self.report.get_status(cluster_pb2.GetStatusRequest())

    async def problems(self) -> list[str]:
        return [f"{it.subject}: {it.message}" for it in (await self.status()).problems]


async def test_all_is_well() -> None:
    """No problems; the highest tail that any server knows."""
    case = Case(log("a"), log("b", "n2", 2))
    case.nodes.tails = {"n1": 3, "n2": 7}
    status = await case.status()
    assert not status.problems
    assert [(it.name, it.known_tail, it.accepts_appends) for it in status.logs] == [
        ("a", 7, True),
        ("b", 7, True),
    ]
    assert status.metadata == "embedded://h:1 (a single point of failure)"


async def test_a_dead_node_is_told_with_what_it_costs() -> None:
    """The node itself, the logs that it ordered, and, as warnings, those that lack a copy."""
    case = Case(log("a", "n1"), log("b", "n2", 2))
    case.nodes.down = {"n2"}
    status = await case.status()
    told = [(int(it.severity), it.subject) for it in status.problems]
    assert told == [(2, "node n2"), (2, "log b"), (1, "log b"), (1, "log a")]
    by_name = {it.name: it for it in status.logs}
    assert by_name["a"].accepts_appends
    assert not by_name["b"].accepts_appends
    assert list(by_name["a"].under_replicated_on) == ["n2"]
    assert [it.alive for it in status.nodes] == [True, False, True]


async def test_without_a_write_quorum_a_log_takes_no_appends() -> None:
    """The sequencer is up, but too few copies can be made."""
    case = Case(log("a"))
    case.nodes.down = {"n2", "n3"}
    assert "log a: takes no appends: 1 of 3 replicas are up, 2 must be" in await case.problems()


async def test_a_wiped_store_is_told_once_for_all_its_logs() -> None:
    """The node is up with another store: it counts as no replica of the old one."""
    case = Case(*(log(f"log{index}", log_id=index) for index in range(5)))
    case.view.known["n2"] = node("n2", generation=2, store="f" * 32)
    problems = await case.problems()
    assert sum("was its disk wiped?" in problem for problem in problems) == 1
    assert any("5 segments" in problem for problem in problems)
    status = await case.status()
    assert {it.replicas_alive for it in status.logs} == {2}


async def test_a_sequencer_of_an_older_life_is_told() -> None:
    """The node is back, the process that ordered the log is not."""
    case = Case(log("a"))
    case.view.known["n1"] = node("n1", generation=2)
    (problem,) = await case.problems()
    assert problem == (
        "log a: takes no appends: its sequencer, n1 in its life 1, is gone; it is being replaced"
    )
    case.view.connected = False
    assert any("once the metadata store answers" in it for it in await case.problems())


async def test_lagging_replicas_and_full_stores_are_told() -> None:
    """What only the sequencer knows, and what only the log server knows."""
    case = Case(log("a"))
    case.nodes.lagging = {1: ["n3"]}
    case.nodes.read_only = {"n2"}
    assert await case.problems() == [
        "node n2: takes no stores: its disk, or its store's limit, is full",
        "log a: has fewer than 3 copies: n3 lags",
    ]


async def test_a_lost_metadata_store_comes_first() -> None:
    """Field note 52: told, with what goes on without it."""
    case = Case(log("a"))
    case.view.connected = False
    assert (await case.problems())[0].startswith("metadata store: does not answer")


async def test_somebody_else_at_a_nodes_address_is_not_that_node() -> None:
    """An answer under another name counts as none."""
    case = Case(log("a"))
    case.view.known["n3"] = replace(case.view.known["n3"], address="n2:1")
    assert any("answers n2" in problem for problem in await case.problems())


async def test_a_node_that_is_gone_may_be_switched_off() -> None:
    """It is listed, and missed by nobody; nor is whoever has its address now. Should a chain name
    its store all the same, that is told."""
    case = Case()
    case.view.known["n3"] = replace(node("n3"), state="gone")
    case.nodes.down = {"n3"}
    status = await case.status()
    assert not status.problems
    assert [(it.node_id, it.state, it.alive) for it in status.nodes][2] == ("n3", "gone", False)
    case.view.known["n3"] = replace(case.view.known["n3"], address="n2:1")
    assert await case.problems() == []
    told = await case.report.get_nodes(cluster_pb2.GetNodesRequest())
    assert [it.node_id for it in told.nodes] == ["n1", "n2"]
    case = Case(log("a"))
    case.view.known["n3"] = replace(node("n3"), state="gone")
    removed = "node n3: its store, which 1 segment has a copy on, was removed"
    assert removed in await case.problems()


@pytest.mark.slow
async def test_ten_thousand_logs_cost_no_more_calls_than_one() -> None:
    """One status call a node and one listing a log server; a bounded answer, problems first."""
    records = [log(f"log{index:05}", "n1", index + 1) for index in range(10_000)]
    records[7_777] = log("log07777", "n2", 7_778)
    case = Case(*records)
    case.view.known["n2"] = node("n2", generation=2)
    status = await case.status()
    assert case.nodes.calls == {GET_STATUS.path: 3, LIST_LOGLETS.path: 3}
    assert case.nodes.asked_max == LOGS_LISTED_MAX
    assert len(status.logs) == LOGS_LISTED_MAX
    assert status.log_count == 10_000
    assert status.logs[0].name == "log07777"
    case.controller.holder = "n3"
    case.nodes.down = {"n1"}
    status = await case.status()
    assert len(status.problems) == 1 + LOG_PROBLEMS_MAX + 1
    assert any("more problems like these" in it.message for it in status.problems)


def chained(record: LogRecord, *ends: int) -> LogRecord:
    """The log with closed segments before its open one."""
    bases = [0, *ends]
    chain = tuple(
        replace(
            record.chain[0],
            index=index,
            base=Offset(base),
            end=Offset(bases[index + 1]) if index < len(ends) else None,
        )
        for index, base in enumerate(bases)
    )
    return replace(record, chain=chain)


async def test_nodes_and_logs_say_how_much_history_they_have() -> None:
    """The state of a node, the segments that name its store, a log's segments and those that lack
    a copy; a closed segment on a dead node is a warning of its own."""
    case = Case(chained(log("a"), 5, 9), log("b", log_id=2))
    case.view.known["n3"] = replace(node("n3"), state="draining")
    status = await case.status()
    assert [(it.state, it.segments, it.open_segments) for it in status.nodes] == [
        ("read-write", 4, 2),
        ("read-write", 4, 2),
        ("draining", 4, 2),
    ]
    assert [(it.name, it.segments, it.segments_under_replicated) for it in status.logs] == [
        ("a", 3, 0),
        ("b", 1, 0),
    ]
    case.nodes.down = {"n3"}
    status = await case.status()
    assert {it.name: it.segments_under_replicated for it in status.logs} == {"a": 2, "b": 0}
    assert [(it.segments, it.state) for it in status.nodes][2] == (4, "draining")
    told = [f"{it.subject}: {it.message}" for it in status.problems]
    assert (
        "log a: 2 of its closed segments have a copy on a log server that is away or lost" in told
    )


async def test_an_unrepairable_log_is_told_with_what_to_do() -> None:
    """Field note 18: two of three stores are lost, and a person has to decide; one that is only
    away is no reason."""
    case = Case(log("a"))
    case.view.known["n2"] = node("n2", generation=2, store="f" * 32)
    case.nodes.down = {"n3"}
    assert not any("unrepairable" in it for it in await case.problems())
    case.view.known["n3"] = replace(node("n3"), state="data-loss")
    (told,) = [it for it in await case.problems() if it.startswith("log a: takes no appends")]
    assert "unrepairable" in told
    assert "`sharedlog log accept-loss a --segment 0`" in told
    declared = "node n3: its store, which 1 segment has a copy on, was declared lost"
    assert declared in await case.problems()
    (listed,) = (await case.status()).logs
    assert listed.unrepairable
    case.nodes.down = set()  # declared lost, and yet it answers: it is a copy
    assert not any("unrepairable" in it for it in await case.problems())


async def test_work_and_the_controller_are_told() -> None:
    """What every node is busy with; work that can't go on is a problem; so is nobody leading, and
    what the controller found to be lost."""
    case = Case(log("a"))
    drain = cluster_pb2.Work(kind="drain", subject="node n3", message="waits: no node")
    case.nodes.work = [drain, drain]
    case.nodes.unrepairable = {1: "no replica of segment 0 has offsets 3 to 4"}
    with case.board.doing("scrub", "node n1"):
        status = await case.status()
        own = await case.report.get_status(cluster_pb2.GetStatusRequest(local_only=True))
    assert [(it.kind, it.node_id) for it in own.work] == [("scrub", "n1")]
    assert {it.kind for it in status.work} == {"drain"}
    assert status.controller == own.controller == "n1"
    told = [f"{it.subject}: {it.message}" for it in status.problems]
    assert told == [
        "log a: has lost records: no replica of segment 0 has offsets 3 to 4",
        "node n3: drain waits: no node",
    ], "once, however many wait for it"
    case.nodes.work, case.nodes.unrepairable = [], {}
    for holder, text in (("", "no node holds"), ("n9", "n9 holds its lease and does not answer")):
        case.controller.holder = holder
        (problem,) = await case.problems()
        assert problem.startswith(f"controller: {text}")
    case.controller.holder = ""
    case.nodes.uptime_s = 3.0
    assert await case.problems() == [], "a cluster that has just started may still choose"


async def test_a_reconfiguration_that_fails_is_told_once() -> None:
    """Two nodes that met the same trouble make one line."""
    case = Case(log("a"))
    text = "could not be reconfigured: too few log servers"
    case.nodes.problems = [
        problem_of(ERROR, "log a", text, code=ProblemCode.RECONFIGURATION_FAILED)
    ]
    assert await case.problems() == [f"log a: {text}"]


async def test_a_ping_tells_the_life_and_what_to_expect_of_it() -> None:
    """Who answers, in which life, and whether it is about to stop."""
    case = Case(log("a"))
    answer = await case.report.local.ping(cluster_pb2.PingRequest())
    assert (answer.node_id, answer.generation, answer.storage_id) == ("n1", 1, "n1" * 16)
    assert not answer.stopping
    assert not answer.read_only
    case.stopping = True
    assert (await case.report.local.ping(cluster_pb2.PingRequest())).stopping


def test_the_fake_is_a_view() -> None:
    """It has what the report uses of the real one."""
    for name in ("nodes", "node", "logs", "connected", "damaged"):
        assert hasattr(cast("Any", ClusterView), name)
