"""The originals' criteria: goldens of D-FINE, RT-DETRv2 and DEIM, alone and in a training step of the whole model."""

import functools
import re

import numpy as np
import pytest
import torch
import transformers
from conftest import GOLDENS, golden_input, slow_except
from goldens import synthetic
from safetensors.torch import load_file

from hgnetv2_hf.conversion.detectors import DETECTORS, rename_detector
from hgnetv2_hf.training import DetectionCriterion, detection_losses
from hgnetv2_hf.training.detection import criterion as criterion_module


FAMILIES = {"dfine": "loss_dfine_n", "rtdetrv2": "loss_rtdetrv2", "deim": "loss_deim_n"}
CASES = [(family, case) for family in FAMILIES for case in synthetic.CASES]
STEPS = {"dfine": "dfine_n", "rtdetrv2": "rtdetrv2_hgnetv2_l"}  # the detector whose weights are trained


@functools.cache
def golden(family):
    return np.load(GOLDENS / f"{FAMILIES[family]}.npz", allow_pickle=False)


def of_case(family, case):
    """The arrays of one case, without its name."""
    file = golden(family)
    return {name.removeprefix(f"{case}:"): file[name] for name in file.files if name.startswith(f"{case}:")}


def named_losses(values):
    return {name: float(value) for name, value in values.items() if name.startswith("loss_")}


def as_tensors(targets):
    return [{name: torch.from_numpy(value) for name, value in target.items()} for target in targets]


def denoising_meta(values, images):
    nothing = np.zeros(0, "int64")
    return {
        "dn_positive_idx": [
            torch.from_numpy(values.get(f"dn_positive_idx:{index}", nothing)).long() for index in range(images)
        ],
        "dn_num_group": int(values["dn_num_group"]),
        "dn_num_split": values["dn_num_split"].tolist(),
    }


def originals_outputs(family, case):
    """What the original's decoder would hand to its criterion, made of seeded numbers; and the targets."""
    values, (seed, counts) = of_case(family, case), synthetic.CASES[case]
    has_corners, layers = family != "rtdetrv2", 6 if family == "rtdetrv2" else 3
    count = int(values["dn_num_split"][0])
    targets, arrays = synthetic.outputs(seed, counts, layers, count, has_corners)
    arrays = {name: torch.from_numpy(array) for name, array in arrays.items()}

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
    if values["dn_num_group"] >= 0:
        outputs["dn_meta"] = denoising_meta(values, len(counts))
        outputs["dn_outputs" if has_corners else "dn_aux_outputs"] = all_layers(noisy)
        if has_corners:
            outputs["dn_pre_outputs"] = layer(0, noisy)
    return outputs, as_tensors(targets)


@pytest.mark.parametrize(("family", "case"), CASES)
def test_the_criterion_equals_the_originals_on_every_loss(family, case):
    outputs, targets = originals_outputs(family, case)
    losses = {name: float(value) for name, value in DetectionCriterion(family)(outputs, targets).items()}
    expected = named_losses(of_case(family, case))
    assert losses.keys() == expected.keys()
    for name, value in expected.items():
        assert losses[name] == pytest.approx(value, rel=1e-6, abs=1e-9), name


@pytest.mark.parametrize(("family", "case"), CASES)
def test_assignments_and_their_union_are_the_originals(monkeypatch, family, case):
    outputs, targets = originals_outputs(family, case)
    found, values = {}, of_case(family, case)

    def recorded(name, function):
        def call(*args):
            found.setdefault(name, []).append(function(*args))
            return found[name][-1]

        monkeypatch.setattr(criterion_module, name, call)

    recorded("match", criterion_module.match)
    recorded("union", criterion_module.union)
    DetectionCriterion(family)(outputs, targets)
    matched = [of_head for call in found["match"] for of_head in call]
    pairs = {f"match_{head}:{image}": pair for head, each in enumerate(matched) for image, pair in enumerate(each)}
    pairs.update({f"union:{image}": pair for each in found.get("union", ()) for image, pair in enumerate(each)})
    expected = {name for name in values if re.match(r"(match_\d+|union):", name)}
    assert expected == pairs.keys()
    for name in expected:
        np.testing.assert_array_equal(torch.stack(pairs[name]), values[name], err_msg=name)


def training_step(converted_golden, family, **changes):
    """The golden's whole model in float64 with the golden's image, targets and denoising queries."""
    values = of_case(family, "full")
    model = transformers.AutoModelForObjectDetection.from_pretrained(
        converted_golden(STEPS[family]), num_queries=50, num_denoising=10,
        freeze_backbone_batch_norms=family == "rtdetrv2", **changes,
    )  # fmt: skip
    model = model.double().train()
    targets = []
    while f"target_labels:{len(targets)}" in values:
        index = len(targets)
        targets.append(
            {
                "labels": torch.from_numpy(values[f"target_labels:{index}"]).long(),
                "boxes": torch.from_numpy(values[f"target_boxes:{index}"]).double(),
            }
        )
    meta = denoising_meta(values, len(targets))
    denoising = {
        "labels": torch.from_numpy(values["dn_labels"]).long(),
        "boxes_unact": torch.from_numpy(values["dn_boxes_unact"]).double(),
        "attn_mask": torch.from_numpy(values["dn_attn_mask"]).bool(),
        **{name.removeprefix("dn_"): value for name, value in meta.items()},
    }
    return model, golden_input(values, torch.float64), targets, denoising, values


def gradient_norms(model, names, detector, folder):
    """The norm of every parameter's gradient, by the original's name; it holds q, k and v as one.

    Names in memory differ between versions of Transformers, so the gradients are saved in the place of the weights.
    """
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)
    model.save_pretrained(folder)
    gradients = load_file(folder / "model.safetensors")
    norms = {}
    for name in names:
        renamed, _ = rename_detector({name: torch.zeros(3)}, DETECTORS[detector])
        norms[name] = float(sum(gradients[part].square().sum() for part in renamed)) ** 0.5
    return norms


@pytest.mark.parametrize("family", slow_except(STEPS, "dfine"))
def test_a_training_step_of_the_whole_model_equals_the_originals(converted_golden, tmp_path, family):
    model, pixel_values, targets, denoising, values = training_step(converted_golden, family)
    state = {name: value.clone() for name, value in model.state_dict().items() if "running" not in name}
    losses = detection_losses(model, pixel_values, targets, denoising)
    expected = named_losses(values)
    assert losses.keys() == expected.keys()
    for name, value in expected.items():
        assert losses[name].item() == pytest.approx(value, rel=1e-4, abs=1e-8), name
    total = sum(losses.values())
    assert total.item() == pytest.approx(float(values["total"]), rel=1e-4)
    total.backward()
    assert not model.model.decoder._forward_pre_hooks
    for name, value in model.state_dict().items():
        if "running" not in name and "num_batches" not in name:
            assert torch.equal(value, state[name]), name
    norms = gradient_norms(model, values["grad_names"].tolist(), family, tmp_path)
    largest = values["grad_norms"].max()
    for name, norm in zip(values["grad_names"], values["grad_norms"]):
        assert norms[name] == pytest.approx(norm, abs=1e-4 * largest), name
