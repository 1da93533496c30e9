"""The knobs of training, for any loop: rates and decay per parameter, freezing, moving average, losses,
checkpointing."""

import json
import os
import subprocess

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import GOLDENS, ORACLE, randomize, relative_difference
from torch import nn

import hgnetv2_hf
from hgnetv2_hf import (
    HGNetV2Config,
    HGNetV2ForImageClassification,
    PPHGNetV2Config,
    PPHGNetV2ForImageClassification,
)
from hgnetv2_hf.conversion.layouts import LAYOUTS, rename, rename_back
from hgnetv2_hf.conversion.paddle_file import write_paddle_file
from hgnetv2_hf.training import (
    MovingAverage,
    freeze,
    parameter_groups,
    soft_cross_entropy,
    symmetric_kl,
)


RATES = GOLDENS / "paddleclas_rates.json"  # of every parameter of PaddleClas's B0 and B4
LR_MULT_LIST = [0.125, 0.25, 0.5, 1.0, 2.0]


def rates_of_paddle(answer):
    """Our name -> (multiplier of the rate, whether it decays), from what the oracle says of its parameters."""
    names = [name.removeprefix("rate:") for name in answer if name.startswith("rate:")]
    ours = dict(zip(names, rename({name: torch.zeros(1, 1) for name in names}, LAYOUTS["paddleclas"])))
    return {ours[name]: [float(answer[f"rate:{name}"]), bool(answer[f"decays:{name}"])] for name in names}


def training_request(model, variant, tmp_path, steps=3):
    """Files and arrays for the oracle's training: weights, images and labels."""
    checkpoint = tmp_path / "start.pdparams"
    write_paddle_file(rename_back(model.state_dict(), LAYOUTS["paddleclas"]), checkpoint)
    generator = torch.Generator().manual_seed(0)
    return {
        "checkpoint": str(checkpoint),
        "variant": variant,
        "class_num": 4,
        "lr_mult_list": LR_MULT_LIST,
        "pixel_values": torch.randn(steps, 4, 3, 64, 64, generator=generator).numpy(),
        "labels": torch.randint(0, 4, (steps, 4), generator=generator).numpy(),
        # Powers of two, the classes too: Paddle keeps rates, momentum and smoothed labels as float32 numbers.
        "learning_rate": 2.0**-5,
        "weight_decay": 2.0**-7,
        "momentum": 0.875,
        "epsilon": 2.0**-3,
    }


@pytest.mark.parametrize("variant", ["b0", "b4"])
def test_every_parameter_has_the_group_rate_and_decay_of_paddleclas(variant):
    golden = json.loads(RATES.read_text())[variant]
    model = PPHGNetV2ForImageClassification(PPHGNetV2Config.from_variant(variant, num_labels=5))
    groups = parameter_groups(model, 0.5, 2e-5, LR_MULT_LIST)
    group_of = {parameter: group for group in groups for parameter in group["params"]}
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters())) == len(golden)
    for name, parameter in model.named_parameters():
        group, (multiplier, decays) = group_of[parameter], golden[name]
        assert group["lr"] == pytest.approx(0.5 * multiplier, rel=1e-12), name
        assert group["weight_decay"] == (2e-5 if decays else 0.0), name
        assert group["name"] == expected_group(name), name


def expected_group(name):
    """FACTS of the recipe, said once more: by the name alone."""
    parts = name.split(".")
    place = "rest"
    if parts[0] == "embedder":
        place = "stem"
    elif parts[0] == "encoder":
        place = f"stage{int(parts[2]) + 1}"
    if "lab" in parts:
        return f"{place} LAB"
    if "normalization" in parts:
        return f"{place} normalisation"
    return f"{place} biases" if parts[-1] == "bias" else f"{place} weights"


