"""What an original's decoder would hand to its criterion, made of seeded numbers. Needs PyTorch and NumPy only."""

import sys
from pathlib import Path

import numpy as np
import torch


sys.path.append(str(Path(__file__).parents[1]))
from goldens import synthetic  # noqa: E402


def make(seed, counts, layers, denoising, positive=(), has_corners=True, num_classes=80):
    """
    Args:
        seed (`int`)
        counts (`tuple[int, ...]`): objects of each image.
        layers (`int`): of the decoder.
        denoising (`tuple[int, int]`): how many of the queries undo noise, and in how many groups; -1 groups for none.
        positive (`list`): of each image, which of them stand for objects.
        has_corners (`bool`): D-FINE's distributions.
        num_classes (`int`)

    Returns:
        `tuple[dict, list[dict]]`: outputs and targets, float64.
    """
    count, groups = denoising
    targets, arrays = synthetic.outputs(seed, counts, layers, count, has_corners, num_classes)
    arrays = {name: torch.from_numpy(array) for name, array in arrays.items()}
    queries = arrays["class"].shape[2] - count

    def layer(index, queries):
        result = {"pred_logits": arrays["class"][index][:, queries], "pred_boxes": arrays["box"][index][:, queries]}
        if has_corners and index:
            result["pred_corners"] = arrays["corners"][index - 1][:, queries]
            result["ref_points"] = arrays["ref"][:, queries]
        return result

    def all_layers(queries):
        found = [layer(index, queries) for index in range(1, layers + 1)]
        if has_corners:
            teacher = {"teacher_corners": found[-1]["pred_corners"], "teacher_logits": found[-1]["pred_logits"]}
            found = [{**each, **teacher} for each in found]
        return found

    ordinary, noisy = slice(count, None), slice(None, count)
    outputs = {**layer(layers, ordinary), "aux_outputs": all_layers(ordinary)[:-1]}
    outputs["enc_aux_outputs"] = [{"pred_logits": arrays["enc_class"], "pred_boxes": arrays["enc_box"]}]
    outputs["enc_meta"] = {"class_agnostic": False}
    if has_corners:
        outputs["up"], outputs["reg_scale"] = torch.tensor([0.5]), torch.tensor([4.0])
        outputs["pre_outputs"] = layer(0, ordinary)
    if groups >= 0:
        nothing = torch.zeros(0, dtype=torch.int64)
        outputs["dn_meta"] = {
            "dn_positive_idx": [
                torch.as_tensor(np.asarray(each)).long() if len(each) else nothing for each in positive
            ],
            "dn_num_group": groups,
            "dn_num_split": [count, queries],
        }
        outputs["dn_outputs" if has_corners else "dn_aux_outputs"] = all_layers(noisy)
        if has_corners:
            outputs["dn_pre_outputs"] = layer(0, noisy)
    return outputs, [{name: torch.from_numpy(value) for name, value in target.items()} for target in targets]
