"""The losses of one step of a small D-FINE on the same global batch, with any number of processes.

python -m torch.distributed.run --nproc-per-node N detection_losses_distributed.py OUT.json
"""

import json
import sys

import torch
import torch.distributed

from hgnetv2_hf.training import detection_losses
from hgnetv2_hf.training.detection.architectures import build_detector
from hgnetv2_hf.training.detection.outputs import draw_denoising


torch.distributed.init_process_group("gloo")
rank, processes = torch.distributed.get_rank(), torch.distributed.get_world_size()
torch.manual_seed(0)
model = (
    build_detector("dfine-n", num_labels=4, num_queries=40, num_denoising=10, anchor_image_size=None).double().train()
)
for module in model.modules():
    if isinstance(module, torch.nn.BatchNorm2d):
        module.eval()
images = torch.rand(4, 3, 128, 128).double()
targets = [
    {"labels": torch.randint(0, 4, (count,)), "boxes": (torch.rand(count, 4) * 0.3 + 0.2).double()}
    for count in (3, 0, 1, 5)
]
denoising = draw_denoising(model.config, targets)
mine = slice(rank * 4 // processes, (rank + 1) * 4 // processes)
denoising = {
    name: value[mine] if name in ("labels", "boxes_unact", "positive_idx") else value
    for name, value in denoising.items()
}
wrapped = torch.nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)
losses = detection_losses(model, images[mine], targets[mine], denoising, call=wrapped)
total = sum(losses.values())
total.backward()
losses = {
    **losses,
    "total": total,
    "gradient": sum(p.grad.norm() ** 2 for p in model.parameters() if p.grad is not None) ** 0.5,
}
means = {}
for name, value in losses.items():
    value = value.detach().reshape(())
    torch.distributed.all_reduce(value)
    means[name] = float(value) / processes
if rank == 0:
    with open(sys.argv[1], "w") as file:
        json.dump(means, file)
torch.distributed.destroy_process_group()
