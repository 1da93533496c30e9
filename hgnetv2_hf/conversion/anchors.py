"""The image size that a detector's stored anchors were computed for.

Source: D-FINE ``src/zoo/dfine/dfine_decoder.py`` and RT-DETRv2 ``rtdetrv2_decoder.py``, ``_generate_anchors``: per
level and cell the logit of (cx, cy, w, h), infinite where one of them is within 0.01 of the border. Transformers
computes the same at run time.
"""

import math

import torch

from ..errors import ConversionError


_GRID_SIZE, _BORDER = 0.05, 0.01
_MAX_CELLS = 2**16  # of the coarsest level: 8192 × 8192 pixels at stride 32


def image_size_of(anchors, strides):
    """
    Args:
        anchors (`torch.Tensor`): `(1, n, 4)`, as the file holds them.
        strides (`list[int]`): of the feature levels, finest first; the sides are multiples of the last.

    Returns:
        `tuple[int, int]`: height and width in pixels.

    Raises:
        `ConversionError`: no image size gives these anchors.
    """
    coarsest = strides[-1]
    cells, rest = divmod(
        anchors.shape[1] if anchors.ndim == 3 else 0, sum((coarsest // each) ** 2 for each in strides)
    )
    if (
        rest == 0
        and 0 < cells <= _MAX_CELLS
        and anchors.shape == (1, anchors.shape[1], 4)
        and anchors.is_floating_point()
    ):
        given, tolerance = anchors[0].double().sigmoid(), max(1e-6, 4 * torch.finfo(anchors.dtype).eps)
        for height in _divisors(cells):
            size = height * coarsest, cells // height * coarsest
            # The coarsest level, at the end, tells the sizes apart; the others must agree.
            for levels in (slice(-1, None), slice(None)):
                expected = _anchors(size, strides, levels)
                if not ((given[-len(expected) :] - expected).abs() <= tolerance).all():  # NaN agrees with nothing
                    break
            else:
                return size
    raise ConversionError(
        f"The anchors in the file, of shape {list(anchors.shape)}, are those of no image size for maps of strides "
        f"{strides}."
    )


def anchors_of(size, strides, dtype=torch.float32):
    """
    Args:
        size (`list[int]`): height and width in pixels.
        strides (`list[int]`): of the feature levels, finest first.
        dtype (`torch.dtype`): the precision that they are computed in.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: anchors `(1, n, 4)` as logits, infinite where they are not valid, and
        `(1, n, 1)` whether they are, as the programs keep them.
    """
    anchors = _anchors(size, strides, slice(None), dtype)
    valid = (anchors < 1).all(-1, keepdim=True)
    anchors = anchors.to(dtype)
    logits = torch.log(anchors / (1 - anchors))
    return torch.where(valid, logits, torch.inf)[None], valid[None]


def _divisors(number):
    small = [each for each in range(1, math.isqrt(number) + 1) if number % each == 0]
    return sorted({*small, *(number // each for each in small)})


def _anchors(size, strides, levels, dtype=torch.float32):
    """The anchors of these levels as numbers in 0…1, and 1 where the file holds infinity."""
    anchors = []
    for level, stride in list(enumerate(strides))[levels]:
        height, width = (side // stride for side in size)
        y, x = torch.meshgrid(*(torch.arange(side, dtype=dtype) for side in (height, width)), indexing="ij")
        centres = torch.stack([(x + 0.5) / width, (y + 0.5) / height], -1)
        anchors.append(torch.cat([centres, torch.full_like(centres, _GRID_SIZE * 2**level)], -1).reshape(-1, 4))
    anchors = torch.cat(anchors)  # in the precision of where they were computed: 0.5 / 50 lies on the border
    valid = ((anchors > _BORDER) & (anchors < 1 - _BORDER)).all(-1, keepdim=True)
    return torch.where(valid, anchors, 1.0).double()
