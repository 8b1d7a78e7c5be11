"""What W&B has written offline, read back: a log in LevelDB's format of the messages that it would send."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HEADER, BLOCK, FRAME = 7, 32768, 7
LAST_PARTS = (1, 4)  # the whole message, or the last part of one


def messages(file: Path) -> Iterator[Any]:
    """Every message of a .wandb file, as its generated class has it."""
    from wandb.proto import wandb_internal_pb2

    content, at, message = file.read_bytes(), HEADER, b""
    while at + FRAME <= len(content):
        if BLOCK - at % BLOCK < FRAME:  # the rest of a block that no frame fits into
            at += BLOCK - at % BLOCK
            continue
        length, kind = struct.unpack_from("<HB", content, at + 4)
        message += content[at + FRAME : at + FRAME + length]
        at += FRAME + length
        if kind in LAST_PARTS:
            yield wandb_internal_pb2.Record.FromString(message)
            message = b""


def history(file: Path) -> list[dict[str, Any]]:
    """The rows that were logged."""
    return [
        {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for record in messages(file)
        if record.WhichOneof("record_type") == "history"
    ]


def config(file: Path) -> dict[str, Any]:
    """The hyper-parameters."""
    return {
        item.key or "/".join(item.nested_key): json.loads(item.value_json)
        for record in messages(file)
        if record.WhichOneof("record_type") == "config"
        for item in record.config.update
    }
