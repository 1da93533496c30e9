"""Configurations: ``hgnet_v2`` (what stock Transformers computes) and ``pp_hgnet_v2`` (what PaddleClas trained)."""

import json
import numbers
from collections.abc import Sequence
from typing import TYPE_CHECKING, Optional, Union

from .compat import (
    TYPES_OLDER_THAN_STRIDES,
    BackboneConfigMixin,
    PretrainedConfig,
    align_out_features,
    enclosing_configuration,
    knows_strides,
)
from .remote_code import AUTO_MAPS, SavesCode
from .variants import DOWNSAMPLE_STRIDE, STEM_STRIDES, VARIANTS, architecture_fields, canonical_name


if TYPE_CHECKING:  # for the loader of remote code: see CODE_FILES
    from .image_processing_hgnetv2 import HGNetV2ImageProcessor  # noqa: F401
    from .modeling_hgnetv2 import HGNetV2Model  # noqa: F401

PADDLE_EPSILON = 9.999999747378752e-06  # 1e-5 in float32


class NetworkConfig(SavesCode, BackboneConfigMixin, PretrainedConfig):
    """What the configurations of PP-HGNetV2 and PP-HGNet share: stages with names, fields that are checked, and files
    that name the code which loads them."""

    def __init__(self, fields, out_features=None, out_indices=None, **kwargs):
        for derived in ("stage_names", "model_type"):  # a saved file holds them; they follow from the rest
            kwargs.pop(derived, None)
        if "num_labels" in kwargs and "id2label" not in kwargs:  # Transformers counts with it before it is checked
            labels = kwargs["num_labels"]
            _require(is_count(labels), "num_labels", labels, "a whole number")
        super().__init__(**kwargs)
        for field, value in fields.items():
            setattr(self, field, as_list(value))
        self.check_architecture()
        self.stage_names = ["stem"] + [f"stage{i + 1}" for i in range(len(self.stage_in_channels))]
        for field, value, kind in (("out_features", out_features, _is_text), ("out_indices", out_indices, _is_whole)):
            _require(value is None or is_list_of(kind, as_list(value)), field, value, "a list of stages, or None")
        align_out_features(self, out_features, out_indices)

    @property
    def field_checks(self):
        """Rows of a field, what it must be, and what the message expects."""
        return FIELD_CHECKS

    def check_architecture(self):
        """Raises ``ValueError`` naming a field that cannot build a network."""
        stages = len(self.stage_in_channels) if isinstance(self.stage_in_channels, list) else 0
        _require(stages > 0, "stage_in_channels", self.stage_in_channels, "a list with one width per stage")
        for field, accepts, kind in _STAGE_CHECKS:
            value = getattr(self, field)
            expected = f"a list with {kind} for each of the {stages} stages of stage_in_channels"
            _require(is_list_of(accepts, value, stages), field, value, expected)
        check_fields(self, self.field_checks)
        self._check_fields_together(stages)

    def _check_fields_together(self, stages):
        """What fields that are right by themselves have to agree on."""
        _require(
            self.stem_channels[0] == self.num_channels,
            "stem_channels",
            self.stem_channels,
            f"a first width equal to num_channels ({self.num_channels})",
        )
        widths = [self.stem_channels[-1], *self.stage_out_channels]
        for i, (given, expected) in enumerate(zip(self.stage_in_channels, widths)):
            before = "the stem's output" if i == 0 else f"stage_out_channels of stage {i}"
            _require(
                given == expected,
                "stage_in_channels",
                self.stage_in_channels,
                f"{expected} for stage {i + 1}, {before}",
            )
        _require(
            is_list_of(_is_stride, self.stage_downsample_strides) and len(self.stage_downsample_strides) >= stages,
            "stage_downsample_strides",
            self.stage_downsample_strides,
            f"a positive whole number or a pair of them for each of the {stages} stages",
        )

    def to_dict(self):
        output = super().to_dict()
        output.pop("auto_map", None)  # belongs to a folder, never to a backbone inside a detector's file
        return output

    def to_json_string(self, use_diff=True):
        """The content of ``config.json``."""
        output = json.loads(super().to_json_string(use_diff=use_diff))
        output["auto_map"] = AUTO_MAPS[output["model_type"]]
        return json.dumps(output, indent=2, sort_keys=True) + "\n"


