"""Each published classifier of PaddleX and of PP-HGNet converts from a file with the original's name and shapes."""

import json

import pytest
import torch

import hgnetv2_hf
from hgnetv2_hf.hub.published import PADDLEX_URL, PUBLISHED
from hgnetv2_hf.model.variants import PP_HGNET_VARIANTS


ROWS = {
    name: row
    for name, row in PUBLISHED.items()
    if row.task == "classification" and ((row.url or "").startswith(PADDLEX_URL) or row.variant in PP_HGNET_VARIANTS)
}
MARKS = {"b5": pytest.mark.long, "b6": pytest.mark.long, "base": pytest.mark.long}  # as many weights as all others


def original(row):
    """A fresh network of the published one's shapes."""
    torch.manual_seed(0)
    if row.variant in PP_HGNET_VARIANTS:
        return hgnetv2_hf.PPHGNetForImageClassification(hgnetv2_hf.PPHGNetConfig.from_variant(row.variant))
    if row.labels == "coco":
        config = hgnetv2_hf.PPHGNetV2MLConfig.from_variant(row.variant, num_labels=80)
        return hgnetv2_hf.PPHGNetV2MLForImageClassification(config)
    return hgnetv2_hf.PPHGNetV2ForImageClassification(hgnetv2_hf.PPHGNetV2Config.from_variant(row.variant))


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name == "PP-HGNetV2-B0" else MARKS.get(row.variant, pytest.mark.slow))
        for name, row in ROWS.items()
    ],
)
def test_a_file_of_the_published_name_becomes_that_classifier(tmp_path, name):
    row = ROWS[name]
    model = original(row)
    model.save_pretrained(tmp_path / "ours")
    hgnetv2_hf.export_weights(tmp_path / "ours", tmp_path / row.file_name, layout=row.layout)
    report = hgnetv2_hf.convert_checkpoint(tmp_path / row.file_name, tmp_path / "out")
    assert (report.published, report.variant, report.task) == (name, row.variant, "classification")
    assert report.assumed["labels"] == (row.labels, f"published with {name}")
    processor = json.loads((tmp_path / "out" / "preprocessor_config.json").read_text())
    if row.labels == "coco":
        assert processor["size"] == {"height": 448, "width": 448}
    else:
        assert processor["size"] == {"shortest_edge": row.resize_short}
        assert processor["crop_size"] == {"height": row.crop_size, "width": row.crop_size}
    found = type(model).from_pretrained(tmp_path / "out").state_dict()
    assert all(torch.equal(found[each], tensor) for each, tensor in model.state_dict().items())
