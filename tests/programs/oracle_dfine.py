"""The real D-FINE (``d-fine-project`` 1.0.0 on PyPI), run in an interpreter of its own.

python oracle_dfine.py TASK REQUEST.npz ANSWER.npz

As installed, its criterion imports ``...core``, beyond its own top-level package. So the files of ``zoo/dfine`` that
are asked here are laid into a package ``dfine``, unchanged. What they import from elsewhere is given here: a decorator
that registers (``core``), the number of processes (``misc``), and the area of boxes (torchvision, whose CPU build
cannot be imported beside that of torch). Two casts to float32, in ``translate_gt`` and
``unimodal_distribution_focal_loss``, are casts to float64, as for the goldens.
"""

import importlib.metadata
import shutil
import sys
import tempfile
import types
from pathlib import Path

import numpy as np
import torch


sys.path.insert(0, str(Path(__file__).parent))
import original_outputs  # noqa: E402


FILES = ("box_ops", "denoising", "dfine_criterion", "dfine_utils", "matcher", "utils")
GIVEN = {
    "core/__init__.py": "def register(*args, **kwargs):\n    return lambda each: each\n",
    "misc/__init__.py": "",
    "misc/dist_utils.py": "get_world_size, is_dist_available_and_initialized = (lambda: 1), (lambda: False)\n",
    "zoo/__init__.py": "",
    "zoo/dfine/__init__.py": "",
    "__init__.py": "",
}


def import_original(folder):
    installed = {str(file): file.locate() for file in importlib.metadata.files("d-fine-project")}
    for name, text in GIVEN.items():
        path = folder / "dfine" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    for name in FILES:
        shutil.copyfile(installed[f"zoo/dfine/{name}.py"], folder / "dfine" / "zoo" / "dfine" / f"{name}.py")
    boxes = types.ModuleType("torchvision.ops.boxes")
    boxes.box_area = lambda each: (each[:, 2] - each[:, 0]) * (each[:, 3] - each[:, 1])
    for name in ("torchvision", "torchvision.ops"):
        sys.modules[name] = types.ModuleType(name)
    sys.modules["torchvision.ops.boxes"] = boxes
    sys.path.insert(0, str(folder))
    from dfine.zoo.dfine import denoising, dfine_criterion, matcher

    return denoising, dfine_criterion, matcher


def criterion(request, denoising, dfine_criterion, matcher):
    counts, num_classes = request["counts"].tolist(), int(request["num_classes"])
    most = max(counts)
    groups = 10 // most or 1 if most else 0
    positive = [
        np.concatenate([np.arange(count) + 2 * most * group for group in range(groups)]) if count else np.zeros(0, int)
        for count in counts
    ]
    outputs, targets = original_outputs.make(
        int(request["seed"]), counts, int(request["layers"]), (2 * most * groups, groups), positive, True, num_classes
    )
    torch.Tensor.float = torch.Tensor.double  # the two casts
    original = dfine_criterion.DFINECriterion(
        matcher.HungarianMatcher(
            {"cost_class": 2, "cost_bbox": 5, "cost_giou": 2}, use_focal_loss=True, alpha=0.25, gamma=2.0
        ),
        {"loss_vfl": 1, "loss_bbox": 5, "loss_giou": 2, "loss_fgl": 0.15, "loss_ddf": 1.5},
        ["vfl", "boxes", "local"],
        alpha=0.75,
        gamma=2.0,
        num_classes=num_classes,
        reg_max=32,
    )
    losses = {name: value.detach().numpy() for name, value in original(outputs, targets).items()}
    return {**losses, "groups": groups, **{f"positive:{index}": each for index, each in enumerate(positive)}}


def denoising(request, denoising, dfine_criterion, matcher):
    random = np.random.RandomState(int(request["seed"]))
    targets = [
        {
            "labels": torch.from_numpy(random.randint(0, 80, count)),
            "boxes": torch.from_numpy(random.uniform(0.2, 0.5, (count, 4)).astype("float32")),
        }
        for count in request["counts"].tolist()
    ]
    labels, boxes, mask, meta = denoising.get_contrastive_denoising_training_group(
        targets, 80, int(request["num_queries"]), lambda each: each, int(request["num_denoising"]), 0.0, 1e-9
    )
    answer = {
        "labels": labels.numpy(), "boxes_unact": boxes.numpy(), "attn_mask": mask.numpy(),
        "num_group": meta["dn_num_group"], "num_split": np.array(meta["dn_num_split"]),
    }  # fmt: skip
    for index, target in enumerate(targets):
        answer[f"positive_idx:{index}"] = meta["dn_positive_idx"][index].numpy()
        answer.update({f"{name}:{index}": value.numpy() for name, value in target.items()})
    return answer


if __name__ == "__main__":
    task, request_path, answer_path = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder, np.load(request_path) as file:
        original = import_original(Path(folder))
        np.savez(answer_path, **{"criterion": criterion, "denoising": denoising}[task](dict(file), *original))