def test_biases_and_lab_can_be_exempted_and_rates_set_per_stage():
    model = PPHGNetV2ForImageClassification(PPHGNetV2Config.from_variant("b0", num_labels=5))
    groups = {group["name"]: group for group in parameter_groups(model, 1.0, 0.1, exempt_biases_and_lab=True)}
    assert {name for name, group in groups.items() if group["weight_decay"]} == {
        f"{place} weights" for place in ("stem", "stage1", "stage2", "stage3", "stage4", "rest")
    }
    groups = {group["name"]: group for group in parameter_groups(model, 1.0, 0.1, [0, 0.5, 1, 1, 1], lab_lr_mult=0.1)}
    assert groups["stem weights"]["lr"] == 0 and groups["stage1 LAB"]["lr"] == pytest.approx(0.05)
    assert groups["rest LAB"]["lr"] == pytest.approx(0.1)
    with pytest.raises(ValueError, match="5: stem, stage1"):
        parameter_groups(model, 1.0, 0.1, [1, 1, 1])
    with pytest.raises(ValueError, match="not negative"):
        parameter_groups(model, -1.0)
    with pytest.raises(ValueError, match="no HGNetV2"):
        parameter_groups(nn.Linear(1, 1), 1.0, lr_mult_list=[1.0])
    freeze(model, 0)
    assert not [group for group in parameter_groups(model, 1.0) if group["name"].startswith("stem")]


def test_the_groups_of_a_detector_hold_every_parameter_once():
    from transformers import DFineConfig, DFineForObjectDetection

    backbone = HGNetV2Config.from_variant("b0", out_features=["stage3", "stage4"])
    config = DFineConfig(
        backbone_config=backbone, encoder_in_channels=[512, 1024], feat_strides=[16, 32], num_feature_levels=2,
        encoder_hidden_dim=32, d_model=32, decoder_layers=2, encoder_ffn_dim=32, decoder_ffn_dim=32, num_queries=10,
        decoder_n_points=[2, 2], encode_proj_layers=[1], decoder_in_channels=[32, 32],
    )  # fmt: skip
    model = DFineForObjectDetection(config)
    groups = parameter_groups(model, 1.0, 0.1, [0.5, 0.05, 0.05, 0.05, 0.05])
    held = [parameter for group in groups for parameter in group["params"]]
    assert len(held) == len(set(held)) == len([p for p in model.parameters() if p.requires_grad])
    rates = {group["name"]: group["lr"] for group in groups}
    assert rates["stage3 weights"] == 0.05 and rates["rest weights"] == 1.0
    assert {group["weight_decay"] for group in groups if "normalisation" in group["name"]} <= {0.0}


@pytest.mark.paddle
@pytest.mark.parametrize("variant", ["b0", "b4"])
def test_steps_and_rates_are_those_of_the_real_paddleclas(paddle, tmp_path, variant):
    torch.manual_seed(0)
    model = PPHGNetV2ForImageClassification(PPHGNetV2Config.from_variant(variant, num_labels=4)).train()
    request = training_request(model, variant, tmp_path)
    answer = paddle("training", **request)
    assert rates_of_paddle(answer) == json.loads(RATES.read_text())[variant]
    model = model.double()
    optimizer = torch.optim.SGD(
        parameter_groups(model, request["learning_rate"], request["weight_decay"], LR_MULT_LIST),
        momentum=request["momentum"],
    )
    losses = []
    for pixel_values, labels in zip(request["pixel_values"], request["labels"]):
        logits = model(torch.from_numpy(pixel_values).double()).logits
        loss = F.cross_entropy(logits, torch.from_numpy(labels), label_smoothing=request["epsilon"])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(answer["losses"][0], rel=1e-9)
    assert losses == pytest.approx(answer["losses"].tolist(), rel=1e-6)
    errors = {"weights": 0.0, "means": 0.0, "variances": 0.0}
    for name, value in rename_back(model.state_dict(), LAYOUTS["paddleclas"]).items():
        original = answer[f"weight:{name}"]
        kind = {"_mean": "means", "_variance": "variances"}.get(name.rpartition(".")[2], "weights")
        scale = max(np.abs(original).max(), 1e-3)  # biases that started at zero and hardly moved
        errors[kind] = max(errors[kind], np.abs(value.numpy() - original).max() / scale)
    print(variant, errors)
    assert errors["weights"] < (1e-9 if variant == "b0" else 1e-6)  # B4 on four small images amplifies the last bits
    assert errors["means"] < 1e-6  # Paddle keeps batch norm's momentum as a float32 number too
    assert (
        errors["variances"] < 0.1
    )  # Paddle's running variance is the biased one, PyTorch's the unbiased: n / (n - 1)


