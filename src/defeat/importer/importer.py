"""From a file of another framework to a safetensors file that says what it is."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save

from defeat import __version__
from defeat.detectors.weights import describe
from defeat.errors import ConfigError
from defeat.importer.convert import convert
from defeat.importer.imported import Imported, Row
from defeat.importer.source import Source, read_source
from defeat.io.atomic_write import replacing
from defeat.io.text import few

log = logging.getLogger(__name__)

LICENSES: Mapping[str, str] = {
    "mmdetection": "apache-2.0",
    "detectron2": "cc-by-sa-3.0",
    "torchvision": "bsd-3-clause",
}
"""The licence under which each framework publishes the weights of its model zoo, as the Hub calls it."""


def import_detector(config: Mapping[str, Any]) -> Imported:
    """Import as configured (conf/import.yaml), and write the file.

    Raises:
        DefeatError: anything in the configuration or the file that the user can correct.
    """
    output = Path(config["output"]).expanduser()
    if output.exists():
        raise ConfigError(f"output={config['output']} exists already: choose another name, or delete it")
    source = read_source(config["source"], config["kind"], ema=config["ema"], download=config["download"])
    imported = convert(source, classes=config["classes"], style=config["style"])
    terms, told = _license(source, config["license"])
    imported = imported._replace(rows=[*_read_rows(source), *imported.rows, told])
    write(imported, source, output, terms)
    return imported


def write(imported: Imported, source: Source, output: Path, terms: str) -> None:
    """Write tensors, and in the metadata: settings, classes, source, its digest and its licence.

    Raises:
        StorageError: the file cannot be written.
    """
    metadata = {
        **describe(imported.classes, imported.model),
        "source": source.kind,
        "source_file": source.path.name,
        "source_sha256": source.digest or "",
        "license": terms,
        "defeat": __version__,
    }
    tensors = {name: value.detach().float().contiguous().clone() for name, value in imported.tensors.items()}
    with replacing(output) as part:
        part.write_bytes(save(tensors, metadata))  # save_file would hide it from other users


def _read_rows(source: Source) -> list[Row]:
    rows = [Row("read", len(source.tensors), f"{source.path.name} of {source.kind}")]
    if source.prefix:
        rows.append(Row("dropped", None, f"{source.prefix} before all names"))
    if source.keys:
        rows.append(Row("dropped", None, f"entries beside the weights: {few(source.keys, 8)}"))
    rows += [Row("dropped", count, branch) for branch, count in source.dropped.items()]
    return rows


def _license(source: Source, given: str | None) -> tuple[str, Row]:
    """The licence of the weights, and the line that says whose it is."""
    if given is not None:
        return given, Row("set", None, f"licence {given}")
    usual = LICENSES[source.kind]
    return usual, Row(
        "set", None, f"licence {usual}, if it is of the model zoo of {source.kind}; license= another"
    )
