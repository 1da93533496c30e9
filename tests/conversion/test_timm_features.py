"""Backbones of timm's `features_only`, whose stages have other names, alone and inside somebody's detector."""

import pytest
import torch
from conftest import relative_difference

import hgnetv2_hf
from hgnetv2_hf import ConversionError, convert_checkpoint


@pytest.fixture
def features(timm):
    """timm's network of a variant in float64, with statistics and LAB under which everything matters."""

    def make(variant, **options):
        torch.manual_seed(0)
        network = timm.create_model(f"hgnetv2_{variant}", features_only=True, **options)
        for name, tensor in network.state_dict().items():
            if name.endswith("lab.bias"):
                tensor.normal_(-0.2, 0.2)
            elif name.endswith(("lab.scale", "running_var")):
                tensor.uniform_(0.7, 1.3)
        return network.eval()

    return make


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    "variant, options",
    [
        ("b0", {}),
        ("b0", {"out_indices": (1, 2)}),
        slow("b4", {}),
        slow("b4", {"out_indices": (0, 1, 2)}),
        slow("b1", {"out_indices": (1,)}),
        slow("b4", {"feature_cls": "getter"}),
    ],
)
def test_feature_maps_are_timms_with_all_stages_or_some(features, tmp_path, variant, options):
    network = features(variant, **options)
    torch.save(network.state_dict(), tmp_path / "w.pth")
    report = convert_checkpoint(tmp_path / "w.pth", tmp_path / "out", verify=True)
    assert report.task == "backbone" and report.parity[0].program.startswith("timm")
    assert report.parity[0].as_converted < 1e-9
    indices = network.feature_info.out_indices
    wanted = [f"stage{index + 1}" for index in indices]
    backbone = hgnetv2_hf.load_backbone(tmp_path / "out", out_features=wanted).double().eval()
    assert len(backbone.encoder.stages) == max(indices) + 1
    pixel_values = torch.randn(1, 3, 97, 64, dtype=torch.float64)
    with torch.inference_mode():
        ours, theirs = backbone(pixel_values).feature_maps, network.double()(pixel_values)
    assert len(ours) == len(theirs)
    assert all(relative_difference(one, other) < 1e-9 for one, other in zip(ours, theirs))


@pytest.mark.parametrize("prefix", ["model.", "backbone.", "model.net.encoder."])
def test_behind_any_prefix_it_converts_as_a_backbone(features, tmp_path, prefix):
    inside = {f"{prefix}{name}": tensor for name, tensor in features("b0").state_dict().items()}
    torch.save({"state_dict": {**inside, f"{prefix}neck.weight": torch.zeros(3)}}, tmp_path / "w.pth")
    with pytest.raises(ConversionError, match="whole detector.*--task backbone"):
        convert_checkpoint(tmp_path / "w.pth", tmp_path / "out")
    report = convert_checkpoint(tmp_path / "w.pth", tmp_path / "out", task="backbone")
    assert (report.layout, report.variant, report.left_out) == ("timm_features", "b0", ["1 tensor of the detector"])
    assert report.assumed["pool_padding"] == ("zero", "as in timm's features_only")
    assert report.model_type == "hgnet_v2"  # timm and stock compute the same


def test_two_networks_in_one_file_are_refused(features, tmp_path):
    state = features("b0").state_dict()
    torch.save({f"{side}.{name}": tensor for side in "ab" for name, tensor in state.items()}, tmp_path / "w.pth")
    with pytest.raises(ConversionError, match=r"several networks of timm's features_only, behind a\. and b\."):
        convert_checkpoint(tmp_path / "w.pth", tmp_path / "out", task="backbone")