@pytest.mark.paddle
def test_distillation_losses_are_those_of_paddle(paddle):
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(8, 13, generator=generator, dtype=torch.float64) * 4 for _ in range(2))
    answer = paddle("distillation", student=student.numpy(), teacher=teacher.numpy())
    assert soft_cross_entropy(student, teacher).item() == pytest.approx(float(answer["cross_entropy"]), rel=1e-9)
    assert symmetric_kl(student, teacher).item() == pytest.approx(float(answer["symmetric_kl"]), rel=1e-9)


def test_distillation_losses_have_their_definitions():
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(8, 13, generator=generator, dtype=torch.float64) for _ in range(2))
    p, q = teacher.softmax(-1), student.softmax(-1)
    assert torch.allclose(soft_cross_entropy(student, teacher), -(p * q.log()).sum(-1).mean())
    both = (p * (p / q).log()).sum(-1).mean() + (q * (q / p).log()).sum(-1).mean()
    assert torch.allclose(symmetric_kl(student, teacher), both / 2)


def small(tiny_fields, **options):
    return randomize(PPHGNetV2ForImageClassification(PPHGNetV2Config(**tiny_fields, class_expand=24, **options)))


def one_step(model, pixel_values, labels):
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model(pixel_values, labels=labels).loss.backward()
    optimizer.step()


@pytest.mark.parametrize(
    "options, moving",
    [
        ({"freeze_at": 0}, {"encoder.stages.0", "encoder.stages.3", "fc"}),
        ({"freeze_at": 1, "freeze_stem_only": False}, {"encoder.stages.2", "encoder.stages.3", "fc"}),
        ({"freeze_norm": True}, {"embedder", "encoder.stages.0", "fc"}),
        ({}, {"embedder", "encoder.stages.0", "fc"}),
    ],
)
def test_frozen_parts_stand_still_and_the_rest_moves(tiny_fields, options, moving):
    model = small(tiny_fields).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    freeze(model, **options)
    assert list(model.state_dict()) == list(before)
    one_step(model.train(), torch.randn(4, 3, 64, 64), torch.tensor([0, 1, 0, 1]))
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    for place in ("embedder", "encoder.stages.0", "encoder.stages.1", "encoder.stages.2", "encoder.stages.3", "fc"):
        weights = {
            name for name in changed if name.startswith(place) and name.endswith(("convolution.weight", "fc.weight"))
        }
        frozen = place == "embedder" and options.get("freeze_at", -1) >= 0
        frozen |= place.startswith("encoder") and not options.get("freeze_stem_only", True) and int(place[-1]) <= 1
        assert bool(weights) != frozen, place
        assert place not in moving or weights
    norms = {name for name in changed if ".normalization." in name}
    assert bool(norms) != bool(options.get("freeze_norm")), norms
    if options.get("freeze_at", -1) >= 0:
        assert "embedder.stem1.normalization.running_mean" in changed  # statistics move there, as in the originals


def test_frozen_batch_norm_computes_as_in_evaluation_and_saves_as_ever(tiny_fields, tmp_path):
    model = small(tiny_fields).eval()
    pixel_values = torch.randn(2, 3, 64, 64)
    expected = model(pixel_values).logits
    frozen = freeze(model, freeze_norm=True)
    assert frozen.batch_norms == len([m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]) > 20
    assert torch.equal(model.train()(pixel_values).logits, expected)
    model.save_pretrained(tmp_path)
    again = PPHGNetV2ForImageClassification.from_pretrained(tmp_path).eval()
    assert relative_difference(again(pixel_values).logits.detach(), expected.detach()) < 1e-5
    optimised = hgnetv2_hf.optimize_for_inference(model.eval())
    assert relative_difference(optimised(pixel_values).logits, expected.detach()) < 1e-5
    with pytest.raises(ValueError, match="no HGNetV2"):
        freeze(nn.Linear(1, 1), 0)


def test_synchronised_batch_norm_keeps_epsilon_groups_and_can_be_frozen(tiny_fields):
    """Only GPUs compute with it; what surrounds it can be seen anywhere."""
    model = small(tiny_fields).eval()
    names = [group["name"] for group in parameter_groups(model, 1.0)]
    pixel_values = torch.randn(2, 3, 64, 64)
    expected = model(pixel_values).logits
    model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    norms = [module for module in model.modules() if isinstance(module, nn.SyncBatchNorm)]
    assert {norm.eps for norm in norms} == {model.config.batch_norm_eps}
    assert [group["name"] for group in parameter_groups(model, 1.0)] == names
    assert freeze(model, freeze_norm=True).batch_norms == len(norms) > 20
    assert torch.equal(model.train()(pixel_values).logits, expected)


