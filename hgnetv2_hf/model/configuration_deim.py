"""Configurations of the detectors around D-FINE: ``deim`` (DEIM and RT-DETRv4) and ``deim_v2`` (DEIMv2).

Stock Transformers knows neither type. It has a ``deimv2``, which computes another network than DEIMv2.
"""

import json
from typing import TYPE_CHECKING, Optional

from transformers.activations import ACT2FN
from transformers.models.d_fine.configuration_d_fine import DFineConfig

from .remote_code import AUTO_MAPS, DETECTOR_CODE_FILES, SavesCode


if TYPE_CHECKING:  # for the loader of remote code: see CODE_FILES
    from .compat import PretrainedConfig  # noqa: F401
    from .modeling_deim import DEIMModel  # noqa: F401
    from .modeling_deimv2 import DEIMv2Model  # noqa: F401


class DEIMConfig(SavesCode, DFineConfig):
    r"""
    Configuration of DEIM's and RT-DETRv4's detectors: D-FINE's network with SiLU in decoder and heads.

    Takes every argument of `transformers.DFineConfig` and

    Args:
        head_activation_function (`str`, defaults to `"silu"`): of the heads that place queries and predict boxes, and
            of the location quality estimator. `decoder_activation_function`, of the decoder's feed-forward layers, is
            `"silu"` by default, too, and `freeze_backbone_batch_norms` is `False`.

    Source: DEIM `configs/base/dfine_hgnetv2.yml` and RT-DETRv4 (`activation`, `mlp_act`).

    Raises:
        `ValueError`: an activation does not exist; the message names the field.

    Example:

        >>> import hgnetv2_hf
        >>> backbone = hgnetv2_hf.HGNetV2Config.from_variant("b0", out_features=["stage2", "stage3", "stage4"])
        >>> config = hgnetv2_hf.DEIMConfig(backbone_config=backbone, encoder_in_channels=[256, 512, 1024])
        >>> config.model_type, config.decoder_activation_function, config.head_activation_function
        ('deim', 'silu', 'silu')
    """

    model_type = "deim"
    code_files = DETECTOR_CODE_FILES

    def __init__(self, head_activation_function: str = "silu", **kwargs):
        kwargs.pop("model_type", None)  # a saved file holds it; it is the class's
        defaults = {"decoder_activation_function": "silu", "freeze_backbone_batch_norms": False}
        super().__init__(**{**defaults, **kwargs})
        self.head_activation_function = head_activation_function
        for field in ("head_activation_function", "decoder_activation_function"):
            if not isinstance(getattr(self, field), str) or getattr(self, field) not in ACT2FN:
                raise ValueError(f"`{field}` is {getattr(self, field)!r}, expected the name of an activation.")

    def to_json_string(self, use_diff: bool = True) -> str:
        """The content of ``config.json``."""
        output = json.loads(super().to_json_string(use_diff=use_diff))
        output["auto_map"] = AUTO_MAPS[self.model_type]
        return json.dumps(output, indent=2, sort_keys=True) + "\n"


class DEIMv2Config(DEIMConfig):
    r"""
    Configuration of DEIMv2's detectors with HGNetV2.

    Takes every argument of [`DEIMConfig`] and

    Args:
        encoder_type (`"hybrid"` or `"lite"`, defaults to `"hybrid"`): `"lite"` makes two levels from the backbone's
            last map (Atto, Femto, Pico).
        encoder_block (`"elan4"` or `"elan5"`, defaults to `"elan5"`): of the hybrid encoder's fusion: `RepNCSPELAN4`
            (S, N; also the lite encoder's) or `RepNCSPELAN5` (M, L, X).
        encoder_blocks (`int`, *optional*): bottlenecks per fusion block; `round(3 * depth_mult)` by default.
        use_gateway (`bool`, defaults to `True`): a gate behind cross-attention, in the place of a sum and a norm.
        share_bbox_head (`bool`, defaults to `False`): one box head for all layers of the decoder.
        share_score_head (`bool`, defaults to `False`): one class head.

    Source: DEIMv2 `configs/deimv2` and `engine/deim`.

    Raises:
        `ValueError`: a field has none of its values, or layers behind the one that answers are asked for, which no
            published configuration has.

    Example:

        >>> import hgnetv2_hf
        >>> backbone = hgnetv2_hf.HGNetV2Config.from_variant("b0", out_features=["stage3", "stage4"])
        >>> config = hgnetv2_hf.DEIMv2Config(
        ...     backbone_config=backbone, encoder_in_channels=[512, 1024], num_feature_levels=2, encoder_block="elan4",
        ...     feat_strides=[16, 32], encode_proj_layers=[1], decoder_in_channels=[256, 256], decoder_n_points=[6, 6],
        ... )
        >>> config.model_type, config.use_gateway
        ('deim_v2', True)
    """

    model_type = "deim_v2"

    def __init__(
        self,
        encoder_type: str = "hybrid",
        encoder_block: str = "elan5",
        encoder_blocks: Optional[int] = None,
        use_gateway: bool = True,
        share_bbox_head: bool = False,
        share_score_head: bool = False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.encoder_type = encoder_type
        self.encoder_block = encoder_block
        self.encoder_blocks = round(3 * self.depth_mult) if encoder_blocks is None else encoder_blocks
        self.use_gateway = use_gateway
        self.share_bbox_head = share_bbox_head
        self.share_score_head = share_score_head
        for field, values in (("encoder_type", ("hybrid", "lite")), ("encoder_block", ("elan4", "elan5"))):
            if getattr(self, field) not in values:
                raise ValueError(f"`{field}` is {getattr(self, field)!r}, expected {' or '.join(values)}.")
        if self.eval_idx not in (-1, self.decoder_layers - 1):
            raise ValueError(f"`eval_idx` is {self.eval_idx}, expected -1: the last layer answers.")


__all__ = ["DEIMConfig", "DEIMv2Config"]
