"""A detector's encoder proposes a box at every place of its maps, and goes on with the few hundred whose scores are
best. Here the boxes are computed of those alone: the same values, and `enc_outputs_coord_logits`, which nothing else
reads, is left out of the outputs."""

import torch
from torch import nn


def box_chosen_places(model):
    """Lets every detector in this model, in place, compute the boxes of the places that it chooses only."""
    for module in list(model.modules()):
        is_known = type(module).forward.__module__.startswith("transformers.models.")  # others may read all boxes
        if is_known and isinstance(getattr(module, "enc_bbox_head", None), nn.Module):
            module.enc_bbox_head = _LateHead(module.enc_bbox_head)


def without_late_boxes(output):
    """A model's output without what was never computed."""
    if isinstance(output, tuple):
        return tuple(value for value in output if not isinstance(value, _LateBoxes))
    if isinstance(output, dict) and any(isinstance(value, _LateBoxes) for value in output.values()):
        return type(output)(**{name: value for name, value in output.items() if not isinstance(value, _LateBoxes)})
    return output


class _LateHead(nn.Module):
    def __init__(self, head):
        super().__init__()
        self.head = head

    def forward(self, memory):
        if torch.compiler.is_dynamo_compiling():  # which cannot follow an object that is added to a tensor
            return self.head(memory)
        return _LateBoxes(self.head, memory, None)


class _LateBoxes:
    """What Transformers' forwards do with the boxes of all places: they add the anchors and take some."""

    def __init__(self, head, memory, anchors):
        self._head, self._memory, self._anchors = head, memory, anchors
        self.shape = (*memory.shape[:-1], 4)

    def __add__(self, anchors):
        return _LateBoxes(self._head, self._memory, anchors)

    def gather(self, dim, index):
        memory = self._memory.gather(dim, index[..., :1].expand(-1, -1, self._memory.shape[-1]))
        return self._head(memory) + self._anchors.expand(memory.shape[0], -1, -1).gather(dim, index)