def test_the_moving_average_is_that_of_paddleclas(tiny_fields):
    model = small(tiny_fields).train()
    average = MovingAverage(model, decay=0.75)
    expected = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for _ in range(3):
        one_step(model, torch.randn(4, 3, 64, 64), torch.tensor([0, 1, 0, 1]))
        average.update()
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                expected[name] = 0.75 * expected[name] + 0.25 * tensor
    own = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with average.applied():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                assert torch.allclose(tensor, expected[name], atol=1e-6), name
            else:
                assert tensor == 3
    assert all(torch.equal(tensor, own[name]) for name, tensor in model.state_dict().items())
    with pytest.raises(ValueError, match="below 1"):
        MovingAverage(model, 1.0)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_counts_each_batch_once_and_gives_the_same_gradients(tiny_fields, reentrant):
    pixel_values, labels = torch.randn(4, 3, 64, 64), torch.tensor([0, 1, 0, 1])
    models = [small(tiny_fields).train() for _ in range(2)]
    models[1].gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    for model in models:
        model(pixel_values, labels=labels).loss.backward()
    for (name, one), (_, other) in zip(*(model.named_parameters() for model in models)):
        assert torch.equal(one.grad, other.grad), name
    for (name, one), (_, other) in zip(*(model.state_dict().items() for model in models)):
        assert torch.equal(one, other), name


@pytest.mark.slow
def test_checkpointing_saves_two_fifths_of_the_activations_of_b4():
    from hgnetv2_hf.benchmark.training import added_memory

    plain, checkpointing = (added_memory(way, "b4", 16, 224) for way in ("channels-last", "checkpointing"))
    print(
        f"plain {plain / 1e6:.0f} MB, checkpointing {checkpointing / 1e6:.0f} MB, {1 - checkpointing / plain:.0%} less"
    )
    assert checkpointing < 0.6 * plain


def test_accumulated_gradients_are_those_of_one_batch(tiny_fields, tmp_path):
    """`Trainer` divides accumulated losses only by models that say that theirs is a mean."""
    from transformers import Trainer, TrainingArguments

    generator = torch.Generator().manual_seed(0)
    data = [{"pixel_values": torch.randn(3, 64, 64, generator=generator), "labels": index % 2} for index in range(8)]
    weights = []
    for accumulation in (1, 2, 4):
        model = randomize(HGNetV2ForImageClassification(HGNetV2Config(**tiny_fields, num_labels=2)))
        freeze(model, freeze_norm=True)
        arguments = TrainingArguments(
            output_dir=str(tmp_path), per_device_train_batch_size=8 // accumulation, max_steps=1, learning_rate=1.0,
            gradient_accumulation_steps=accumulation, optim="sgd", lr_scheduler_type="constant", max_grad_norm=0.0,
            report_to="none", save_strategy="no", use_cpu=True, disable_tqdm=True,
        )  # fmt: skip
        Trainer(model=model, args=arguments, train_dataset=data).train()
        weights.append(model.fc.weight.detach())
    assert relative_difference(weights[1], weights[0]) < 1e-5
    assert relative_difference(weights[2], weights[0]) < 1e-5


if (
    __name__ == "__main__"
):  # writes the golden: HGNETV2_HF_PADDLE_PYTHON=… PYTHONPATH=.:tests python tests/training/test_training_options.py
    import tempfile
    from pathlib import Path

    golden = {}
    with tempfile.TemporaryDirectory() as folder:
        for variant in ("b0", "b4"):
            model = PPHGNetV2ForImageClassification(PPHGNetV2Config.from_variant(variant, num_labels=4))
            np.savez(f"{folder}/request.npz", **training_request(model, variant, Path(folder), steps=1))
            command = [os.environ["HGNETV2_HF_PADDLE_PYTHON"], str(ORACLE), "training"]
            subprocess.run([*command, f"{folder}/request.npz", f"{folder}/answer.npz"], check=True)
            golden[variant] = rates_of_paddle(dict(np.load(f"{folder}/answer.npz")))
    RATES.write_text(json.dumps(golden, indent=0) + "\n")
