"""The wire codecs of the systems that we compare with."""

from __future__ import annotations

from itertools import pairwise

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import Message as ProtoMessage
from hypothesis import given
from hypothesis import strategies as st

from bench.peers import etcd_wire, nats_wire, resp

REPLIES = (
    b"+OK\r\n:42\r\n$3\r\na\r\n\r\n$-1\r\n$0\r\n\r\n"
    b"*2\r\n$1\r\nx\r\n:7\r\n*-1\r\n-ERR bad thing\r\n"
)
CUTS = st.lists(st.integers(0, 100), max_size=8)


def cut_up(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(min(cut, len(data)) for cut in cuts)})
    return [data[a:b] for a, b in pairwise(edges)]


class TestResp:
    def test_a_command_is_an_array_of_bulk_strings(self) -> None:
        assert resp.encode_command(b"XADD", b"", b"\r\n") == (
            b"*3\r\n$4\r\nXADD\r\n$0\r\n\r\n$2\r\n\r\n\r\n"
        )

    @given(CUTS)
    def test_replies_are_the_same_however_the_stream_is_cut(self, cuts: list[int]) -> None:
        parser = resp.ReplyParser()
        replies = [reply for part in cut_up(REPLIES, cuts) for reply in parser.feed(part)]
        assert replies[:7] == ["OK", 42, b"a\r\n", None, b"", [b"x", 7], None]
        assert isinstance(replies[7], resp.ReplyError)
        assert str(replies[7]) == "ERR bad thing"
        assert len(replies) == 8

    def test_what_is_no_reply_is_refused(self) -> None:
        with pytest.raises(ValueError, match="not a reply"):
            resp.ReplyParser().feed(b"HTTP/1.1 400\r\n")


class TestNats:
    STREAM = (
        b'INFO {"version":"2"}\r\n+OK\r\nMSG in 1 4\r\n\r\n\r\n\r\nPING\r\n'
        b"MSG in 1 back 0\r\n\r\nPONG\r\n-ERR 'Slow Consumer'\r\n"
    )

    def test_a_publish_tells_its_size_and_where_to_answer(self) -> None:
        assert nats_wire.encode_publish(b"s", b"a\r\nb", b"in") == b"PUB s in 4\r\na\r\nb\r\n"
        assert nats_wire.encode_publish(b"s", b"") == b"PUB s 0\r\n\r\n"
        assert nats_wire.encode_subscribe(b"in.*", 3) == b"SUB in.* 3\r\n"

    @given(CUTS)
    def test_events_are_the_same_however_the_stream_is_cut(self, cuts: list[int]) -> None:
        parser = nats_wire.EventParser()
        events = [event for part in cut_up(self.STREAM, cuts) for event in parser.feed(part)]
        assert events == [
            nats_wire.Info(b'{"version":"2"}'),
            nats_wire.Message(b"in", b"", b"\r\n\r\n"),
            nats_wire.Ping(),
            nats_wire.Message(b"in", b"back", b""),
            nats_wire.Pong(),
            nats_wire.ServerError("Slow Consumer"),
        ]

    def test_what_is_no_line_of_nats_is_refused(self) -> None:
        with pytest.raises(ValueError, match="not a line"):
            nats_wire.EventParser().feed(b"HTTP/1.1 400\r\n")


def etcd_messages() -> dict[str, type[ProtoMessage]]:
    """The messages as protobuf itself knows them, from etcd's `rpc.proto`, in a pool of our own."""
    kind = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(
        name="etcd_subset.proto", package="subset", syntax="proto3"
    )

    def message(name: str, **fields: tuple[int, int, str]) -> None:
        found = file.message_type.add(name=name)
        for field, (number, field_kind, type_name) in fields.items():
            repeated = type_name.endswith("*")
            found.field.add(
                name=field,
                number=number,
                type=kind.Type.ValueType(field_kind),
                label=kind.LABEL_REPEATED if repeated else kind.LABEL_OPTIONAL,
                type_name=f".subset.{type_name.rstrip('*')}" if type_name else None,
            )

    b, i, u, s = kind.TYPE_BYTES, kind.TYPE_INT64, kind.TYPE_UINT64, kind.TYPE_STRING
    nested, flag = kind.TYPE_MESSAGE, kind.TYPE_BOOL
    message(
        "Header", cluster_id=(1, u, ""), member_id=(2, u, ""), revision=(3, i, ""), term=(4, u, "")
    )
    message("Put", key=(1, b, ""), value=(2, b, ""), lease=(3, i, ""))
    message("PutResponse", header=(1, nested, "Header"))
    message("Op", put=(2, nested, "Put"))
    message("Txn", success=(2, nested, "Op*"))
    message("TxnResponse", header=(1, nested, "Header"), succeeded=(2, flag, ""))
    message(
        "Status",
        header=(1, nested, "Header"),
        version=(2, s, ""),
        size=(3, i, ""),
        leader=(4, u, ""),
    )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        found.name: message_factory.GetMessageClass(
            pool.FindMessageTypeByName(f"subset.{found.name}")
        )
        for found in file.message_type
    }


ETCD = etcd_messages()
BYTES = st.binary(max_size=300)


class TestEtcd:
    @given(BYTES, BYTES)
    def test_protobuf_reads_our_put(self, key: bytes, value: bytes) -> None:
        found = ETCD["Put"].FromString(etcd_wire.encode_put(key, value))
        assert found == ETCD["Put"](key=key, value=value)

    @given(st.lists(st.tuples(BYTES, BYTES), max_size=5))
    def test_protobuf_reads_our_transaction(self, entries: list[tuple[bytes, bytes]]) -> None:
        found = ETCD["Txn"].FromString(etcd_wire.encode_put_txn(entries))
        puts = [ETCD["Op"](put=ETCD["Put"](key=key, value=value)) for key, value in entries]
        assert found == ETCD["Txn"](success=puts)

    @given(st.integers(0, 2**64 - 1), st.integers(0, 2**63 - 1), st.integers(0, 2**64 - 1))
    def test_we_read_what_protobuf_writes(self, member: int, revision: int, leader: int) -> None:
        header = ETCD["Header"](cluster_id=1, member_id=member, revision=revision, term=3)
        put = ETCD["PutResponse"](header=header).SerializeToString()
        assert etcd_wire.decode_put_revision(put) == revision
        txn = ETCD["TxnResponse"](header=header, succeeded=True).SerializeToString()
        assert etcd_wire.decode_txn_succeeded(txn)
        assert not etcd_wire.decode_txn_succeeded(ETCD["TxnResponse"]().SerializeToString())
        status = ETCD["Status"](header=header, version="3.4", size=9, leader=leader)
        assert etcd_wire.decode_status(status.SerializeToString()) == ("3.4", member, leader)

    @pytest.mark.parametrize(
        "damaged", [b"\x0a\x05ab", b"\x08\x80", b"\x0b", b"\x08" + b"\xff" * 11]
    )
    def test_damaged_answers_are_refused(self, damaged: bytes) -> None:
        with pytest.raises(ValueError, match=r"cut short|wire type"):
            list(etcd_wire.decode_fields(damaged))
