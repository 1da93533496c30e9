"""The image size of a detector: its anchors show it, and Transformers computes the same anchors for it."""

import json

import numpy as np
import pytest
import torch
import transformers
from conftest import GOLDENS

from hgnetv2_hf import ConversionError, convert_checkpoint
from hgnetv2_hf.conversion.anchors import image_size_of
from hgnetv2_hf.conversion.paddle_file import read_paddle_file, write_paddle_file
from hgnetv2_hf.conversion.weight_file import read_weights


def original_anchors(height, width, strides):
    """D-FINE's and RT-DETRv2's ``_generate_anchors``, in their float32."""
    anchors = []
    for level, stride in enumerate(strides):
        h, w = int(height / stride), int(width / stride)
        y, x = torch.meshgrid(torch.arange(end=h), torch.arange(end=w), indexing="ij")
        centres = (torch.stack([x, y], -1).unsqueeze(0) + 0.5) / torch.tensor([w, h], dtype=torch.float32)
        sides = torch.ones_like(centres) * 0.05 * 2.0**level
        anchors.append(torch.concat([centres, sides], -1).reshape(-1, h * w, 4))
    anchors = torch.concat(anchors, 1)
    valid = ((anchors > 1e-2) * (anchors < 1 - 1e-2)).all(-1, keepdim=True)
    return torch.where(valid, torch.log(anchors / (1 - anchors)), torch.inf), valid


def test_the_size_is_read_from_the_anchors_of_the_goldens_and_of_any_other_size():
    for name, strides in (("dfine_n", [16, 32]), ("dfine_l", [8, 16, 32]), ("rtdetrv2_hgnetv2_l", [8, 16, 32])):
        anchors = np.load(GOLDENS / f"{name}.npz")["constant:decoder.anchors"]
        assert image_size_of(torch.from_numpy(anchors), strides) == (640, 640)
    for size in ((1280, 1280), (480, 640), (640, 480), (384, 1536), (1600, 416), (32, 32)):  # 1600 / 32: on the border
        for strides in ([16, 32], [8, 16, 32]):
            assert image_size_of(original_anchors(*size, strides)[0], strides) == size
    assert image_size_of(original_anchors(640, 960, [8, 16, 32])[0].half(), [8, 16, 32]) == (640, 960)


@pytest.mark.parametrize("damage", ["count", "value", "nan", "shape", "type"])
def test_anchors_of_no_size_are_one_sentence(damage):
    anchors = original_anchors(320, 320, [16, 32])[0]
    if damage in ("value", "nan"):
        anchors[0, 7, 0] = 0.5 if damage == "value" else torch.nan
    changed = {"count": anchors[:, 1:], "shape": anchors[0], "type": anchors.nan_to_num().long()}
    with pytest.raises(ConversionError, match="those of no image size"):
        image_size_of(changed.get(damage, anchors), [16, 32])


@pytest.fixture
def resized(golden_checkpoint, tmp_path):
    """The golden D-FINE n as its program writes it for another size."""

    def write(height, width):
        tensors, _ = read_weights(golden_checkpoint("dfine_n"))
        tensors["decoder.anchors"], tensors["decoder.valid_mask"] = original_anchors(height, width, [16, 32])
        torch.save({"model": tensors}, tmp_path / "dfine_n_coco.pth")
        return tmp_path / "dfine_n_coco.pth", tensors

    return write


def test_a_detector_for_another_size_keeps_it_and_transformers_computes_its_anchors(resized, tmp_path):
    path, tensors = resized(320, 320)
    report = convert_checkpoint(path, tmp_path / "out", verify=True)
    assert report.assumed["image_size"] == ([320, 320], "the anchors in the file")
    processor = json.loads((tmp_path / "out" / "preprocessor_config.json").read_text())
    assert processor["size"] == {"height": 320, "width": 320}
    assert "resized to 320×320 pixels" in (tmp_path / "out" / "README.md").read_text()
    model = transformers.AutoModelForObjectDetection.from_pretrained(tmp_path / "out").eval()
    seen, generate = [], model.model.generate_anchors
    model.model.generate_anchors = lambda *args, **options: seen.append(generate(*args, **options)) or seen[-1]
    with torch.inference_mode():
        model(torch.zeros(1, 3, 320, 320))
    (anchors, valid), original = seen[0], tensors["decoder.anchors"]
    assert torch.equal(valid, tensors["decoder.valid_mask"])
    where = valid.expand_as(anchors)
    assert torch.allclose(anchors[where], original[where], atol=1e-6)


def test_a_size_that_is_not_square_is_refused_because_transformers_5_computes_it_differently(resized, tmp_path):
    path, _ = resized(320, 480)
    with pytest.raises(ConversionError, match="320×480 pixels .*only square ones convert"):
        convert_checkpoint(path, tmp_path / "out")


def test_the_golden_of_rtdetrv2_gives_its_anchors_as_the_reason(converted_golden):
    card = (converted_golden("rtdetrv2_hgnetv2_l") / "README.md").read_text()
    assert "| `image_size` | `[640, 640]` | the anchors in the file |" in card


def test_a_paddle_detector_with_anchors_shows_its_size_too(golden_checkpoint, tmp_path):
    tensors = read_paddle_file(golden_checkpoint("paddledet_rtdetr_hgnetv2_l"))
    tensors["transformer.anchors"] = original_anchors(320, 320, [8, 16, 32])[0]
    write_paddle_file(tensors, tmp_path / "w.pdparams")
    report = convert_checkpoint(tmp_path / "w.pdparams", tmp_path / "out")
    assert report.assumed["image_size"][0] == [320, 320]
