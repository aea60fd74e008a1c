"""No field, value or method has changed its meaning since it was recorded (docs/compatibility.md).

Numbers that are no longer used must be reserved, with their names, so that nobody gives them away.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import pytest
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    ServiceDescriptorProto,
)
from helpers.recorded import VERSIONS

from tools.compat_messages import descriptor_set
from tools.record_messages import RECORDED


def all_messages(found: FileDescriptorSet) -> dict[str, DescriptorProto]:
    """Every message, nested ones too, by its full name."""
    return dict(it for file in found.file for it in _messages(file))


def _messages(file: FileDescriptorProto) -> Iterator[tuple[str, DescriptorProto]]:
    def walk(prefix: str, message: DescriptorProto) -> Iterator[tuple[str, DescriptorProto]]:
        name = f"{prefix}.{message.name}"
        yield name, message
        for nested in message.nested_type:
            yield from walk(name, nested)

    for message in file.message_type:
        yield from walk(file.package, message)


def all_enums(found: FileDescriptorSet) -> dict[str, EnumDescriptorProto]:
    enums = {f"{file.package}.{it.name}": it for file in found.file for it in file.enum_type}
    for name, message in all_messages(found).items():
        enums |= {f"{name}.{it.name}": it for it in message.enum_type}
    return enums


def all_services(found: FileDescriptorSet) -> dict[str, ServiceDescriptorProto]:
    return {f"{file.package}.{it.name}": it for file in found.file for it in file.service}


def changes(then: FileDescriptorSet, now: FileDescriptorSet) -> list[str]:
    """What of `then` means something else in `now`, or can come to mean something else."""
    found = []
    messages = all_messages(now)
    for name, message in all_messages(then).items():
        if name not in messages:
            found.append(f"{name} is gone")
            continue
        found += _field_changes(name, message, messages[name])
    enums = all_enums(now)
    for name, enum in all_enums(then).items():
        if name not in enums:
            found.append(f"{name} is gone")
            continue
        found += _value_changes(name, enum, enums[name])
    return [*found, *_method_changes(all_services(then), all_services(now))]


def _field_changes(name: str, then: DescriptorProto, now: DescriptorProto) -> Iterator[str]:
    fields = {field.number: field for field in now.field}
    for field in then.field:
        where = f"{name}.{field.name} = {field.number}"
        present = fields.get(field.number)
        if present is None:
            numbers = any(it.start <= field.number < it.end for it in now.reserved_range)
            if not (numbers and field.name in now.reserved_name):
                yield f"{where} is gone, and its number and name are not reserved"
        elif _meaning(field, then) != _meaning(present, now):
            yield f"{where} has changed: {_meaning(field, then)} to {_meaning(present, now)}"


def _meaning(field: FieldDescriptorProto, message: DescriptorProto) -> tuple[object, ...]:
    choice = message.oneof_decl[field.oneof_index].name if field.HasField("oneof_index") else ""
    return field.name, field.type, field.label, field.type_name, field.proto3_optional, choice


def _value_changes(name: str, then: EnumDescriptorProto, now: EnumDescriptorProto) -> Iterator[str]:
    values = {value.number: value.name for value in now.value}
    for value in then.value:
        reserved = any(it.start <= value.number <= it.end for it in now.reserved_range)
        if values.get(value.number, "") != value.name and not (
            value.number not in values and reserved
        ):
            yield f"{name}.{value.name} = {value.number} has changed"


def _method_changes(
    then: Mapping[str, ServiceDescriptorProto], now: Mapping[str, ServiceDescriptorProto]
) -> Iterator[str]:
    for name, service in then.items():
        present = {it.name: it for it in now[name].method} if name in now else {}
        for method in service.method:
            if present.get(method.name) != method:
                yield f"{name}/{method.name} has changed"


@pytest.mark.parametrize("version", VERSIONS)
def test_nothing_recorded_has_changed_its_meaning(version: str) -> None:
    """Neither number nor name, type, label or choice; methods take and answer the same."""
    then = FileDescriptorSet.FromString((RECORDED / version / "descriptors.bin").read_bytes())
    assert len(all_messages(then)) > 100
    assert changes(then, descriptor_set()) == []


def _ping(found: FileDescriptorSet) -> DescriptorProto:
    return all_messages(found)["sharedlog.v1.PingResponse"]


def _renumber(found: FileDescriptorSet) -> None:
    _ping(found).field[1].number = 99


def _retype(found: FileDescriptorSet) -> None:
    _ping(found).field[1].type = FieldDescriptorProto.TYPE_STRING


def _rename(found: FileDescriptorSet) -> None:
    _ping(found).field[1].name = "life"


def _repeat(found: FileDescriptorSet) -> None:
    _ping(found).field[1].label = FieldDescriptorProto.LABEL_REPEATED


def _drop(found: FileDescriptorSet) -> None:
    del _ping(found).field[1]


def _reuse(found: FileDescriptorSet) -> None:
    _drop(found)
    _ping(found).field.add(name="other", number=2, type=9, label=1)


def _drop_message(found: FileDescriptorSet) -> None:
    file = next(it for it in found.file if it.name.endswith("/cluster.proto"))
    del file.message_type[0]


def _renumber_value(found: FileDescriptorSet) -> None:
    all_enums(found)["sharedlog.v1.Problem.Severity"].value[2].number = 7


def _change_method(found: FileDescriptorSet) -> None:
    all_services(found)["sharedlog.v1.ClusterService"].method[0].server_streaming = True


@pytest.mark.parametrize(
    "harm",
    [
        _renumber,
        _retype,
        _rename,
        _repeat,
        _drop,
        _reuse,
        _drop_message,
        _renumber_value,
        _change_method,
    ],
    ids=lambda it: it.__name__,
)
def test_every_such_change_is_found(harm: Callable[[FileDescriptorSet], None]) -> None:
    changed = descriptor_set()
    harm(changed)
    assert len(changes(descriptor_set(), changed)) >= 1


def test_what_is_added_or_reserved_is_no_change() -> None:
    changed = descriptor_set()
    ping = _ping(changed)
    ping.field.add(name="mood", number=77, type=9, label=1)
    dropped = ping.field[1]
    ping.reserved_range.add(start=dropped.number, end=dropped.number + 1)
    ping.reserved_name.append(dropped.name)
    del ping.field[1]
    file = next(it for it in changed.file if it.name.endswith("/cluster.proto"))
    file.message_type.add(name="New")
    service = all_services(changed)["sharedlog.v1.ClusterService"]
    service.method.add(name="New", input_type=".sharedlog.v1.New", output_type=".sharedlog.v1.New")
    assert changes(descriptor_set(), changed) == []