class HGNetV2Config(NetworkConfig):
    r"""
    Configuration of HGNetV2 as Transformers computes it. Arguments, names and defaults are those of
    `transformers.HGNetV2Config` (5.x); what it saves, every supported stock version computes the same or refuses.

    Args:
        num_channels (`int`, defaults to 3): channels of the input image.
        embedding_size (`int`, defaults to 64): kept for compatibility; builds nothing.
        depths (`list[int]`, defaults to `[3, 4, 6, 3]`): kept for compatibility; builds nothing.
        hidden_sizes (`list[int]`, defaults to `[256, 512, 1024, 2048]`): kept for compatibility; the last entry is the
            input width of the classifier's `fc`. Saved files hold the true widths in these three fields.
        hidden_act (`str`, defaults to `"relu"`): activation of every block (stock applies it to the stem only, so a
            configuration with another activation is saved as `pp_hgnet_v2`).
        out_features (`list[str]`, *optional*): maps a backbone returns, of `"stem"`, `"stage1"`, …; the last by
            default.
        out_indices (`list[int]`, *optional*): the same by index.
        stem_channels (`list[int]`, defaults to `[3, 32, 48]`): input, middle and output width of the stem.
        stem_strides (defaults to `[2, 1, 1, 2, 1]`): stride of `stem1`, `stem2a`, `stem2b`, `stem3`, `stem4`; each an
            `int` or a pair (height, width).
        stage_in_channels, stage_mid_channels, stage_out_channels (`list[int]`): widths per stage; their length is the
            number of stages.
        stage_num_blocks (`list[int]`): blocks per stage.
        stage_downsample (`list[bool]`): whether a stage begins with a strided depthwise convolution.
        stage_downsample_strides (defaults to 2 everywhere): its stride; each an `int` or a pair (height, width).
        stage_light_block (`list[bool]`): pointwise + depthwise layers instead of dense convolutions.
        stage_kernel_size (`list[int]`): odd kernel sizes.
        stage_numb_of_layers (`list[int]`): layers per block.
        use_learnable_affine_block (`bool`, defaults to `False`): LAB, a learned scale and bias after each activation.
        initializer_range (`float`, defaults to 0.02): standard deviation of initial weights, as in stock Transformers.

    Unknown keys are kept and ignored, as in stock Transformers.

    Raises:
        `ValueError`: a field cannot build a network; the message names the field.

    Example:

        >>> import hgnetv2_hf
        >>> config = hgnetv2_hf.HGNetV2Config.from_variant("b4", out_features=["stage3", "stage4"])
        >>> config.stage_out_channels
        [128, 512, 1024, 2048]
        >>> config.out_indices
        [3, 4]
    """

    model_type = "hgnet_v2"

    def __init__(
        self,
        num_channels: int = 3,
        embedding_size: int = 64,
        depths: Sequence[int] = (3, 4, 6, 3),
        hidden_sizes: Sequence[int] = (256, 512, 1024, 2048),
        hidden_act: str = "relu",
        out_features: Optional[list[str]] = None,
        out_indices: Optional[list[int]] = None,
        stem_channels: Sequence[int] = (3, 32, 48),
        stage_in_channels: Sequence[int] = (48, 128, 512, 1024),
        stage_mid_channels: Sequence[int] = (48, 96, 192, 384),
        stage_out_channels: Sequence[int] = (128, 512, 1024, 2048),
        stage_num_blocks: Sequence[int] = (1, 1, 3, 1),
        stage_downsample: Sequence[bool] = (False, True, True, True),
        stage_light_block: Sequence[bool] = (False, False, True, True),
        stage_kernel_size: Sequence[int] = (3, 3, 5, 5),
        stage_numb_of_layers: Sequence[int] = (6, 6, 6, 6),
        use_learnable_affine_block: bool = False,
        initializer_range: float = 0.02,
        stem_strides: Sequence[Union[int, Sequence[int]]] = STEM_STRIDES,
        stage_downsample_strides: Sequence[Union[int, Sequence[int]]] = (DOWNSAMPLE_STRIDE,) * 4,
        **kwargs,
    ):
        strides = as_list(stage_downsample_strides)
        if strides == [DOWNSAMPLE_STRIDE] * 4 and isinstance(stage_in_channels, (list, tuple)):
            strides = [DOWNSAMPLE_STRIDE] * len(stage_in_channels)
        fields = {
            "num_channels": num_channels,
            "embedding_size": embedding_size,
            "depths": depths,
            "hidden_sizes": hidden_sizes,
            "hidden_act": hidden_act,
            "stem_channels": stem_channels,
            "stem_strides": stem_strides,
            "stage_in_channels": stage_in_channels,
            "stage_mid_channels": stage_mid_channels,
            "stage_out_channels": stage_out_channels,
            "stage_num_blocks": stage_num_blocks,
            "stage_downsample": stage_downsample,
            "stage_downsample_strides": strides,
            "stage_light_block": stage_light_block,
            "stage_kernel_size": stage_kernel_size,
            "stage_numb_of_layers": stage_numb_of_layers,
            "use_learnable_affine_block": use_learnable_affine_block,
            "initializer_range": initializer_range,
        }
        super().__init__(fields, out_features, out_indices, **kwargs)

    @classmethod
    def from_variant(cls, variant: str, **kwargs) -> "HGNetV2Config":
        """
        Configuration of a published architecture.

        Args:
            variant (`str`): `"b0"` … `"b6"`, `"l"` (= b4), `"x"` (= b5), `"h"` (= b6), `"pico"`, `"femto"`, `"atto"`.
            kwargs: any configuration argument; overrides the variant's.

        Raises:
            `ValueError`: there is no such variant.
        """
        config = cls(**{**architecture_fields(canonical_name(variant)), **kwargs})
        config.set_compatibility_fields()
        return config

    @classmethod
    def from_stock(cls, stock_config):
        """
        This package's configuration with the fields of a `transformers.HGNetV2Config` object.

        Raises:
            `ValueError`: stock computes another network than the fields say (an activation other than relu; strides
                before Transformers 5.4), and would write a file that hides it.
        """
        config = cls.from_dict(stock_config.to_dict())
        field = "hidden_act" if config.hidden_act != "relu" else "stem_strides"
        if field == "hidden_act" or not (config.has_default_strides() or knows_strides(stock_config)):
            raise ValueError(
                f"Transformers' own HGNetV2Config computes another network than its `{field}` says; build the "
                "configuration with hgnetv2_hf.HGNetV2Config, which honours it and is saved so that stock refuses it."
            )
        return config

    @property
    def stem_pool_padding(self):
        """Value that pads the stem's max-pool on the right and at the bottom: zero, as in Transformers."""
        return 0.0

    @property
    def field_checks(self):
        return (*FIELD_CHECKS, *_V2_FIELD_CHECKS)

    def check_classifier(self):
        """Raises ``ValueError`` when ``fc`` would not fit the last stage."""
        _require(
            isinstance(self.hidden_sizes, list) and self.hidden_sizes[-1:] == self.stage_out_channels[-1:],
            "hidden_sizes",
            self.hidden_sizes,
            f"a last entry equal to the width of the last stage ({self.stage_out_channels[-1]}), which fc receives",
        )

    def set_compatibility_fields(self):
        """Derives ``embedding_size``, ``hidden_sizes``, ``depths``, from which stock reads ``channels``."""
        for field, value in self._compatibility_fields().items():
            setattr(self, field, value)

    def _compatibility_fields(self):
        return {
            "embedding_size": self.stem_channels[2],
            "hidden_sizes": list(self.stage_out_channels),
            "depths": list(self.stage_num_blocks),
        }

    def has_default_strides(self):
        strides = [_pair(stride) for stride in self.stem_strides]
        downsample = zip(self.stage_downsample, self.stage_downsample_strides)
        return strides == [_pair(stride) for stride in STEM_STRIDES] and all(
            _pair(stride) == _pair(DOWNSAMPLE_STRIDE) for used, stride in downsample if used
        )

    def to_dict(self):
        output = super().to_dict()
        output.update(self._compatibility_fields())
        holder = enclosing_configuration(self)
        if holder is not None and self._stock_differs(inside=holder.model_type):
            self._write_as_pp_hgnet_v2(output)
        return output

    def to_json_string(self, use_diff=True):
        """The content of ``config.json``."""
        output = json.loads(super().to_json_string(use_diff=use_diff))
        if self._stock_differs(inside=None):
            self._write_as_pp_hgnet_v2(output)
            output["auto_map"] = AUTO_MAPS[output["model_type"]]
        return json.dumps(output, indent=2, sort_keys=True) + "\n"

    def _stock_differs(self, inside):
        """Whether some supported stock version that opens the file would compute something else without an error."""
        if self.hidden_act != "relu":
            return True
        return not self.has_default_strides() and (inside is None or inside in TYPES_OLDER_THAN_STRIDES)

    def _write_as_pp_hgnet_v2(self, output):
        output.update(model_type="pp_hgnet_v2", use_last_conv=False, pool_padding="zero", dropout_prob=0.0)
        if output.get("architectures"):
            output["architectures"] = [f"PP{name.removeprefix('PP')}" for name in output["architectures"]]


