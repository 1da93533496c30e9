"""Configuration of KerasHub's classifiers: the network with a head that is applied before the pooling.

Stock Transformers knows no such type, and neither do earlier versions of this package.
"""

from typing import TYPE_CHECKING

from .configuration_hgnetv2 import PPHGNetV2Config
from .remote_code import KERAS_CODE_FILES


if TYPE_CHECKING:  # for the loader of remote code: see CODE_FILES
    from .compat import PretrainedConfig  # noqa: F401
    from .image_processing_hgnetv2 import HGNetV2ImageProcessor  # noqa: F401
    from .modeling_hgnetv2 import HGNetV2Model  # noqa: F401
    from .modeling_keras import HGNetV2KerasModel  # noqa: F401
    from .variants import VARIANTS  # noqa: F401


class HGNetV2KerasConfig(PPHGNetV2Config):
    r"""
    Configuration of KerasHub's `HGNetV2ImageClassifier`.

    Takes every argument of [`PPHGNetV2Config`], of which `use_last_conv` is always true and `pool_padding` always
    `"zero"`, and

    Args:
        head_pooling (`"avg"` or `"max"`, defaults to `"avg"`): how the map behind the head's convolution is pooled.
        dropout_prob (`float`, defaults to 0.0): before `fc`, while training only, as in PyTorch: other than Paddle's,
            it never scales in evaluation.

    Source: KerasHub `keras_hub/src/models/hgnetv2/hgnetv2_image_classifier.py`.

    Raises:
        `ValueError`: a field cannot build a network; the message names the field.

    Example:

        >>> import hgnetv2_hf
        >>> config = hgnetv2_hf.HGNetV2KerasConfig.from_variant("b4", head_pooling="max")
        >>> config.num_labels, config.class_expand, config.pool_padding
        (1000, 2048, 'zero')
    """

    model_type = "hgnet_v2_keras"
    code_files = KERAS_CODE_FILES

    def __init__(self, head_pooling: str = "avg", pool_padding: str = "zero", **kwargs):
        self.head_pooling = head_pooling
        super().__init__(pool_padding=pool_padding, **kwargs)

    @property
    def field_checks(self):
        return (
            *super().field_checks,
            ("head_pooling", lambda value: value in ("avg", "max"), '"avg" or "max"'),
            ("use_last_conv", lambda value: value is True, "true, as KerasHub's head has the convolution always"),
            ("pool_padding", lambda value: value == "zero", '"zero", as KerasHub pads'),
        )


__all__ = ["HGNetV2KerasConfig"]
