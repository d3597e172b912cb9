"""Runs in two processes (``torchrun --nproc_per_node 2``), whose weights go to the folder given."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from tests.dialogkit.diversity.toys import negative_training_run, toy_run


def main(folder: Path) -> None:
    for count in (20, 17):
        weights, result = toy_run(count)
        rank = torch.distributed.get_rank()
        assert result.num_processes == 2
        save_file(weights, folder / f"dress-{count}-{rank}.safetensors")
    weights, _ = negative_training_run(17)
    save_file(weights, folder / f"negative-{rank}.safetensors")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
