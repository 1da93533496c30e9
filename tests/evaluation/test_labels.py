"""Classes of data among the labels of a model: by name, or not at all."""

import json
import random
from pathlib import Path

import numpy as np
import pytest

import hgnetv2_hf
from hgnetv2_hf.errors import HGNetV2Error
from hgnetv2_hf.evaluation.labels import match_labels


IMAGENET = json.loads((Path(hgnetv2_hf.__file__).parent / "assets" / "labels_imagenet-1k.json").read_text())


def test_classes_are_matched_by_name_and_not_by_position():
    positions, notes = match_labels(["dog", "cat"], ["cat", "bird", "dog"], {0, 1}, "pets")
    assert positions.tolist() == [2, 0] and notes == []


def test_an_unknown_class_is_an_error_that_names_it_unless_nothing_belongs_to_it():
    with pytest.raises(HGNetV2Error, match=r"does not know this class of pets: fox; it has cat, dog\."):
        match_labels(["cat", "fox"], ["cat", "dog"], {0, 1}, "pets")
    positions, notes = match_labels(["cat", "fox"], ["cat", "dog"], {0}, "pets")
    assert positions.tolist() == [0, -1] and "fox" in notes[0]


def test_two_labels_of_one_name_are_refused_where_the_data_use_it():
    with pytest.raises(HGNetV2Error, match="2 labels crane"):
        match_labels(["crane"], ["crane", "dog", "crane"], {0}, "birds")
    assert match_labels(["dog"], ["crane", "dog", "crane"], {0}, "pets")[0].tolist() == [1]


def test_the_folders_of_imagenet_are_matched_in_the_order_of_their_ids():
    ids = [f"n{1440764 + 1000 * index:08}" for index in range(1000)]
    shuffled = random.Random(0).sample(ids, 1000)
    positions, notes = match_labels(shuffled, IMAGENET, set(range(1000)), "imagenet")
    assert [ids[position] for position in positions] == shuffled and "WordNet" in notes[0]
    assert np.array_equal(match_labels(ids, ids, {0}, "imagenet")[0], np.arange(1000))  # a model that knows the ids
    for classes, labels in ((ids[:10], IMAGENET), (ids, IMAGENET[::-1])):
        with pytest.raises(HGNetV2Error, match="all 1000 folders"):
            match_labels(classes, labels, {0, 1}, "imagenet")


def test_the_other_names_of_cocos_classes_are_known():
    positions, notes = match_labels(["tv", "couch", "cat"], ["sofa", "cat", "tvmonitor"], {0, 1, 2}, "coco")
    assert positions.tolist() == [2, 0, 1] and "tv is its tvmonitor" in notes[0]
    assert match_labels(["sofa"], ["couch", "sofa"], {0}, "rooms")[0].tolist() == [1]