class PPHGNetV2Config(HGNetV2Config):
    r"""
    Configuration of the network that PaddleClas trained. Stock Transformers refuses its model type, `pp_hgnet_v2`.

    Takes every argument of [`HGNetV2Config`] and

    Args:
        use_last_conv (`bool`, defaults to `True`): the head's 1×1 convolution between pooling and `fc`.
        class_expand (`int`, defaults to 2048): its output width.
        dropout_prob (`float`, defaults to 0.0): Paddle's `downscale_in_infer` dropout before `fc`: training drops
            without rescaling, evaluation multiplies by `1 - dropout_prob`.
        pool_padding (`"same"` or `"zero"`, defaults to `"same"`): what pads the stem's max-pool. `"same"` never wins
            (Paddle); `"zero"` is what timm, D-FINE, RT-DETRv2 and Transformers do. They differ only where a stem
            activation is negative, as LAB can make it. Batch norm's epsilon follows: with `"same"` it is Paddle's,
            1e-5 rounded to float32.

    Source: PaddleClas `ppcls/arch/backbone/legendary_models/pp_hgnet_v2.py`, class `PPHGNetV2`.

    Example:

        >>> import hgnetv2_hf
        >>> config = hgnetv2_hf.PPHGNetV2Config.from_variant("b0", num_labels=10)
        >>> config.use_learnable_affine_block, config.class_expand, config.pool_padding
        (True, 2048, 'same')
    """

    model_type = "pp_hgnet_v2"

    def __init__(
        self,
        use_last_conv: bool = True,
        class_expand: int = 2048,
        dropout_prob: float = 0.0,
        pool_padding: str = "same",
        **kwargs,
    ):
        self.use_last_conv = use_last_conv
        self.class_expand = class_expand
        self.dropout_prob = dropout_prob
        self.pool_padding = pool_padding
        super().__init__(**kwargs)

    @classmethod
    def from_variant(cls, variant: str, **kwargs) -> "PPHGNetV2Config":
        name = canonical_name(variant)
        if len(VARIANTS[name].stages) < 4:
            raise ValueError(
                f"Variant {name!r} is a backbone with three stages and no PaddleClas classifier exists for it; "
                f'use HGNetV2Config.from_variant("{name}").'
            )
        if "id2label" not in kwargs:
            kwargs.setdefault("num_labels", 1000)
        return super().from_variant(name, **kwargs)

    @property
    def stem_pool_padding(self):
        """Value that pads the stem's max-pool on the right and at the bottom."""
        return float("-inf") if self.pool_padding == "same" else 0.0

    @property
    def batch_norm_eps(self):
        """Paddle keeps 1e-5 as a float32 number, which shows where a variance is as small; others do not."""
        return PADDLE_EPSILON if self.pool_padding == "same" else 1e-5

    @property
    def field_checks(self):
        padding = ("pool_padding", lambda value: value in ("same", "zero"), '"same" or "zero"')
        return (*super().field_checks, *HEAD_CHECKS, padding)

    def _stock_differs(self, inside):
        return False  # stock refuses pp_hgnet_v2 as it is


