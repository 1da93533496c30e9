"""PaddleClas's ML-Decoder heads: what their tensors show, and what none does.

Sources: PaddleClas ``ppcls/arch/gears/ml_decoder.py`` (defaults) and PaddleX
``paddlex/repo_apis/PaddleClas_api/configs/PP-HGNetV2-B*_ML.yaml`` (448×448 pixels, bilinear, no crop).
"""

from ..errors import ConversionError


SIGNATURE = "fc.group_conv.weight"  # by its name in Transformers, as all here
SHOWN_FIELDS = (
    "decoder_queries",
    "decoder_hidden_size",
    "decoder_layers",
    "decoder_ffn_dim",
    "decoder_self_attention",
)
ASSUMED_FIELDS = ("decoder_attention_heads", "decoder_activation_function", "decoder_dropout", "problem_type")
DEFAULT_HEADS = 8  # PaddleClas's
IMAGE_SIZE = 448
BILINEAR = 2  # PIL's number
_TENSORS_PER_LAYER = 18  # without attention among the queries


def decoder_fields(shape):
    """
    Args:
        shape ([`Shapes`]): of the file.

    Returns:
        `dict`: the configuration fields that the tensors show; `num_labels` is the number of logits, of which the last
        may be cut off (see [`count_labels`]).

    Raises:
        `ConversionError`: a tensor is missing or has the wrong number of dimensions.
    """
    layers = shape.count("fc.layers")
    if not layers or layers * _TENSORS_PER_LAYER > len(shape.tensors):
        raise ConversionError("Tensors are missing: an ML-Decoder has layers of 18 tensors and more.")
    queries, width = shape.of("fc.query_pos_embed.weight", 2)
    return {
        "num_labels": shape.of(SIGNATURE, 4)[0],
        "decoder_queries": queries,
        "decoder_hidden_size": width,
        "decoder_layers": layers,
        "decoder_ffn_dim": shape.of("fc.layers.0.linear1.weight", 2)[0],
        "decoder_self_attention": "fc.layers.0.self_attn.q_proj.weight" in shape.tensors,
    }


def assume_decoder(fields):
    """What no tensor shows, as [`assume`] returns it."""
    default = "PaddleClas's default"
    return {
        "decoder_attention_heads": (DEFAULT_HEADS, default),
        "decoder_activation_function": ("relu", default),
        "decoder_dropout": (0.1, f"{default}, while training only"),
        "pooling before the decoder": ("none", f"{default} (remove_layers: avg_pool, flatten)"),
        "problem_type": ("multi_label_classification", "PaddleX's published ML-Decoder classifiers"),
    }


def check_heads(fields, heads):
    """Raises ``ConversionError`` where a decoder cannot have so many attention heads."""
    width = fields["decoder_hidden_size"]
    if not isinstance(heads, int) or heads < 1 or width % heads:
        raise ConversionError(
            f"An ML-Decoder of width {width} cannot have {heads} attention heads, which no tensor shows; pass "
            "--num-heads with the number that it was trained with."
        )


def count_labels(path, fields, said):
    """
    The number of labels. Each query gives as many logits as the others, so that the last may be too many.

    Args:
        path (`str`): of the file, for the message.
        fields (`dict`): what the tensors show.
        said (`int` or `None`): what an option or names beside the file say.

    Returns:
        `tuple[int, bool]`: the number, and whether the tensors leave it open.

    Raises:
        `ConversionError`: nothing decides, or what is said cannot be.
    """
    most, queries = fields["num_labels"], fields.get("decoder_queries", fields["num_labels"])
    least = most - queries + 1 if most > queries else most
    if said is None and least < most:
        raise ConversionError(
            f"{path} holds an ML-Decoder with {queries} queries and {most} logits, of which the last may belong to no "
            f"label: pass --num-labels with its number of labels, {least} to {most}."
        )
    if said is not None and not least <= said <= most:
        possible = str(most) if least == most else f"{least} to {most}"
        raise ConversionError(f"{said} labels are asked for, and the tensors of {path} show {possible}.")
    return (most if said is None else said), least < most


def paddleclas_ml_decoder(config):
    """The arguments of PaddleClas's `MLDecoder`, for the configuration of a converted classifier."""
    return {
        "class_num": config.num_labels,
        "in_channels": config.class_expand if config.use_last_conv else config.stage_out_channels[-1],
        "query_num": config.decoder_queries,
        "embed_dim": config.decoder_hidden_size,
        "depth": config.decoder_layers,
        "num_heads": config.decoder_attention_heads,
        "mlp_hidden_dim": config.decoder_ffn_dim,
        "activation": config.decoder_activation_function,
        "remove_self_attn": not config.decoder_self_attention,
    }
