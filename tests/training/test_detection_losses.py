"""The originals' criteria: goldens of D-FINE, RT-DETRv2 and DEIM, alone and in a training step of the whole model."""

import functools
import re

import numpy as np
import pytest
import torch
import transformers
from conftest import GOLDENS, golden_input, slow_except
from goldens import synthetic
from programs import original_outputs
from safetensors.torch import load_file

from hgnetv2_hf.conversion.detectors import DETECTORS, rename_detector
from hgnetv2_hf.errors import TrainingError
from hgnetv2_hf.training import DetectionCriterion, detection_losses
from hgnetv2_hf.training.detection import criterion as criterion_module
from hgnetv2_hf.training.detection.architectures import build_detector
from hgnetv2_hf.training.detection.denoising import make_denoising


FAMILIES = {"dfine": "loss_dfine_n", "rtdetrv2": "loss_rtdetrv2", "deim": "loss_deim_n"}
CASES = [(family, case) for family in FAMILIES for case in synthetic.CASES]
STEPS = {
    "dfine": "dfine_n",
    "rtdetrv2": "rtdetrv2_hgnetv2_l",
    "deim": "deim_dfine_n",
}  # the detector whose weights are trained


@functools.cache
def golden(family):
    return np.load(GOLDENS / f"{FAMILIES[family]}.npz", allow_pickle=False)


def of_case(family, case):
    """The arrays of one case, without its name."""
    file = golden(family)
    return {name.removeprefix(f"{case}:"): file[name] for name in file.files if name.startswith(f"{case}:")}


def named_losses(values):
    return {name: float(value) for name, value in values.items() if name.startswith("loss_")}


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
    """The outputs and targets of a golden's case."""
    values, (seed, counts) = of_case(family, case), synthetic.CASES[case]
    denoising = int(values["dn_num_split"][0]), int(values["dn_num_group"])
    positive = [values.get(f"dn_positive_idx:{index}", ()) for index in range(len(counts))]
    is_rtdetr = family == "rtdetrv2"
    return original_outputs.make(seed, counts, 6 if is_rtdetr else 3, denoising, positive, not is_rtdetr)


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


def test_nothing_stays_on_the_model_when_a_step_fails(monkeypatch):
    model = build_detector("rtdetrv2-l", num_labels=2, num_queries=20, anchor_image_size=None).train()
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]
    targets = [{"labels": torch.tensor([1]), "boxes": torch.full((1, 4), 0.5)}] * 2
    with pytest.raises(ValueError, match="5 channels"):
        detection_losses(model, torch.rand(2, 5, 64, 64), targets)
    with pytest.raises(TrainingError, match="has the label 2, but there are 2 classes"):
        detection_losses(model, torch.rand(2, 3, 64, 64), [{**targets[0], "labels": torch.tensor([2])}] * 2)
    assert hooks == [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]
    with pytest.raises(TrainingError, match="call model.train"):
        detection_losses(model.eval(), torch.rand(2, 3, 64, 64), targets)


LIVE = {  # seed, objects of each image, layers, classes
    "two images": (101, (4, 2), 3, 80),
    "four images, some empty": (102, (0, 7, 0, 1), 4, 80),
    "many objects": (103, (30, 12), 3, 80),
    "two classes": (104, (3, 3, 3), 6, 2),
    "no objects": (105, (0, 0, 0), 3, 80),
    "one image": (106, (1,), 2, 11),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", LIVE)
def test_the_criterion_equals_the_live_original(dfine, case):
    seed, counts, layers, num_classes = LIVE[case]
    answer = dfine("criterion", seed=seed, counts=np.array(counts), layers=layers, num_classes=num_classes)
    most, groups = max(counts), int(answer.pop("groups"))
    positive = [answer.pop(f"positive:{index}") for index in range(len(counts))]
    outputs, targets = original_outputs.make(
        seed, counts, layers, (2 * most * groups, groups), positive, num_classes=num_classes
    )
    losses = DetectionCriterion("dfine", num_classes)(outputs, targets)
    assert losses.keys() == answer.keys()
    for name, value in answer.items():
        assert losses[name].item() == pytest.approx(float(value), rel=1e-6, abs=1e-9), name


@pytest.mark.slow
def test_denoising_queries_without_noise_are_the_live_originals(dfine):
    counts = (3, 0, 1)
    answer = dfine("denoising", seed=7, counts=np.array(counts), num_queries=20, num_denoising=10)
    targets = [
        {"labels": torch.from_numpy(answer[f"labels:{i}"]), "boxes": torch.from_numpy(answer[f"boxes:{i}"])}
        for i in range(3)
    ]
    ours = make_denoising(targets, 80, 20, 10, label_noise_ratio=0.0, box_noise_scale=1e-9)
    assert ours["num_group"] == answer["num_group"] and ours["num_split"] == answer["num_split"].tolist()
    np.testing.assert_array_equal(ours["labels"], answer["labels"])
    np.testing.assert_allclose(ours["boxes_unact"], answer["boxes_unact"], atol=1e-5)
    np.testing.assert_array_equal(ours["attn_mask"], answer["attn_mask"])
    for index, queries in enumerate(ours["positive_idx"]):
        np.testing.assert_array_equal(queries, answer[f"positive_idx:{index}"])


@pytest.mark.parametrize("keeps_size", [True, False])
def test_noise_keeps_negatives_off_and_turns_boxes_inside_out_as_the_original(keeps_size):
    torch.manual_seed(0)
    targets = [{"labels": torch.zeros(5, dtype=torch.int64), "boxes": torch.full((5, 4), 0.4)}]
    made = make_denoising(targets, 80, 10, 1000, keeps_size=keeps_size)
    sizes = made["boxes_unact"][0, :, 2:].sigmoid()
    is_positive = torch.zeros(len(sizes), dtype=torch.bool)
    is_positive[made["positive_idx"][0]] = True
    assert is_positive.sum() == len(sizes) // 2 == 5 * made["num_group"]
    # An edge of a positive moves by less than half the box, so none is turned inside out.
    assert (sizes[is_positive] > 1e-3).all()
    points = (sizes[~is_positive] < 1e-4).float().mean()
    assert (points == 0) if keeps_size else (points > 0.1)
    replaced = (made["labels"] != 0).float().mean()
    assert 0.2 < replaced < 0.3  # half of the ratio of 0.5
