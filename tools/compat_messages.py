"""Every message of the wire that a method takes or answers, filled to the brim, and read back.

The examples are made from the descriptors: each field has a value, lists have two, and where a
message holds one of several there is an example for each. So a method that is added is covered
without anybody having to think of it.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from typing import Any, Final

from google.protobuf import descriptor_pb2, text_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor, FileDescriptor
from google.protobuf.message import Message

import sharedlog.v1

PACKAGE: Final = "sharedlog.v1"
BESIDES: Final = ("sharedlog.v1.LogState", "sharedlog.v1.Error")
"""Messages that travel in others as bytes."""

_DEPTH_MAX: Final = 8
_INTEGERS: Final = {
    FieldDescriptor.CPPTYPE_INT32,
    FieldDescriptor.CPPTYPE_INT64,
    FieldDescriptor.CPPTYPE_UINT32,
    FieldDescriptor.CPPTYPE_UINT64,
}


def files() -> list[FileDescriptor]:
    """Every file of the package, in order of their names."""
    modules = [
        importlib.import_module(f"{PACKAGE}.{found.name}")
        for found in pkgutil.iter_modules(sharedlog.v1.__path__)
        if found.name.endswith("_pb2")
    ]
    found = [module.DESCRIPTOR for module in modules]
    return sorted((it for it in found if it.package == PACKAGE), key=lambda it: it.name)


def descriptor_set() -> descriptor_pb2.FileDescriptorSet:
    """The package as data, without comments."""
    found = descriptor_pb2.FileDescriptorSet()
    for file in files():
        file.CopyToProto(found.file.add())
    return found


def methods() -> dict[str, tuple[Descriptor, Descriptor]]:
    """What each method takes and answers, by "Service/Method"."""
    return {
        f"{service.name}/{method.name}": (method.input_type, method.output_type)
        for file in files()
        for service in file.services_by_name.values()
        for method in service.methods
    }


def message_types() -> dict[str, Descriptor]:
    """All that is recorded, by the name without its package."""
    wanted = [it for pair in methods().values() for it in pair]
    by_name = {it.full_name: it for file in files() for it in file.message_types_by_name.values()}
    wanted += [by_name[name] for name in BESIDES]
    return {it.full_name.removeprefix(f"{PACKAGE}."): it for it in wanted}


def message_class(descriptor: Descriptor) -> type[Message]:
    """The Python class of a message."""
    module = descriptor.file.name.replace("/", ".").removesuffix(".proto") + "_pb2"
    place: Any = importlib.import_module(module)
    for name in descriptor.full_name.removeprefix(f"{PACKAGE}.").split("."):
        place = getattr(place, name)
    found: type[Message] = place
    return found


def examples(descriptor: Descriptor) -> Iterator[tuple[str, bytes]]:
    """(number, bytes) of each example; "" if there is one."""
    count = _variants(descriptor, _DEPTH_MAX)
    for variant in range(count):
        message = message_class(descriptor)()
        _fill(message, variant, _DEPTH_MAX)
        yield ("" if count == 1 else f".{variant}"), message.SerializeToString(deterministic=True)


def text(descriptor: Descriptor, data: bytes) -> str:
    """What the bytes mean, for people."""
    return text_format.MessageToString(message_class(descriptor).FromString(data))


def _variants(descriptor: Descriptor, depth: int) -> int:
    """As many examples as the widest choice in the message, or below it, has alternatives."""
    widest = max((len(it.fields) for it in descriptor.oneofs if len(it.fields) > 1), default=1)
    below = [
        _variants(it.message_type, depth - 1)
        for it in descriptor.fields
        if it.message_type is not None and depth
    ]
    return max([widest, *below])


def _fill(message: Message, variant: int, depth: int) -> None:
    descriptor: Descriptor = message.DESCRIPTOR  # type: ignore[assignment]  # one of two kinds
    for field in descriptor.fields:
        choice = field.containing_oneof
        if choice is not None and len(choice.fields) > 1:
            taken = choice.fields[variant % len(choice.fields)]
            if taken.name != field.name:
                continue
        _set(message, field, variant, depth)


def _set(message: Any, field: FieldDescriptor, variant: int, depth: int) -> None:
    place = getattr(message, field.name)
    inner = field.message_type
    if inner is not None and inner.GetOptions().map_entry:
        key = _scalar(inner.fields_by_name["key"], 0)
        place[key] = _scalar(inner.fields_by_name["value"], 0)
    elif inner is not None and depth:
        for target in (place.add(), place.add()) if field.is_repeated else (place,):
            target.SetInParent()
            _fill(target, variant, depth - 1)
    elif field.is_repeated:
        place.extend([_scalar(field, 0), _scalar(field, 1)])
    else:
        setattr(message, field.name, _scalar(field, 0))


def _scalar(field: FieldDescriptor, index: int) -> object:
    kind = field.cpp_type
    if kind in _INTEGERS:
        return 1_000 + 10 * field.number + index
    if kind == FieldDescriptor.CPPTYPE_STRING:
        named = f"{field.name}-{index}"
        return named if field.type == FieldDescriptor.TYPE_STRING else named.encode()
    if kind == FieldDescriptor.CPPTYPE_ENUM:
        assert field.enum_type is not None
        values = field.enum_type.values
        return values[-1 - index % len(values)].number
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        return True
    return field.number + index + 0.5
