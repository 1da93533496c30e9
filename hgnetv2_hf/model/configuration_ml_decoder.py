"""Configuration of multi-label classifiers: PaddleClas's network with an ML-Decoder in the place of `fc`.

Stock Transformers knows no such type, and neither do earlier versions of this package.
"""

from typing import TYPE_CHECKING, Optional

from .configuration_hgnetv2 import PPHGNetV2Config, check_fields, is_activation, is_bool, is_number, is_positive
from .remote_code import ML_DECODER_CODE_FILES


if TYPE_CHECKING:  # for the loader of remote code: see CODE_FILES
    from .compat import PretrainedConfig  # noqa: F401
    from .image_processing_hgnetv2 import HGNetV2ImageProcessor  # noqa: F401
    from .modeling_hgnetv2 import HGNetV2Model  # noqa: F401
    from .modeling_ml_decoder import PPHGNetV2MLModel  # noqa: F401
    from .variants import VARIANTS  # noqa: F401


class PPHGNetV2MLConfig(PPHGNetV2Config):
    r"""
    Configuration of PaddleClas's network with an ML-Decoder as its classifier, as PaddleX's `PP-HGNetV2-B4_ML`.

    Takes every argument of [`PPHGNetV2Config`] and

    Args:
        decoder_queries (`int`, defaults to 80): queries, of which a model has no more than labels; each gives
            `ceil(num_labels / queries)` logits, and those beyond `num_labels` are cut off.
        decoder_hidden_size (`int`, defaults to 768): width of a query.
        decoder_layers (`int`, defaults to 1): how often the queries look at the map.
        decoder_attention_heads (`int`, defaults to 8): divides `decoder_hidden_size`.
        decoder_ffn_dim (`int`, defaults to 2048): width inside a layer's feed-forward part.
        decoder_activation_function (`str`, defaults to `"relu"`): of the feed-forward part.
        decoder_dropout (`float`, defaults to 0.1): while training, of attention weights and of each part's output.
        decoder_self_attention (`bool`, defaults to `False`): whether the queries look at each other in the first
            layer; in all further ones they do, as PaddleClas builds them.
        problem_type (`str`, defaults to `"multi_label_classification"`): the loss is binary cross entropy and the
            scores of `pipeline` are sigmoids; `"single_label_classification"` for labels that exclude each other.

    Source: PaddleClas `ppcls/arch/gears/ml_decoder.py`, class `MLDecoder`; Ridnik et al. 2021,
    https://arxiv.org/abs/2111.12933.

    Raises:
        `ValueError`: a field cannot build a network; the message names the field.

    Example:

        >>> import hgnetv2_hf
        >>> config = hgnetv2_hf.PPHGNetV2MLConfig.from_variant("b0")
        >>> config.num_labels, config.decoder_hidden_size, config.problem_type
        (80, 768, 'multi_label_classification')
    """

    model_type = "pp_hgnet_v2_ml"
    code_files = ML_DECODER_CODE_FILES

    def __init__(
        self,
        decoder_queries: int = 80,
        decoder_hidden_size: int = 768,
        decoder_layers: int = 1,
        decoder_attention_heads: int = 8,
        decoder_ffn_dim: int = 2048,
        decoder_activation_function: str = "relu",
        decoder_dropout: float = 0.1,
        decoder_self_attention: bool = False,
        problem_type: Optional[str] = "multi_label_classification",
        **kwargs,
    ):
        self.decoder_queries = decoder_queries
        self.decoder_hidden_size = decoder_hidden_size
        self.decoder_layers = decoder_layers
        self.decoder_attention_heads = decoder_attention_heads
        self.decoder_ffn_dim = decoder_ffn_dim
        self.decoder_activation_function = decoder_activation_function
        self.decoder_dropout = decoder_dropout
        self.decoder_self_attention = decoder_self_attention
        super().__init__(problem_type=problem_type, **kwargs)

    @classmethod
    def from_variant(cls, variant: str, **kwargs) -> "PPHGNetV2MLConfig":
        if "id2label" not in kwargs:
            kwargs.setdefault("num_labels", 80)
        return super().from_variant(variant, **kwargs)

    def check_architecture(self):
        super().check_architecture()
        check_fields(self, _DECODER_FIELD_CHECKS)
        if self.decoder_hidden_size % self.decoder_attention_heads:
            raise ValueError(
                f"`decoder_attention_heads` cannot build an ML-Decoder: got {self.decoder_attention_heads}, expected "
                f"a divisor of decoder_hidden_size ({self.decoder_hidden_size})."
            )


_DECODER_FIELD_CHECKS = (
    *(
        (field, is_positive, "a positive whole number")
        for field in (
            "decoder_queries",
            "decoder_hidden_size",
            "decoder_layers",
            "decoder_attention_heads",
            "decoder_ffn_dim",
        )
    ),
    ("decoder_activation_function", is_activation, "the name of an activation in transformers.activations.ACT2FN"),
    (
        "decoder_dropout",
        lambda value: is_number(value) and 0 <= value < 1,
        "a probability of at least 0 and below 1",
    ),
    ("decoder_self_attention", is_bool, "true or false"),
)


__all__ = ["PPHGNetV2MLConfig"]