def as_list(value):
    return [as_list(item) for item in value] if isinstance(value, (list, tuple)) else value


def is_bool(value):
    return isinstance(value, bool)


def _is_text(value):
    return isinstance(value, str)


def _is_whole(value):
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def is_count(value):
    return _is_whole(value) and value >= 0


def is_positive(value):
    return is_count(value) and value > 0


def _is_stride(value):
    return is_positive(value) or (isinstance(value, list) and len(value) == 2 and all(map(is_positive, value)))


def _pair(stride):
    return tuple(stride) if isinstance(stride, (list, tuple)) else (stride, stride)


def is_list_of(accepts, value, length=None):
    return isinstance(value, list) and length in (None, len(value)) and all(map(accepts, value))


def is_activation(value):
    from transformers.activations import ACT2FN

    return isinstance(value, str) and value in ACT2FN


def is_number(value):
    return isinstance(value, numbers.Real)


def _require(condition, field, value, expected):
    if not condition:
        raise ValueError(f"`{field}` cannot build the network: got {value!r}, expected {expected}.")


def check_fields(config, checks):
    for field, accepts, expected in checks:
        value = getattr(config, field)
        _require(accepts(value), field, value, expected)


# Fields with a value per stage: field, what each value must be, and its name in the message.
_STAGE_CHECKS = (
    ("stage_in_channels", is_positive, "a whole number"),
    ("stage_mid_channels", is_positive, "a whole number"),
    ("stage_out_channels", is_positive, "a whole number"),
    ("stage_num_blocks", is_positive, "a whole number"),
    ("stage_downsample", is_bool, "true or false"),
    ("stage_light_block", is_bool, "true or false"),
    ("stage_kernel_size", is_positive, "a whole number"),
    ("stage_numb_of_layers", is_count, "a whole number"),
)

