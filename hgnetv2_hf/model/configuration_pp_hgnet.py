"""Configuration ``pp_hgnet``: PP-HGNet, the network before PP-HGNetV2. Stock Transformers does not have it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Optional

from .configuration_hgnetv2 import FIELD_CHECKS, HEAD_CHECKS, PADDLE_EPSILON, NetworkConfig, is_number
from .remote_code import PP_HGNET_CODE_FILES
from .variants import DOWNSAMPLE_STRIDE, PP_HGNET_VARIANTS, architecture_fields, canonical_name


if TYPE_CHECKING:  # for the loader of remote code: see CODE_FILES
    from .compat import PretrainedConfig  # noqa: F401
    from .image_processing_hgnetv2 import HGNetV2ImageProcessor  # noqa: F401
    from .modeling_hgnetv2 import HGNetV2Model  # noqa: F401
    from .modeling_pp_hgnet import PPHGNetModel  # noqa: F401


class PPHGNetConfig(NetworkConfig):
    r"""
    Configuration of PP-HGNet, the first version. The defaults are those of `tiny`.

    Args:
        num_channels (`int`, defaults to 3): channels of the input image.
        hidden_act (`str`, defaults to `"relu"`): activation of every block and of the head.
        out_features (`list[str]`, *optional*): maps a backbone returns, of `"stem"`, `"stage1"`, …; the last by
            default.
        out_indices (`list[int]`, *optional*): the same by index.
        stem_channels (`list[int]`, defaults to `[3, 48, 48, 96]`): the images' channels, and the width of each of the
            stem's 3×3 convolutions.
        stage_in_channels, stage_mid_channels, stage_out_channels (`list[int]`): widths per stage; their length is the
            number of stages.
        stage_num_blocks (`list[int]`): blocks per stage.
        stage_downsample (`list[bool]`): whether a stage begins with a depthwise convolution of stride 2.
        stage_numb_of_layers (`list[int]`): 3×3 convolutions per block.
        use_last_conv (`bool`, defaults to `True`): the head's 1×1 convolution between pooling and `fc`.
        class_expand (`int`, defaults to 2048): its output width.
        dropout_prob (`float`, defaults to 0.0): Paddle's `downscale_in_infer` dropout before `fc`: training drops
            without rescaling, evaluation multiplies by `1 - dropout_prob`. PaddleClas's `base` has 0.2.
        batch_norm_eps (`float`, defaults to 1e-5 rounded to float32): batch norm's epsilon, as Paddle keeps it; timm's
            is 1e-5.
        initializer_range (`float`, defaults to 0.02): standard deviation of the initial weights of `fc`.

    Unknown keys are kept and ignored.

    Raises:
        `ValueError`: a field cannot build a network; the message names the field.

    Source: PaddleClas `ppcls/arch/backbone/legendary_models/pp_hgnet.py`, class `PPHGNet`.

    Example:

        >>> import hgnetv2_hf
        >>> config = hgnetv2_hf.PPHGNetConfig.from_variant("small", out_features=["stage3", "stage4"])
        >>> config.stage_out_channels, config.out_indices, config.num_labels
        ([256, 512, 768, 1024], [3, 4], 1000)
    """

    model_type = "pp_hgnet"
    code_files = PP_HGNET_CODE_FILES

    def __init__(
        self,
        num_channels: int = 3,
        hidden_act: str = "relu",
        out_features: Optional[list[str]] = None,
        out_indices: Optional[list[int]] = None,
        stem_channels: Sequence[int] = (3, 48, 48, 96),
        stage_in_channels: Sequence[int] = (96, 224, 448, 512),
        stage_mid_channels: Sequence[int] = (96, 128, 160, 192),
        stage_out_channels: Sequence[int] = (224, 448, 512, 768),
        stage_num_blocks: Sequence[int] = (1, 1, 2, 1),
        stage_downsample: Sequence[bool] = (False, True, True, True),
        stage_numb_of_layers: Sequence[int] = (5, 5, 5, 5),
        use_last_conv: bool = True,
        class_expand: int = 2048,
        dropout_prob: float = 0.0,
        batch_norm_eps: float = PADDLE_EPSILON,
        initializer_range: float = 0.02,
        **kwargs,
    ):
        fields = {
            "num_channels": num_channels,
            "hidden_act": hidden_act,
            "stem_channels": stem_channels,
            "stage_in_channels": stage_in_channels,
            "stage_mid_channels": stage_mid_channels,
            "stage_out_channels": stage_out_channels,
            "stage_num_blocks": stage_num_blocks,
            "stage_downsample": stage_downsample,
            "stage_numb_of_layers": stage_numb_of_layers,
            "use_last_conv": use_last_conv,
            "class_expand": class_expand,
            "dropout_prob": dropout_prob,
            "batch_norm_eps": batch_norm_eps,
            "initializer_range": initializer_range,
        }
        super().__init__(fields, out_features, out_indices, **kwargs)

    @classmethod
    def from_variant(cls, variant: str, **kwargs) -> "PPHGNetConfig":
        """
        Configuration of a published architecture.

        Args:
            variant (`str`): `"tiny"`, `"small"` or `"base"`.
            kwargs: any configuration argument; overrides the variant's. `num_labels` is 1000 by default.

        Raises:
            `ValueError`: there is no such variant.
        """
        name = canonical_name(variant, PP_HGNET_VARIANTS)
        fields = {**architecture_fields(name), "dropout_prob": PP_HGNET_VARIANTS[name].dropout_prob, **kwargs}
        if "id2label" not in fields:
            fields.setdefault("num_labels", 1000)
        return cls(**fields)

    @property
    def field_checks(self):
        epsilon = ("batch_norm_eps", lambda value: is_number(value) and value > 0, "a positive number")
        return (*FIELD_CHECKS, *HEAD_CHECKS, epsilon)

    # What PP-HGNetV2 has in variants and PP-HGNet in one.

    @property
    def stage_downsample_strides(self):
        return [DOWNSAMPLE_STRIDE] * len(self.stage_in_channels)

    @property
    def stage_kernel_size(self):
        return [3] * len(self.stage_in_channels)

    @property
    def stage_light_block(self):
        return [False] * len(self.stage_in_channels)

    @property
    def use_learnable_affine_block(self):
        return False

    def has_default_strides(self):
        return True


__all__ = ["PPHGNetConfig"]
