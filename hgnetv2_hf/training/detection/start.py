"""The detector that training starts from: a folder, a repository, a published name, a weight file, or a published size
with fresh weights; its heads for the classes of the data."""

import copy
import dataclasses
import os

import torch
import transformers
from transformers import AutoConfig, AutoModelForObjectDetection, PreTrainedModel, set_seed
from transformers.image_processing_utils import BaseImageProcessor

from ...backbone import load_image_processor
from ...conversion.architecture import name_variant
from ...errors import TrainingError
from ...model.heads import check_heads
from ...wording import counted, sentence
from ..load import converted
from ..starting_point import needs_conversion, shown_name
from .architectures import NAMES, build_detector
from .outputs import FAMILY_OF, family_of
from .recipe import RECIPES


@dataclasses.dataclass
class StartingDetector:
    model: PreTrainedModel
    image_processor: BaseImageProcessor
    classes: list[str]  # in the order of the logits
    recipe: str  # the row of `RECIPES` that fits
    has_trained_backbone: bool
    notes: list[str]  # what was decided, one line each


def load_start(name, classes, options, seed, work, in_main_process):
    """
    Args:
        name (`str`): see [`train_detector`].
        classes (`list[str]`): of the data.
        options ([`DetectorOptions`])
        seed (`int`): of fresh weights.
        work (`Path`): where a weight file is converted to a folder.
        in_main_process (callable): calls a function in the first process and returns its answer in every one.

    Returns:
        [`StartingDetector`]

    Raises:
        `TrainingError`: there is no such detector, or it cannot be trained here.
    """
    set_seed(seed)
    start = _start(name, classes, options, work, in_main_process)
    try:
        check_heads(start.model)
    except ValueError as error:
        raise TrainingError(f"{shown_name(name)} cannot be trained: {error}.") from error
    return start


def _start(name, classes, options, work, in_main_process):
    if name in NAMES and not os.path.isdir(name):
        if options.family is not None:
            raise TrainingError(f"--family is for a weight file; {name} has fresh weights.")
        return _fresh(name, classes, options)
    if options.backbone is not None:
        raise TrainingError(f"--backbone is for a fresh detector ({', '.join(NAMES)}); {name} has one already.")
    if options.family is not None and not needs_conversion(name):
        raise TrainingError(f"--family is for a weight file; {name} is a folder or a repository.")
    return _trained(converted(name, work, in_main_process, family=options.family), name, classes, options)


def _fresh(name, classes, options):
    row = RECIPES[name]
    model = build_detector(
        name,
        options.backbone,
        trains_batch_norm=_trains_batch_norm(options, row.trains_batch_norm),
        id2label=dict(enumerate(classes)),
        label2id={label: index for index, label in enumerate(classes)},
        num_queries=options.num_queries or row.num_queries,
        **_SIZED_BY_THE_IMAGE,
    )
    size = options.image_size or row.image_size
    processor = transformers.RTDetrImageProcessor(
        size={"height": size, "width": size}, do_normalize=False, do_pad=False
    )
    notes = [f"weights: fresh; backbone: {options.backbone or 'fresh'}", f"classes: {len(classes)} of the data"]
    if options.backbone is None:
        notes.append("a fresh backbone learns slowly: give --backbone a classifier's weights, or --model a detector")
    return StartingDetector(model, processor, list(classes), name, options.backbone is not None, notes)


# Anchors and positions are those of each image, not of one size that was fixed beforehand.
_SIZED_BY_THE_IMAGE = {"anchor_image_size": None, "eval_size": None}


