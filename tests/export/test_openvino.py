"""OpenVINO runs an exported graph."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from defeat.detectors.inference import detect
from defeat.export.graph_detector import GraphDetector, load_onnx
from defeat.export.onnx_file import write_onnx
from defeat.export.student import read_student


@pytest.mark.slow
def test_openvino_finds_what_the_student_finds(teacher: Path, tmp_path: Path):
    openvino = pytest.importorskip("openvino")
    student = read_student(teacher)
    path = tmp_path / "student.onnx"
    write_onnx(student, path)
    # as docs/deploy.md has it
    openvino.save_model(openvino.convert_model(path), tmp_path / "student.xml", compress_to_fp16=False)
    compiled = openvino.compile_model(tmp_path / "student.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def run(images: torch.Tensor, sizes: torch.Tensor) -> list[torch.Tensor]:
        outputs = compiled({"images": images.numpy(), "sizes": sizes.numpy()})
        return [torch.from_numpy(outputs[name]) for name in ("boxes", "scores", "labels", "count")]

    graph = GraphDetector(run, load_onnx(path).described)
    sizes = [(48, 90), (120, 60), (20, 24)]
    images = [torch.randint(0, 256, (3, *size), dtype=torch.uint8) for size in sizes]
    with torch.inference_mode():
        for batch in ([images[0]], images):
            for found, expected in zip(detect(graph, batch), detect(student.detector, batch), strict=True):
                assert len(expected["labels"]) > 0
                assert found["labels"].equal(expected["labels"])
                torch.testing.assert_close(found["boxes"], expected["boxes"], rtol=0, atol=0.05)
                torch.testing.assert_close(found["scores"], expected["scores"], rtol=0, atol=1e-4)
