"""What no tensor shows, each value with where it comes from."""

import json
from math import isfinite
from pathlib import Path

from ..errors import ConversionError
from ..hub.published import ASSETS, PP_HGNET_RESIZE_SHORT
from ..model.configuration_hgnetv2 import PADDLE_EPSILON
from ..model.image_processing_hgnetv2 import IMAGENET_MEAN, IMAGENET_STD
from ..model.variants import DOWNSAMPLE_STRIDE, PP_HGNET_VARIANTS, STEM_STRIDES
from ..wording import counted
from . import ml_decoder
from .architecture import is_pp_hgnet, name_variant
from .timm_folder import REASON


OPTIONS = (
    "resize_short",
    "crop_size",
    "image_size",
    "pool_padding",
    "dropout_prob",
    "num_labels",
    "decoder_attention_heads",
)
_OF_CLASSIFIERS = ("dropout_prob", "image_size", "num_labels", "decoder_attention_heads")
_EVERYWHERE = "every published HGNetV2"
_EVERY_PP_HGNET = "every published PP-HGNet"
_CLASSIFIERS = "every published ImageNet classifier"


def assume(source, layout, task, fields, options):
    """
    Args:
        source ([`Source`]): may declare values in files beside the weights, or be a published checkpoint.
        layout ([`Layout`]): the program that the weights come from.
        task (`str`): `"classification"` or `"backbone"`.
        fields (`dict`): what the tensors show.
        options (`dict`): of [`OPTIONS`]; `None` where not given.

    Returns:
        `dict[str, tuple]`: field to value and reason. An option counts more than what a file beside the weights
        declares, that more than the published checkpoint of this name, and that more than what all of them share.

    Raises:
        `ConversionError`: an option does not fit the network.
    """
    has_dropout = task == "classification" and fields["use_last_conv"]
    if task == "backbone" and any(options[name] is not None for name in _OF_CLASSIFIERS):
        raise ConversionError(
            "The options dropout, image_size, num_labels and num_heads are for classifiers; leave them out for a "
            "backbone alone."
        )
    if options["dropout_prob"] and not has_dropout:
        raise ConversionError(
            "PaddleClas drops out only behind its last convolution, which this network does not have."
        )
    defaults = assume_trunk(fields)
    if is_pp_hgnet(fields):
        if options["pool_padding"]:
            raise ConversionError(
                "The option pool_padding is about PP-HGNetV2; PP-HGNet pads its max-pool in one way."
            )
    elif fields["use_learnable_affine_block"] or has_dropout or options["pool_padding"]:
        defaults["pool_padding"] = (layout.pool_padding, _why_padding(layout))
    if has_dropout:
        defaults["dropout_prob"] = _dropout(layout, name_variant(fields))
    if task == "classification" and fields.get("has_keras_head"):
        defaults["head_pooling"] = ("avg", "KerasHub's default")
    has_decoder = task == "classification" and "decoder_queries" in fields
    if has_decoder:
        defaults.update(ml_decoder.assume_decoder(fields))
    elif options["decoder_attention_heads"]:
        raise ConversionError(f"The option num_heads is for ML-Decoders, and {source.path} holds none.")
    if task == "classification":
        defaults.update(_preprocessing(source, layout, name_variant(fields), has_decoder, options))
    assumed = {}
    if "problem_type" in source.declared:
        assumed["problem_type"] = source.declared["problem_type"]
    for field, default in defaults.items():
        option = options.get(field)
        assumed[field] = (option, "option") if option is not None else source.declared.get(field, default)
    if has_decoder:
        ml_decoder.check_heads(fields, assumed["decoder_attention_heads"][0])
    if task == "classification" and layout.title == "timm":
        arguments = source.timm.arguments if source.timm is not None else {}
        assumed["global_pool"] = ("avg", REASON if "global_pool" in arguments else "timm's default")
    if task == "classification":
        assumed.update(_count(source, fields, options["num_labels"]))
        assumed.update(_labels(source, assumed.get("num_labels", (fields["num_labels"],))[0]))
        for field in ("image_mean", "image_std"):
            assumed[field] = _per_channel(field, *assumed[field], fields["num_channels"])
    return assumed


def _count(source, fields, wanted):
    """The number of labels under ``num_labels`` where the tensors leave it open."""
    said, reason = wanted, "option"
    if said is None and "id2label" in source.declared:
        said, reason = len(source.declared["id2label"][0]), source.declared["id2label"][1]
    elif said is None and "num_labels" in source.declared:
        said, reason = source.declared["num_labels"]
    if said is not None and wanted is None and "decoder_queries" not in fields:
        return {}  # names that are too few or too many are an error of their own
    count, is_open = ml_decoder.count_labels(source.path, fields, said)
    return {"num_labels": (count, reason)} if is_open else {}


def assume_trunk(fields):
    """What no tensor of any network shows: activation and strides; arguments and result as in [`assume`]."""
    if is_pp_hgnet(fields):
        convolutions = len(fields["stem_channels"]) - 1
        return {
            "hidden_act": ("relu", _EVERY_PP_HGNET),
            "stem_strides": ([2] + [1] * (convolutions - 1) + [2], f"{_EVERY_PP_HGNET}; the last is the pool's"),
            "stage_downsample_strides": ([DOWNSAMPLE_STRIDE] * len(fields["stage_in_channels"]), _EVERY_PP_HGNET),
            "batch_norm_eps": (PADDLE_EPSILON, "1e-5 as Paddle keeps it, where every published PP-HGNet was trained"),
        }
    return {
        "hidden_act": ("relu", _EVERYWHERE),
        "stem_strides": (list(STEM_STRIDES), _EVERYWHERE),
        "stage_downsample_strides": ([DOWNSAMPLE_STRIDE] * len(fields["stage_in_channels"]), _EVERYWHERE),
    }


