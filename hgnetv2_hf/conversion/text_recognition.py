"""PaddleOCR's recognition networks: a backbone that narrows lines of text in height only, which no tensor shows.

Source: PaddleX `paddlex/modules/base/utils/pdparams2safetensors/model_config.py`, PP-OCRv5_server_rec.
"""

from ..errors import ConversionError


_HEADS = ("head.ctc_encoder.", "head.ctc_head.")  # of PaddleOCR's recognition, and of nothing else
STRIDES = {
    "stem_strides": [2, 1, 1, 1, 1],
    "stage_downsample_strides": [[2, 1], [1, 2], [2, 1], [2, 1]],
}


def declare_strides(path, others, fields):
    """
    Args:
        path (`str`): the file, for the message.
        others (`list[str]`): the names of the tensors beside the network.
        fields (`dict`): what the tensors show (see `architecture.py`).

    Returns:
        `dict[str, tuple]`: field to value and reason; empty unless the file holds such a network.

    Raises:
        `ConversionError`: it holds one whose strides no configuration here expresses.
    """
    if not any(name.startswith(_HEADS) for name in others):
        return {}
    if "use_learnable_affine_block" not in fields:
        raise ConversionError(
            f"{path} recognises text with a PP-HGNet of its own strides, which no configuration of this package has."
        )
    if fields["stage_downsample"] != [True] * 4:
        raise ConversionError(
            f"{path} recognises text with a network whose strides are unknown here: other than PP-OCRv5's, it does "
            "not downsample in each of four stages."
        )
    return {field: (value, "PP-OCRv5's recognition, by its head") for field, value in STRIDES.items()}
