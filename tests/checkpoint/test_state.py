"""Flattening and unflattening of states: numpy, torch where it is installed, nested Python."""

from __future__ import annotations

import math
import sys
from collections import OrderedDict
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from nvmeof.checkpoint.manifest import Item
from nvmeof.checkpoint.payload import Contents, LazyPayload, MemoryPayload, Scratch
from nvmeof.checkpoint.state import DEPTH_MAX, allocate, array_bytes, flatten, restore_item, unflatten
from nvmeof.errors import CorruptCheckpointError, UsageError

from .states import assert_same


def through(state: dict[Any, Any]) -> Any:
    """Flatten, move the bytes as a checkpoint would, put together again."""
    return rebuild(flatten(state))


def rebuild(contents: Contents) -> Any:
    values = []
    for item, payload in zip(contents.manifest.items, contents.payloads, strict=True):
        memory = allocate(item)
        view = memory if isinstance(memory, bytearray) else memory.data
        if item.size:
            memoryview(view)[:] = payload.view(0, item.size, Scratch())
            payload.release(item.size)
        values.append(restore_item(item, memory))
    return unflatten(contents.manifest.skeleton, values)


scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.complex_numbers()
    | st.text(st.characters(exclude_categories=()), max_size=8)
    | st.binary(max_size=20)
    | st.binary(max_size=20).map(bytearray)
)
arrays = hnp.arrays(
    hnp.scalar_dtypes() | hnp.unicode_string_dtypes() | hnp.byte_string_dtypes(),
    hnp.array_shapes(min_dims=0, max_side=5),
)
keys = st.text(max_size=5) | st.integers() | st.booleans() | st.none() | st.floats(allow_nan=False)
nested = st.recursive(
    scalars | arrays,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(keys | st.tuples(keys, keys), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(st.dictionaries(keys, nested, max_size=5))
def test_any_state_comes_back_as_it_was(state: dict[Any, Any]) -> None:
    assert_same(through(state), state)


@given(hnp.arrays(hnp.scalar_dtypes(), hnp.array_shapes(min_dims=2, max_dims=3, max_side=6)))
def test_views_that_are_not_contiguous_are_saved_row_major(array: Any) -> None:
    views = {"t": array.T, "s": array[::2, ::-1], "f": np.asfortranarray(array)}
    loaded = through(views)
    for name, view in views.items():
        assert_same(loaded[name], np.ascontiguousarray(view))


def test_contiguous_memory_is_not_copied() -> None:
    array = np.arange(12.0).reshape(3, 4)
    buffer = bytearray(100)
    contents = flatten({"a": array, "b": buffer, "t": array.T})
    assert [type(payload) for payload in contents.payloads] == [MemoryPayload, MemoryPayload, LazyPayload]
    array[0, 0] = 42.0
    assert bytes(contents.payloads[0].view(0, 8, Scratch())) == np.float64(42.0).tobytes()
    assert array_bytes(array).obj is not None
    buffer[3] = 7
    assert contents.payloads[1].view(3, 1, Scratch())[0] == 7


def test_lazy_payload_is_made_once_and_dropped_when_used_up() -> None:
    made = []

    def make() -> memoryview:
        made.append(1)
        return memoryview(bytes(range(10)))

    payload = LazyPayload(10, make)
    assert bytes(payload.view(2, 3, Scratch())) == b"\2\3\4"
    payload.view(0, 10, Scratch())
    assert len(made) == 1
    payload.release(7)
    payload.view(0, 1, Scratch())
    assert len(made) == 1
    payload.release(3)
    payload.view(0, 1, Scratch())
    assert len(made) == 2


def test_names_are_paths_and_unique() -> None:
    array = np.zeros(1)
    contents = flatten({"a.b": array, "a": {"b": array, "c": [array, {"d": array}]}, 1: array, "1": array})
    assert [item.name for item in contents.manifest.items] == ["a.b", "a.b~2", "a.c.0", "a.c.1.d", "1", "1~2"]


def test_ordered_dicts_and_bit_patterns() -> None:
    state = OrderedDict(b=1, a=2)
    assert list(through({"o": state})["o"].items()) == [("b", 1), ("a", 2)]
    bits = np.arange(6, dtype=np.dtype("<u2", metadata={"nvmeof.dtype": "BF16"})).reshape(2, 3)
    contents = flatten({"w": bits})
    assert contents.manifest.items[0].dtype == "BF16"
    loaded = rebuild(contents)["w"]
    assert loaded.dtype == np.uint16
    assert flatten({"w": loaded}).manifest.items[0].dtype == "BF16"
    assert flatten({"w": np.zeros(3, dtype=">f4")}).manifest.items[0].dtype == "numpy:>f4"


class Point(NamedTuple):
    x: int


def cyclic() -> dict[str, Any]:
    state: dict[str, Any] = {}
    state["self"] = state
    return state


@pytest.mark.parametrize(
    ("state", "text"),
    [
        ({"a": {"b": object()}}, r"state\['a'\]\['b'\] is a object"),
        ({"a": [{1, 2}]}, r"state\['a'\]\['0'\] is a set"),
        ({"a": Point(1)}, "is a .*Point"),
        ({b"x": 1}, "key of type bytes"),
        ({"a": np.array([object()])}, "dtype object"),
        ({"a": np.zeros(2, dtype=[("x", "f4")])}, "cannot be stored"),
        ({"a": np.zeros(2, dtype=np.longdouble)}, "cannot be stored"),
        ({"a": np.ma.masked_array([1], mask=[True])}, "MaskedArray"),
        ({"a": memoryview(bytes(10))[::2]}, "not contiguous"),
        (cyclic(), f"more than {DEPTH_MAX} levels"),
        ([1, 2], "mapping"),
    ],
)
def test_what_cannot_be_stored_is_refused_with_its_path(state: Any, text: str) -> None:
    with pytest.raises(UsageError, match=text):
        flatten(state)


@pytest.mark.parametrize(
    "skeleton",
    [
        1,
        [],
        {"l": []},
        {"d": [["a", {"i": 1}]]},
        {"d": [["a", {"i": True}]]},
        {"d": [["a"]]},
        {"d": [[{"l": []}, 1]]},
        {"d": [["a", {"f": "x"}]]},
        {"d": [["a", {"c": [1]}]]},
        {"d": [["a", {"c": ["x", "y"]}]]},
        {"d": [["a", {"q": 1}]]},
        {"d": [["a", {"l": [], "t": []}]]},
        {"d": [["a", 1.5]]},
        {"d": 5},
    ],
)
def test_broken_skeletons_are_refused(skeleton: object) -> None:
    with pytest.raises(CorruptCheckpointError):
        unflatten(skeleton, [0])


def test_deep_skeletons_are_refused_not_a_crash() -> None:
    skeleton: object = 1
    for _ in range(500):
        skeleton = {"l": [skeleton]}
    with pytest.raises(CorruptCheckpointError):
        unflatten({"d": [["a", skeleton]]}, [])


def test_special_floats_keep_their_meaning() -> None:
    loaded = through({"n": math.nan, "i": math.inf, "m": -math.inf, "z": -0.0, "c": complex(0.0, -0.0)})
    assert math.isnan(loaded["n"])
    assert (loaded["i"], loaded["m"]) == (math.inf, -math.inf)
    assert math.copysign(1, loaded["z"]) == -1
    assert math.copysign(1, loaded["c"].imag) == -1


def test_shapes_that_do_not_fit_the_bytes_are_refused() -> None:
    item = flatten({"a": np.zeros((2, 3), dtype=np.float32)}).manifest.items[0]
    wrong = type(item)(item.name, item.kind, item.size, dtype=item.dtype, shape=(2, 4), origin=item.origin)
    with pytest.raises(CorruptCheckpointError, match="24 bytes for F32 of shape"):
        restore_item(wrong, allocate(wrong))


def test_torch_is_not_imported_by_the_store() -> None:
    import subprocess

    code = "import sys, nvmeof.checkpoint as c; c.store; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_torch_tensors_round_trip() -> None:
    torch = pytest.importorskip("torch")
    generator = torch.Generator().manual_seed(3)
    state = {
        "bf16": torch.randn(5, 7, generator=generator).to(torch.bfloat16),
        "f8": torch.randn(9, generator=generator).to(torch.float8_e4m3fn),
        "f32": torch.randn(3, generator=generator),
        "i64": torch.arange(4),
        "bool": torch.tensor([True, False]),
        "scalar": torch.tensor(3.5, dtype=torch.float64),
        "empty": torch.zeros(0, 3, dtype=torch.bfloat16),
        "complex": torch.randn(3, dtype=torch.complex64, generator=generator),
        "view": torch.randn(4, 6, generator=generator).t()[::2],
        "conj": torch.randn(3, dtype=torch.complex64, generator=generator).conj(),
        "parameter": torch.nn.Parameter(torch.randn(4, generator=generator)),
        "nested": [{"step": torch.tensor(7)}],
        "shape": torch.Size([1, 2]),
    }
    loaded = through(state)
    wanted = dict(state, parameter=state["parameter"].detach(), shape=(1, 2), conj=state["conj"].resolve_conj())
    assert_same(loaded, wanted)
    source = state["f32"]
    assert flatten({"a": source}).payloads[0].view(0, 12, Scratch()).tobytes() == source.numpy().tobytes()


def test_torch_tensors_that_cannot_be_stored() -> None:
    torch = pytest.importorskip("torch")
    for tensor in (torch.zeros(2, 2).to_sparse(), torch.zeros(2, device="meta")):
        with pytest.raises(UsageError, match=r"state\['a'\]: a tensor of"):
            flatten({"a": tensor})


def test_torch_checkpoints_load_without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    contents = flatten({"w": torch.ones(3, dtype=torch.bfloat16), "f": torch.ones(2)})
    monkeypatch.delitem(sys.modules, "torch")
    loaded = rebuild(contents)
    assert loaded["w"].dtype == np.uint16
    assert loaded["w"].tolist() == [0x3F80] * 3
    assert_same(loaded["f"], np.ones(2, dtype=np.float32))


@pytest.mark.parametrize("value", [np.str_(""), np.bytes_(b""), np.str_("ab"), np.zeros(2, "U0")])
def test_text_without_width_comes_back(value: Any) -> None:
    back = through({"a": value})["a"]
    assert back.tolist() == value.tolist()


def test_integers_that_python_cannot_print_and_metadata_that_is_no_text_are_refused() -> None:
    assert through({"a": 10**4000}) == {"a": 10**4000}
    with pytest.raises(UsageError, match=r"state\['a'\] is an integer of \d+ bits"):
        flatten({"a": 10**5000})
    with pytest.raises(UsageError, match="metadata is text by text"):
        flatten({}, {"epoch": 3})  # type: ignore[dict-item]


@pytest.mark.parametrize("shape", [(1 << 62, 0), (1,) * 70 + (0,)])
def test_shapes_that_numpy_cannot_have_are_corruption(shape: tuple[int, ...]) -> None:
    item = Item("a", "array", 0, dtype="F32", shape=shape, origin="numpy")
    with pytest.raises(CorruptCheckpointError, match="item 'a'"):
        restore_item(item, np.empty(0, dtype=np.uint8))


@pytest.mark.parametrize("node", [{"f": "0x1p99999"}, {"c": [{"f": "0x1p9999"}, 1]}])
def test_numbers_that_overflow_are_corruption(node: object) -> None:
    with pytest.raises(CorruptCheckpointError, match="skeleton"):
        unflatten({"d": [["a", node]]}, [])
