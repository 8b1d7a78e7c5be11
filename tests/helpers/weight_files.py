"""Weight files made by hand: archives, and pickles that call functions."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch


class Code:
    """Pickles into a call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.call


def call(module: str, name: str, *arguments: str) -> bytes:
    """A pickle that calls any function by name, there or not, written by hand."""
    texts = b"".join(f"V{text}\n".encode() for text in arguments)
    return f"c{module}\n{name}\n(".encode() + texts + b"tR."


def payloads(mark: Path) -> list[bytes]:
    """Pickles that would make the file ``mark``: by the shell, by Python, through torch, nested."""
    shell, python = f"touch {mark}", f"__import__('pathlib').Path({str(mark)!r}).touch()"
    innermost = pickle.dumps(Code(Path.touch, mark))
    (mark.parent / "inner.pth").write_bytes(innermost)
    return [
        call("os", "system", shell),
        call("posix", "system", shell),
        call("nt", "system", shell),
        call("subprocess", "getoutput", shell),
        call("builtins", "eval", python),
        call("builtins", "exec", python),
        call("__builtin__", "eval", python),
        call("pty", "spawn", shell),
        call("runpy", "run_path", str(mark.parent / "inner.py")),
        call("torch", "load", str(mark.parent / "inner.pth")),
        call("torch.serialization", "load", str(mark.parent / "inner.pth")),
        call("torch.hub", "load", str(mark.parent)),
        call("torch.jit", "load", str(mark.parent / "inner.pth")),
        call("torch.storage", "_load_from_bytes", "x"),
        call("torch._utils", "_rebuild_tensor_v2", "x"),
        call("numpy", "load", str(mark)),
        call("pathlib", "Path", str(mark)),
        call("importlib", "import_module", "antigravity"),
        call("defeat.config", "instantiate", "x"),
        call("hydra.utils", "instantiate", "x"),
        call("collections", "OrderedDict", "x"),
        call("torch.nn.modules.linear", "Linear", "x"),
        pickle.dumps(Code(getattr, Code(__import__, "os"), "system")),
        pickle.dumps(Code(map, Code(getattr, Code(__import__, "os"), "system"), [shell])),
        pickle.dumps(OrderedDict(state_dict=OrderedDict(w=torch.zeros(1)), x=Code(Path.touch, mark))),
        pickle.dumps({"state_dict": Code(Code, Path.touch)}, protocol=0),
        innermost,
    ]


def saved(content: object, **options: bool) -> bytes:
    torch.save(content, buffer := io.BytesIO(), **options)
    return buffer.getvalue()


def replaced(data: bytes, code: bytes) -> bytes:
    """The archive with another pickle in it."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    return packed(
        {name: code if name.endswith("data.pkl") else body for name, body in entries.items()}.items()
    )


def packed(entries: Any, compression: int = zipfile.ZIP_STORED) -> bytes:
    with zipfile.ZipFile(buffer := io.BytesIO(), "w", compression) as archive:
        for name, body in entries:
            archive.writestr(name, body)
    return buffer.getvalue()
