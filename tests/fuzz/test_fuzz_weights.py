"""Weight files with anything wrong: tensors for a detector, or one line, and never code that runs."""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import strategies as st
from safetensors.torch import save
from torch import nn

from defeat.detectors import faster_rcnn, load_detector_weights, read_weights
from defeat.detectors.weights import describe
from defeat.errors import WeightsError
from tests.helpers.mutations import NUMBERS, STRINGS, ByteChange, byte_changes, change_bytes
from tests.helpers.narrow import NARROW
from tests.helpers.trials import Tally, refused, sizes, try_inputs
from tests.helpers.weight_files import packed, payloads, replaced, saved

SETTINGS = {"backbone": NARROW, "fpn_channels": 8, "box_head_channels": 8, "returned_layers": [1, 2]}
CLASSES = ["dog", "cat"]


@pytest.fixture(scope="module")
def detector() -> nn.Module:
    return faster_rcnn(len(CLASSES) + 1, **SETTINGS)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def files(detector: nn.Module) -> dict[str, bytes]:
    """Sound files, all of them small: with few tensors, for their bytes to matter, and one with all."""
    state = detector.state_dict()
    few = {key: state[key] for key in list(state)[:3]}
    own = {"classes": CLASSES, "config": {"student": {"model": SETTINGS}}}
    student = {f"student.{key}": value for key, value in state.items()}
    return {
        "few.pth": saved(few),
        "legacy.pth": saved(few, _use_new_zipfile_serialization=False),
        "wrapped.pth": saved({"model": few, "epoch": 3}),
        "whole.ckpt": saved({"state_dict": student, "defeat": own}),
        "few.safetensors": save(few, describe(CLASSES, {"_target_": "defeat.detectors.faster_rcnn"})),
        ARRAYS: pickle.dumps({"model": {key: value.numpy() for key, value in few.items()}}, protocol=2),
    }


class Case(NamedTuple):
    name: str
    other: str
    text: list[ByteChange]
    inside: list[tuple[str, int, list[ByteChange]]]
    header: list[tuple[int, str, Any]]
    content: list[tuple[int, str, int]]
    payload: int | None


ARRAYS = "arrays.pkl"
NAMES = ("few.pth", "legacy.pth", "wrapped.pth", "whole.ckpt", "few.safetensors")
ODD_TENSORS: list[Any] = [
    torch.zeros(0), torch.zeros(1, 2, 3), torch.full((2, 2), torch.nan), torch.full((3,), torch.inf),
    torch.zeros(3, dtype=torch.complex64), torch.zeros(1).expand(2**20, 2**20), torch.zeros(3).to_sparse(),
    torch.zeros(3, dtype=torch.int8), torch.zeros(2, 2, dtype=torch.float8_e4m3fn),
    torch.zeros(3, dtype=torch.bool),
    torch.ones(3, dtype=torch.float64) * 1e300, None, 5, "text", [], {}, [torch.zeros(1)],
]  # fmt: skip
ODD_OWN: list[Any] = [
    None, {}, 5, [], {"classes": CLASSES}, {"config": {}}, {"classes": 5, "config": {}},
    {"classes": [1, 2], "config": {}}, {"classes": "ab", "config": {}}, {"classes": CLASSES, "config": 5},
    {"classes": CLASSES, "config": {"student": "x"}},
    {"classes": CLASSES, "config": {"student": {"model": 5}}},
    {"classes": [], "config": {}}, {"classes": ["x"] * 3, "config": {}},
    {"classes": CLASSES, "config": {"student": {"_target_": "os.system"}}},
    {"classes": CLASSES, "config": {"a": "${oc.env:HOME}"}}, {"classes": CLASSES, "config": {(1, 2): 3}},
]  # fmt: skip

inside = st.lists(
    st.tuples(
        st.sampled_from(["bytes", "drop", "rename", "swap", "double", "deflate"]),
        st.integers(0, 30),
        byte_changes,
    ),
    min_size=1,
    max_size=2,
)
header = st.lists(
    st.tuples(
        st.integers(0, 10),
        st.sampled_from(["dtype", "shape", "data_offsets", "new"]),
        st.sampled_from(["F4", "F8_E8M0", "BOOL", "X", "", [2**62], [0, 2**62], [-1], [1, 1], [0, 2**60]])
        | st.sampled_from([value for value in NUMBERS if isinstance(value, int)]),
    ),
    min_size=1,
    max_size=2,
)
content = st.lists(
    st.tuples(
        st.integers(0, 200),
        st.sampled_from(["tensor", "tensor", "drop", "rename", "key", "own"]),
        st.integers(0, 40),
    ),
    min_size=1,
    max_size=3,
)
nothing, names, pickles = st.just([]), st.sampled_from(NAMES), st.sampled_from(NAMES[:-1])
zips = st.sampled_from(["few.pth", "wrapped.pth", "whole.ckpt"])
cases = (
    st.builds(Case, names, names, byte_changes, nothing, nothing, nothing, st.none())
    | st.builds(Case, st.just(ARRAYS), names, byte_changes, nothing, nothing, nothing, st.none())
    | st.builds(Case, zips, names, nothing, inside, nothing, nothing, st.none())
    | st.builds(Case, st.just(NAMES[-1]), names, nothing, nothing, header, nothing, st.none())
    | st.builds(Case, st.just("whole.ckpt") | pickles, names, nothing, nothing, nothing, content, st.none())
    | st.builds(Case, pickles, names, nothing | byte_changes, nothing, nothing, nothing, st.integers(0, 100))
)


