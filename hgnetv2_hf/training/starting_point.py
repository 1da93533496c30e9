"""The model that training starts from: a folder, a repository, a published name, a weight file, or a variant with
fresh weights."""

import dataclasses
import os
from pathlib import Path

from transformers import AutoConfig, AutoModelForImageClassification, PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor

from ..backbone import load_image_processor
from ..errors import TrainingError
from ..hub.published import published_name
from ..model.configuration_hgnetv2 import PPHGNetV2Config
from ..model.configuration_pp_hgnet import PPHGNetConfig
from ..model.image_processing_hgnetv2 import HGNetV2ImageProcessor
from ..model.variants import ALIASES, ALL_VARIANTS, PP_HGNET_VARIANTS
from ..wording import sentence


@dataclasses.dataclass
class StartingPoint:
    model: PreTrainedModel
    image_processor: BaseImageProcessor
    classes: list[str]  # in the order of the logits
    is_fresh: bool  # whether the weights are untrained
    notes: list[str]  # what was decided, one line each


def is_variant(name):
    return str(name).lower() in {**ALL_VARIANTS, **ALIASES} and not os.path.isdir(name)


def needs_conversion(name):
    """Whether ``name`` is a weight file or a published name, to be converted into a folder first."""
    return os.path.isfile(name) or (published_name(str(name)) is not None and not os.path.isdir(name))


def shown_name(name):
    """How cards call a model, data or a teacher: paths mean nothing on another machine, and some of them are
    temporary."""
    return Path(name).name if os.path.exists(name) else name


def load_starting_point(name, classes, from_scratch=False, head="auto"):
    """
    Args:
        name (`str`): a classifier's folder or repository, or a variant, which starts with fresh weights.
        classes (`list[str]` or `None`): of the data; `None` for images without labels, which need the model's own.
        from_scratch (`bool`): fresh weights, whatever the folder holds.
        head (`"auto"`, `"keep"` or `"new"`): the last layer. `"auto"` keeps it when the names of the classes are the
            model's, and makes a new one when they have nothing in common.

    Returns:
        [`StartingPoint`]

    Raises:
        `TrainingError`: there is no such classifier, or its labels contradict the data's.
    """
    if is_variant(name):
        try:
            config_class = PPHGNetConfig if str(name).lower() in PP_HGNET_VARIANTS else PPHGNetV2Config
            config = config_class.from_variant(str(name), num_labels=len(classes or []) or 1000)
        except ValueError as error:
            raise TrainingError(
                f"{name} is a backbone alone; train a classifier, one of b0 … b6, tiny, small, base."
            ) from error
        own, processor, from_scratch = None, HGNetV2ImageProcessor(), True
    else:
        config, processor = _load(name)
        own = _class_names(config)
    keeps, order, note = _decide_head(name, own, classes, head, from_scratch)
    config.id2label = dict(enumerate(order))
    config.label2id = {label: index for index, label in config.id2label.items()}
    notes = [note]
    if from_scratch:
        model = AutoModelForImageClassification.from_config(config)
        notes.append("weights: fresh")
    else:
        try:
            model = AutoModelForImageClassification.from_pretrained(
                name, config=config, ignore_mismatched_sizes=not keeps, dtype="float32"
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise TrainingError(f"{name} is no classifier that can be loaded: {sentence(error)[:300]}") from error
        if not keeps:
            _draw_last_layer(model, config)
        notes.append(f"weights: {shown_name(name)}")
    return StartingPoint(model, processor, order, from_scratch, notes)


def _load(name):
    if not os.path.isdir(name) and "/" not in str(name):
        raise TrainingError(
            f"There is no folder {name}, and no variant (b0 … b6, l, x, h, tiny, small, base) or published checkpoint "
            "of this name (see `hgnetv2-hf list`)."
        )
    try:
        config = AutoConfig.from_pretrained(name)
        if not any("ForImageClassification" in each for each in config.architectures or []):
            raise TrainingError(
                f"{name} is no image classifier but {', '.join(config.architectures or ['unknown'])}; convert a "
                "classifier, or start from a variant (b0 … b6)."
            )
        if (config.problem_type or "") not in ("", "single_label_classification"):
            raise TrainingError(
                f"{name} is for {config.problem_type}; training learns one class per image. Its backbone starts a "
                "detector, and Transformers' own Trainer takes it with labels of 0 and 1."
            )
        if getattr(config, "num_channels", 3) != 3:
            raise TrainingError(f"{name} takes images of {config.num_channels} channels; training prepares RGB only.")
        return config, load_image_processor(name)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise TrainingError(f"{name} is no classifier that can be loaded: {sentence(error)[:300]}") from error


def _class_names(config):
    """The names of a model's classes, or ``None`` where they are only numbered by default."""
    names = [config.id2label[index] for index in range(config.num_labels)]
    return None if names == [f"LABEL_{index}" for index in range(config.num_labels)] else names


def _decide_head(name, own, classes, head, from_scratch):
    """Whether the last layer is kept, the classes in the order of the logits, and a line that says so."""
    if classes is None:
        if own is None:
            raise TrainingError(f"{name} has no names for its classes, and nothing else says what to learn.")
        return True, own, f"classes: the {len(own)} of {shown_name(name)}"
    if head == "keep":
        if own is None or not set(classes) <= set(own):
            missing = [each for each in classes if each not in (own or [])]
            raise TrainingError(
                f"{name} does not know these classes of the data: {', '.join(missing[:5])}; use --head new."
            )
        return True, own, f"classes: the {len(own)} of {shown_name(name)}, its last layer kept"
    if own is None or head == "new" or from_scratch:
        return False, classes, f"classes: {len(classes)} of the data, a new last layer"
    if set(own) == set(classes):
        return True, own, f"classes: the {len(own)} of {shown_name(name)}, its last layer kept"
    common = set(own) & set(classes)
    if common:
        raise TrainingError(
            f"The labels contradict each other: {len(common)} of the {len(classes)} classes of the data are among "
            f"the {len(own)} of {name}, for example {sorted(common)[0]!r}. Say --head new for a new last layer with "
            "the classes of the data, or --head keep to go on with those of the model."
        )
    return False, classes, f"classes: {len(classes)} of the data, a new last layer"


def _draw_last_layer(model, config):
    """A new last layer is drawn even where the old one has its size."""
    fresh = AutoModelForImageClassification.from_config(config)
    layers = [
        name for name, module in model.named_modules() if getattr(module, "out_features", None) == config.num_labels
    ]
    if layers:
        model.get_submodule(layers[-1]).load_state_dict(fresh.get_submodule(layers[-1]).state_dict())
