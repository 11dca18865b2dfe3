from __future__ import annotations

import doctest
import importlib
import pkgutil
import random
from typing import Annotated, Any, NamedTuple, get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import nvmeof.spec
from nvmeof.errors import LocalProtocolError
from nvmeof.spec.layout import U8, U16, U32, U64, Bytes, Layout

MODULES = [
    importlib.import_module(f"nvmeof.spec.{module.name}") for module in pkgutil.iter_modules(nvmeof.spec.__path__)
]
LAYOUTS: dict[str, Layout[Any]] = {
    value.record.__name__: value for module in MODULES for value in vars(module).values() if isinstance(value, Layout)
}


class Sample(NamedTuple):
    first: U8
    second: U16
    name: Annotated[bytes, Bytes(3)]
    third: U32
    fourth: U64 = 0


SAMPLE = Layout(Sample, size=18, offsets={"first": 0, "second": 1, "name": 3, "third": 6, "fourth": 10})


def test_fields_are_little_endian_and_unpadded() -> None:
    encoded = SAMPLE.encode(Sample(0x01, 0x0203, b"abc", 0x04050607, 0x08090A0B0C0D0E0F))
    assert encoded.hex(" ") == "01 03 02 61 62 63 07 06 05 04 0f 0e 0d 0c 0b 0a 09 08"
    assert SAMPLE.decode(b"\xff" + encoded, 1) == Sample(0x01, 0x0203, b"abc", 0x04050607, 0x08090A0B0C0D0E0F)


@pytest.mark.parametrize("size", [17, 19])
def test_a_size_that_is_not_the_figures_is_refused(size: int) -> None:
    with pytest.raises(AssertionError, match=f"18 bytes, the figure says {size}"):
        Layout(Sample, size=size, offsets={})


def test_an_offset_that_is_not_the_figures_is_refused() -> None:
    with pytest.raises(AssertionError, match=r"Sample.third at 6, figure: 8"):
        Layout(Sample, size=18, offsets={"third": 8})


@pytest.mark.parametrize("value", [Sample(256, 0, b"", 0), Sample(0, -1, b"", 0), Sample(0, 0, b"", 1 << 32)])
def test_a_value_too_wide_is_our_own_error(value: Sample) -> None:
    with pytest.raises(LocalProtocolError, match="Sample"):
        SAMPLE.encode(value)


@pytest.mark.parametrize(("size", "offset"), [(17, 0), (18, 1), (0, 0)])
def test_short_data_is_a_value_error(size: int, offset: int) -> None:
    with pytest.raises(ValueError, match=f"Sample needs 18 bytes, got {size - offset}"):
        SAMPLE.decode(bytes(size), offset)


def test_every_layout_of_the_package_is_seen() -> None:
    assert {"DataPdu", "CompletionEntry", "ConnectData", "IdentifyController", "SmartLog", "HostBehavior"} <= set(
        LAYOUTS
    )


def _values(layout: Layout[Any]) -> st.SearchStrategy[tuple[Any, ...]]:
    widths = {"B": 8, "H": 16, "I": 32, "Q": 64}
    hints = get_type_hints(layout.record, include_extras=True)
    fields: list[st.SearchStrategy[Any]] = []
    for name in layout.record._fields:
        code = hints[name].__metadata__[0]
        fields.append(st.integers(0, (1 << widths[code]) - 1) if code in widths else _blobs(int(code[:-1])))
    return st.tuples(*fields)


def _blobs(size: int) -> st.SearchStrategy[bytes]:
    return st.integers(0, 255).map(lambda seed: bytes((seed + index) & 0xFF for index in range(size)))


@pytest.mark.parametrize("name", sorted(LAYOUTS))
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_round_trip(name: str, data: st.DataObject) -> None:
    layout = LAYOUTS[name]
    value = layout.record._make(data.draw(_values(layout)))
    encoded = layout.encode(value)
    assert len(encoded) == layout.size
    assert layout.decode(encoded) == value
    assert layout.decode(memoryview(bytearray(b"\xa5" * 3 + encoded)), 3) == value


@pytest.mark.parametrize("name", sorted(LAYOUTS))
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_any_bytes_come_back_unchanged(name: str, seed: int) -> None:
    layout = LAYOUTS[name]
    data = random.Random(seed).randbytes(layout.size)
    assert layout.encode(layout.decode(data)) == data


@pytest.mark.parametrize("name", sorted(LAYOUTS))
def test_reserved_fields_default_to_zero(name: str) -> None:
    record = LAYOUTS[name].record
    for field in record._fields:
        if field.startswith(("reserved", "vendor_specific")):
            default = record._field_defaults[field]
            assert not any(default) if isinstance(default, bytes) else default == 0


@pytest.mark.parametrize("module", MODULES, ids=lambda module: str(module.__name__))
def test_examples_in_the_documentation(module: Any) -> None:
    assert doctest.testmod(module).failed == 0
