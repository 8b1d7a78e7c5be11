"""Two processes together must give what one gives."""

import json
from pathlib import Path

import torch
import torch.distributed as dist

from defeat.evaluation import DetectionMetrics
from tests.helpers.evaluation_cases import CLASSES, evaluate, random_case
from tests.helpers.ranks import start_two

SHARES = {
    "even": ([0, 2, 4, 6, 8, 10], [1, 3, 5, 7, 9, 11]),
    "uneven": ([11, 0, 5], [1, 2, 3, 4, 6, 7, 8, 9, 10]),
    "padded as DistributedSampler does": ([0, 2, 4, 6, 8, 10, 0], [1, 3, 5, 7, 9, 11, 1]),
    "all on one rank": (list(range(12)), []),
    "none at all on rank 0": ([], list(range(12))),
}


def _rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    case, metrics, results = random_case(11), DetectionMetrics(CLASSES), {}
    for name, shares in SHARES.items():
        for index in shares[rank]:
            metrics.update([case.predictions[index]], [case.targets[index]])
        results[name] = metrics.compute().to_json()
        results[f"{name}, again"] = metrics.compute().to_json()
        metrics.reset()
    Path(folder, f"{rank}.json").write_text(json.dumps(results))
    dist.destroy_process_group()


def test_figures_over_two_ranks_equal_those_of_one_process(tmp_path):
    start_two(_rank, str(tmp_path))
    expected = evaluate(random_case(11)).to_json()
    for rank in range(2):
        results = json.loads((tmp_path / f"{rank}.json").read_text())
        assert len(results) == 2 * len(SHARES)
        for name, result in results.items():
            assert result == expected, f"rank {rank}, {name}"
