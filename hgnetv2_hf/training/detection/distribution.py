"""D-FINE's boxes as distributions: each edge is a weighted sum of bins, and a true edge lies between two of them.

Source: D-FINE (Peng et al. 2024), ``src/zoo/dfine/dfine_utils.py``.
"""

import torch


def bins(up, reg_scale, reg_max):
    """
    The non-uniform bins W(n), `(reg_max + 1,)`: fine around 0, coarse at the ends.

    Args:
        up (`torch.Tensor`): `(1,)`, the model's bound.
        reg_scale (`torch.Tensor`): `(1,)`, its curvature.
        reg_max (`int`): 32 in D-FINE.
    """
    bound = (up.abs() * reg_scale.abs()).reshape(())
    step = (bound + 1) ** (2 / (reg_max - 2))
    right = step ** torch.arange(1, reg_max // 2, device=up.device, dtype=up.dtype) - 1
    end = 2 * bound.reshape(1)
    return torch.cat([-end, -right.flip(0), torch.zeros_like(end), right, end])


@torch.no_grad()
def edges_to_bins(points, corners, up, reg_scale, reg_max):
    """
    Where true edges lie among the bins, seen from reference boxes.

    Args:
        points (`torch.Tensor`): `(n, 4)`, reference boxes, centre and size.
        corners (`torch.Tensor`): `(n, 4)`, true boxes, left, top, right, bottom.
        up, reg_scale, reg_max: see [`bins`].

    Returns:
        `tuple`: the bin on the left `(4 n,)` `int64`, the weight of the one on its right and of itself, `(4 n,)`.
    """
    scale = reg_scale.abs()
    size = points[:, 2:] / scale + 1e-16
    before, after = points[:, :2] - corners[:, :2], corners[:, 2:] - points[:, :2]
    distances = (torch.cat([before / size, after / size], 1) - 0.5 * scale).reshape(-1)
    values = bins(up, reg_scale, reg_max).to(distances.dtype)
    left = (values[None] <= distances[:, None]).sum(1) - 1
    inside = left.clamp(0, reg_max - 1)
    low, high = (distances - values[inside]).abs(), (values[inside + 1] - distances).abs()
    to_right = low / (low + high)
    to_right = torch.where(left < 0, 0.0, torch.where(left >= reg_max, 1.0, to_right))
    return inside, to_right, 1 - to_right