def _trained(folder, name, classes, options):
    if not os.path.isdir(folder) and "/" not in str(folder):
        raise TrainingError(
            f"There is no folder {name}, and no published detector of this name; fresh ones are {', '.join(NAMES)}."
        )
    try:
        config = AutoConfig.from_pretrained(folder)
        if config.model_type not in FAMILY_OF:
            raise TrainingError(
                f"{name} is a {config.model_type}; train-detector takes {', '.join(FAMILY_OF)}, and train classifiers."
            )
        processor = load_image_processor(folder)
        row = recipe_of(config)
        if options.image_size is not None:
            processor.size = {"height": options.image_size, "width": options.image_size}
            for field in _SIZED_BY_THE_IMAGE:
                setattr(config, field, None)
        if options.num_queries is not None:
            config.num_queries = options.num_queries
        config.freeze_backbone_batch_norms = not _trains_batch_norm(options, RECIPES[row].trains_batch_norm)
        model = AutoModelForObjectDetection.from_pretrained(folder, config=config, dtype="float32")
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        if isinstance(error, TrainingError):
            raise
        raise TrainingError(f"{name} is no detector that can be loaded: {sentence(error)[:300]}") from error
    own = [config.id2label[index] for index in range(config.num_labels)]
    shown = shown_name(name)
    if set(classes) == set(own):
        note = f"classes: the {len(own)} of {shown}, its heads kept"
        order = own
    else:
        model, common = with_classes(model, classes)
        note = f"classes: {len(classes)} of the data, heads re-made" + (
            f"; {counted(len(common), 'class', 'classes')} of the same name kept: {', '.join(common[:5])}"
            if common
            else ""
        )
        order = list(classes)
    return StartingDetector(model, processor, order, row, True, [f"weights: {shown}", note])


def limit_queries(config, size, asked):
    """
    Queries are chosen among the places of the feature maps: makes them no more than there are.

    Args:
        config (`PretrainedConfig`): changed in place.
        size (`int`): pixels per side of the smallest images.
        asked (`int` or `None`): how many queries were asked for.

    Returns:
        `list[str]`: what is to be said.

    Raises:
        `TrainingError`: more were asked for.
    """
    places = sum((size // stride) ** 2 for stride in config.feat_strides)
    if config.num_queries <= places:
        return []
    if asked is not None:
        raise TrainingError(
            f"An image of {size} pixels has {places} places for queries, fewer than {asked}; pass a smaller "
            "--num-queries or a larger --image-size."
        )
    config.num_queries = places
    return [f"queries: {places}, as many as an image of {size} pixels has places for"]


def _trains_batch_norm(options, default):
    return default if options.backbone_norm is None else options.backbone_norm == "train"


def recipe_of(config):
    """The row of `RECIPES` for a configuration: its family's, of the size with the same backbone."""
    family = family_of(config)
    variant = name_variant(config.backbone_config.to_dict())
    sizes = {"b2": "m", "b4": "l", "b5": "x", "b6": "h"}
    if family in ("rtdetr", "rtdetrv2"):
        return f"{family}-{sizes.get(variant, 'l')}"
    if family == "deimv2-lite":
        return f"deimv2-{variant if variant in ('atto', 'femto') else 'pico'}"
    if config.num_feature_levels == 2:
        return f"{family}-n"
    return f"{family}-" + {**sizes, "b6": "x"}.get(variant, "s")


def with_classes(model, classes):
    """
    The same detector for other classes: rows of classes of the same name are kept, those of others are fresh.

    Args:
        model (`PreTrainedModel`)
        classes (`list[str]`)

    Returns:
        `tuple[PreTrainedModel, list[str]]`: the new model, and the classes that were kept.
    """
    config = copy.deepcopy(model.config)
    before = [config.id2label[index] for index in range(config.num_labels)]
    config.id2label = dict(enumerate(classes))
    config.label2id = {label: index for index, label in config.id2label.items()}
    new = type(model)(config)
    common = [name for name in classes if before.count(name) == 1]
    rows = torch.tensor([classes.index(name) for name in common], dtype=torch.int64)
    sources = torch.tensor([before.index(name) for name in common], dtype=torch.int64)
    tensors, places = model.state_dict(), new.state_dict()
    with torch.no_grad():
        for name, place in places.items():
            if place.shape == tensors[name].shape and not _is_of_classes(name):
                place.copy_(tensors[name])
            elif len(common):
                place[rows] = tensors[name][sources]
    return new, common


def _is_of_classes(name):
    return any(part in name for part in ("class_embed", "enc_score_head"))