@pytest.mark.filterwarnings("ignore")  # torch's remarks on old storages
@sizes(quick=80, full=900)
def test_changed_weight_files(
    examples: int, files: dict[str, bytes], detector: nn.Module, tmp_path: Path, tally: Tally
) -> None:
    mark = tmp_path / "mark"
    codes = payloads(mark)

    def check(case: Case) -> str:
        path = tmp_path / case.name
        path.write_bytes(change(case, files, codes))
        try:
            file = read_weights(path)
        except WeightsError as error:
            return refused(error, str(path))
        finally:
            assert not mark.exists()
        for key, value in file.tensors.items():
            assert isinstance(key, str)
            assert value.layout is torch.strided
            assert value.numel() * value.element_size() <= path.stat().st_size
            if value.is_floating_point() and not key.endswith("running_var"):
                assert value.double().isfinite().all()
        if file.classes is not None:
            assert all(isinstance(name, str) for name in file.classes)
            json.dumps(file.config)
        try:
            load_detector_weights(detector, path, classes=CLASSES)
        except WeightsError as error:
            refused(error, str(path))
            return "read, of another detector"
        assert all(value.isfinite().all() for value in detector.state_dict().values())
        return "loaded"

    try_inputs("weight files", cases, check, examples, tally)


def change(case: Case, files: dict[str, bytes], codes: list[bytes]) -> bytes:
    data = files[case.name]
    if case.payload is not None:
        code = codes[case.payload % len(codes)]
        data = replaced(data, code) if zipfile.is_zipfile(io.BytesIO(data)) and case.payload % 2 else code
    elif case.name.endswith(".safetensors"):
        for which, field, value in case.header:
            data = change_header(data, which, field, value)
    else:
        if case.content:
            data = change_content(data, case.content)
        if case.inside and zipfile.is_zipfile(io.BytesIO(data)):
            data = change_zip(data, case.inside)
    return change_bytes(data, case.text, files[case.other])


def change_zip(data: bytes, drawn: list[tuple[str, int, list[ByteChange]]]) -> bytes:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = [(name, archive.read(name)) for name in archive.namelist()]
    compression = zipfile.ZIP_STORED
    for kind, which, text in drawn:
        if not entries:
            break
        at, to = which % len(entries), (which * 7 + 1) % len(entries)
        name, body = entries[at]
        match kind:
            case "bytes":
                entries[at] = name, change_bytes(body, text)
            case "drop":
                del entries[at]
            case "rename":
                entries[at] = f"{name}x", body
            case "swap":
                entries[at], entries[to] = (name, entries[to][1]), (entries[to][0], body)
            case "double":
                entries.append((f"../{name}", body))
            case "deflate":
                compression = zipfile.ZIP_DEFLATED
    return packed(entries, compression)


def change_header(data: bytes, which: int, field: str, value: Any) -> bytes:
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    key = sorted(header)[which % len(header)]
    if field == "new":
        header[str(value)] = {"dtype": "F32", "shape": value, "data_offsets": [0, 4]}
    else:
        header[key][field] = value
    written = json.dumps(header).encode()
    return struct.pack("<Q", len(written)) + written + data[8 + length :]


def change_content(data: bytes, drawn: list[tuple[int, str, int]]) -> bytes:
    """The file's own content with other tensors, keys or records of the run, saved anew."""
    content = torch.load(io.BytesIO(data), weights_only=True)
    state = next((content[key] for key in ("state_dict", "model") if key in content), content)
    for which, kind, value in drawn:
        if not state:
            break
        key = list(state)[which % len(state)]
        match kind:
            case "tensor":
                state[key] = ODD_TENSORS[value % len(ODD_TENSORS)]
            case "drop":
                del state[key]
            case "rename":
                state[STRINGS[value % len(STRINGS)]] = state.pop(key)
            case "key":
                state[value] = state.pop(key)
            case "own":
                content["defeat"] = ODD_OWN[value % len(ODD_OWN)]
    return saved(content)