# In this order, because a row may rely on those above it: field, what it must be, what the message expects.
FIELD_CHECKS = (
    ("num_channels", is_positive, "a positive whole number"),
    (
        "stem_channels",
        lambda widths: is_list_of(is_positive, widths) and len(widths) > 1,
        "at least two positive whole numbers, of which the first is the images' and the last the stem's output",
    ),
    ("stage_kernel_size", lambda sizes: all(size % 2 for size in sizes), "odd kernel sizes"),
    ("hidden_act", is_activation, "the name of an activation in transformers.activations.ACT2FN"),
    ("use_learnable_affine_block", is_bool, "true or false"),
    ("initializer_range", lambda value: is_number(value) and value >= 0, "a number that is not negative"),
)

_V2_FIELD_CHECKS = (
    (
        "stem_channels",
        lambda widths: len(widths) == 3,
        "three positive whole numbers (input, middle, output)",
    ),
    ("stem_channels", lambda widths: widths[1] > 1, "a middle width of at least 2"),
    ("stage_out_channels", lambda widths: min(widths) > 1, "widths above 1"),
    (
        "stem_strides",
        lambda strides: is_list_of(_is_stride, strides, 5),
        "five strides, each a positive whole number or a pair of them",
    ),
    (
        "stem_strides",
        lambda strides: _pair(strides[1]) == _pair(strides[2]) == (1, 1),
        "stride 1 for stem2a and stem2b, whose maps are joined with an undivided one",
    ),
)

# Of PaddleClas's classifiers.
HEAD_CHECKS = (
    ("use_last_conv", is_bool, "true or false"),
    ("class_expand", is_positive, "a positive whole number"),
    (
        "dropout_prob",
        lambda value: is_number(value) and 0 <= value < 1,
        "a probability of at least 0 and below 1",
    ),
)