def _per_channel(field, values, reason, channels):
    """One value per channel. Every program hands over RGB; a network with one channel sees the grey of it."""
    if channels not in (1, 3):
        raise ConversionError(
            f"The classifier takes images of {counted(channels, 'channel')}, and image processors give 3, or 1 for "
            "grey: only its network converts (--task backbone)."
        )
    values = list(values) if isinstance(values, (list, tuple)) else [values]
    is_std = field == "image_std"
    if not all(type(value) in (int, float) and isfinite(value) and (value > 0 or not is_std) for value in values):
        kind = "a positive number" if is_std else "a number"
        raise ConversionError(f"The {field} ({reason}) holds something that is not {kind}.")
    if len(values) == channels:
        return values, reason
    if len(values) == 1:
        return values * channels, f"{reason}, the same for each channel"
    if channels == 1:
        return [sum(values) / len(values)], f"{reason}, averaged over the channels as timm does"
    raise ConversionError(
        f"The {field} ({reason}) has {counted(len(values), 'value')}; the network takes "
        f"{counted(channels, 'channel')}."
    )


def _why_padding(layout):
    if layout.title == "timm":
        return "trained in PaddleClas, though timm itself pads with zeros"
    return f"as in {layout.title}"


def _dropout(layout, variant):
    """PaddleClas's dropout multiplies in evaluation, timm's does nothing there."""
    own = PP_HGNET_VARIANTS[variant].dropout_prob if variant in PP_HGNET_VARIANTS else 0.0
    if own and layout.title == "timm":
        return 0.0, f"as timm computes it; PaddleClas's PPHGNet_{variant} has {own}"
    return (own, f"as PaddleClas's PPHGNet_{variant} sets it") if own else (0.0, "published weights have none")


def _preprocessing(source, layout, variant, has_decoder, options):
    """Either the short side and a crop, or one size for all; which, says an option or what is known of the file."""
    declares_a_size = "image_size" in source.declared
    is_one_size = declares_a_size or (has_decoder and "resize_short" not in source.declared)
    if options["image_size"] is not None and (options["resize_short"] or options["crop_size"]):
        raise ConversionError("Images get one size (--image-size) or a short side and a crop, not both.")
    if options["image_size"] is not None or (is_one_size and not (options["resize_short"] or options["crop_size"])):
        reason = f"published with {source.name}" if source.row is not None else "PaddleX's ML-Decoder classifiers"
        size = {"image_size": ([ml_decoder.IMAGE_SIZE] * 2, reason)}
    else:
        size = _short_side_and_crop(source, layout, variant)
    resample = (ml_decoder.BILINEAR, "bilinear, PaddleX's ML-Decoder classifiers")
    return {
        **size,
        "resample": resample if has_decoder else (3, f"bicubic, {_CLASSIFIERS}"),
        "image_mean": (list(IMAGENET_MEAN), _CLASSIFIERS),
        "image_std": (list(IMAGENET_STD), _CLASSIFIERS),
    }


def _short_side_and_crop(source, layout, variant):
    if source.row is not None and source.row.resize_short:
        published = f"published with {source.name}"
        short, crop = (source.row.resize_short, published), (source.row.crop_size, published)
    else:
        crop = (224, _CLASSIFIERS)
        if variant in PP_HGNET_RESIZE_SHORT and layout.title == "timm":
            short = (232, "timm's crop_pct of 0.965")
        elif variant in PP_HGNET_RESIZE_SHORT:
            short = (PP_HGNET_RESIZE_SHORT[variant], f"PaddleClas's training configuration of {variant}")
        elif "_ssld" in Path(source.path).name:
            short = (236, "PaddleClas's SSLD configurations")
        else:
            short = (232, "PaddleClas's training configurations")
    return {"resize_short": short, "crop_size": crop}


def _labels(source, num_labels):
    """The names of the classes under ``id2label``, and what they are under ``labels``; nothing where nobody says."""
    if "id2label" in source.declared:
        return declared_labels(source, num_labels)
    labels, reason = None, "1000 classes"
    if source.row is not None:
        labels, reason = source.row.labels, f"published with {source.name}"
    elif num_labels == 1000:
        labels = "imagenet-1k"
    if labels is None:
        return {}
    names = json.loads((ASSETS / f"labels_{labels}.json").read_text(encoding="utf-8"))
    if len(names) != num_labels:
        return {}
    return {"labels": (labels, reason), "id2label": (dict(enumerate(names)), "")}


def declared_labels(source, num_labels):
    """The names that a file beside the weights gives, as the fields `labels` and `id2label`."""
    id2label, reason = source.declared["id2label"]
    if sorted(id2label) != list(range(num_labels)):
        raise ConversionError(
            f"The labels of {source.path} ({reason}) are for {counted(len(id2label), 'class', 'classes')}, and its "
            f"tensors for {num_labels}."
        )
    return {"labels": ("named", reason), "id2label": (id2label, "")}
