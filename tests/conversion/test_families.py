"""D-FINE, DEIM and RT-DETRv4 share their tensors' names: a file converts only where one network is left."""

import json

import pytest
import torch
from conftest import GOLDENS
from goldens import filler

from hgnetv2_hf import ConversionError, convert_checkpoint
from hgnetv2_hf.cli import main
from hgnetv2_hf.conversion.weight_file import read_weights


@pytest.fixture(scope="module")
def file_of(golden_checkpoint, tmp_path_factory):
    """A detector's file under any name; the names and shapes of DEIM's are those of D-FINE with all counters."""
    folder = tmp_path_factory.mktemp("detectors")

    def build(golden, name, counters=True):
        path = folder / name
        if golden == "rtdetrv4_s":
            tensors = {n: torch.from_numpy(v) for n, v in filler.state_dict(str(GOLDENS / f"{golden}.json")).items()}
        else:
            tensors, _ = read_weights(golden_checkpoint(golden))
        if counters:
            means = [each for each in tensors if each.endswith(".running_mean")]
            tensors.update({f"{each[:-12]}num_batches_tracked": torch.tensor(1000) for each in means})
        else:
            tensors = {each: tensor for each, tensor in tensors.items() if not each.endswith("num_batches_tracked")}
        torch.save({"model": tensors}, path)
        return path

    return build


def head_activation(folder):
    card = (folder / "README.md").read_text()
    return next(line for line in card.splitlines() if line.startswith("| `head activation`"))


@pytest.mark.parametrize("name", ["best_stg2.pth", "dfine_n.pth", "dfine_n_coco_copy.pth", "DEIM_hgnetv2_n.pth"])
def test_a_file_that_may_be_of_dfine_or_deim_is_refused(file_of, tmp_path, capsys, name):
    path = file_of("dfine_n", name)
    assert main(["convert", str(path), str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err.strip()
    assert len(error.splitlines()) == 1 and "pass --family dfine, deim or rtdetrv4, whichever trained it" in error
    assert not (tmp_path / "out").exists()


def test_an_option_or_a_published_name_decides_and_the_report_says_which(file_of, tmp_path, capsys):
    arguments = [str(file_of("dfine_n", "best_stg2.pth")), str(tmp_path / "option"), "--family", "dfine"]
    assert main(["convert", *arguments]) == 0
    assert "head activation = relu (option; nothing in the file tells D-FINE from DEIM)" in capsys.readouterr().out
    assert "option" in head_activation(tmp_path / "option")
    report = convert_checkpoint(file_of("dfine_n", "dfine_n_coco.pth"), tmp_path / "published")
    assert report.assumed["head activation"] == ("relu", "published as dfine_n_coco")
    assert "published as" in head_activation(tmp_path / "published")


@pytest.mark.parametrize(
    "golden, name, family, layout, reason",
    [
        ("dfine_n", "best_stg2.pth", "deim", "deim", "option"),
        ("dfine_n", "best_stg2.pth", "rtdetrv4", "rtdetrv4", "option"),
        ("dfine_n", "deim_dfine_hgnetv2_n_coco_160e.pth", None, "deim", "published as deim_dfine_hgnetv2_n_coco_160e"),
        ("dfine_l", "best_l.pth", None, "deim", "counts batches"),
        ("rtdetrv4_s", "best_s.pth", None, "rtdetrv4", "feature_projector"),
        ("rtdetrv4_s", "RTv4-S-hgnet.pth", None, "rtdetrv4", "published as RTv4-S-hgnet"),
    ],
)
def test_deim_and_rtdetrv4_become_a_type_of_their_own(file_of, tmp_path, golden, name, family, layout, reason):
    report = convert_checkpoint(file_of(golden, name), tmp_path / "out", family=family)
    activation, why = report.assumed["head_activation_function"]
    assert (report.layout, report.model_type, activation) == (layout, "deim", "silu") and reason in why
    left_out = [line for line in report.left_out if "feature_projector" in line]
    assert len(left_out) == (golden == "rtdetrv4_s")


def test_the_tensors_of_dfine_l_decide_by_themselves(golden_checkpoint, tmp_path):
    report = convert_checkpoint(golden_checkpoint("dfine_l"), tmp_path / "out")
    assert "counts no batches" in report.assumed["head activation"][1]


CONTRADICTIONS = [
    # golden, file name, option, words of the error
    ("dfine_l", "best_l.pth", "dfine", "DEIM or RT-DETRv4 .*but family=dfine is chosen; pass --family deim"),
    ("dfine_l", "dfine_l_coco.pth", None, "DEIM or RT-DETRv4 .*but it is published as dfine_l_coco"),
    ("rtdetrv4_s", "best_s.pth", "dfine", "RT-DETRv4 .*but family=dfine"),
    ("rtdetrv4_s", "best_s.pth", "deim", "RT-DETRv4 .*but family=deim"),
    ("rtdetrv4_s", "dfine_s_coco.pth", None, "RT-DETRv4 .*but it is published"),
]


@pytest.mark.parametrize("golden, name, family, words", CONTRADICTIONS)
def test_what_tensors_contradict_is_refused(file_of, tmp_path, golden, name, family, words):
    path = file_of(golden, name)
    with pytest.raises(ConversionError, match=words):
        convert_checkpoint(path, tmp_path / "out", family=family)
    assert not (tmp_path / "out").exists()


def test_a_file_without_any_counter_does_not_show_a_frozen_backbone(file_of, tmp_path):
    path = file_of("dfine_l", "stripped.pth", counters=False)
    with pytest.raises(ConversionError, match="of D-FINE, DEIM or RT-DETRv4"):
        convert_checkpoint(path, tmp_path / "out")


def test_the_tensors_of_deimv2_need_no_family_and_contradict_any(golden_checkpoint, tmp_path):
    with pytest.raises(ConversionError, match="a detector of DEIMv2 .*swish_ffn.*but family=deim is chosen"):
        convert_checkpoint(golden_checkpoint("deimv2_atto"), tmp_path / "out", family="deim")
    assert convert_checkpoint(golden_checkpoint("deimv2_atto"), tmp_path / "out", family="deimv2").layout == "deimv2"


def test_a_backbone_needs_no_family_and_a_family_needs_such_a_detector(file_of, tmp_path):
    assert convert_checkpoint(file_of("rtdetrv4_s", "best_s.pth"), tmp_path / "v4", task="backbone").variant == "b0"
    with pytest.raises(ConversionError, match="holds no such detector"):
        convert_checkpoint("digits", tmp_path / "out", family="dfine")
    with pytest.raises(ConversionError, match="but family=dfine"):
        convert_checkpoint(file_of("rtdetrv4_s", "best_s.pth"), tmp_path / "out", task="backbone", family="dfine")
    with pytest.raises(ValueError, match="`family` must be one of dfine, deim, rtdetrv4, deimv2"):
        convert_checkpoint("digits", tmp_path / "out", family="detr")


def test_the_goldens_tell_the_families_apart():
    from hgnetv2_hf.conversion.families import families_shown

    names = json.loads((GOLDENS / "rtdetrv4_s.json").read_text())["tensors"]
    assert families_shown(names, "b0").families == ("rtdetrv4",)
    names = json.loads((GOLDENS / "dfine_n.json").read_text())["tensors"]
    assert families_shown(names, "b0").families == ("dfine", "deim", "rtdetrv4")
