"""The class and box heads of D-FINE and RT-DETRv2, which Transformers has inside the decoder and beside it.

Transformers 5.0.0, and no other version, gives all layers of the decoder one head, and random ones to a detector
whose file holds the heads once, as `save_pretrained` writes it, both without a word. From a file that holds both
names it reads what other versions read. All of this can go when 5.0.0 is no longer supported.
"""

import os
from pathlib import Path

from safetensors.torch import load_file, save_file


_TYPES = ("d_fine", "rt_detr_v2")
_INSIDE = "model.decoder."
_HEADS = ("class_embed.", "bbox_embed.")


def with_both_names(tensors, model_type):
    """A detector's tensors (`dict[str, torch.Tensor]`), where each head stands under both of its names."""
    if model_type not in _TYPES:
        return tensors
    names = [name.removeprefix(_INSIDE) for name in tensors]
    heads = {name for name in names if name.startswith(_HEADS)}
    both = {name: tensors[_INSIDE + name] if _INSIDE + name in tensors else tensors[name] for name in heads}
    return {**tensors, **both, **{_INSIDE + name: tensor.clone() for name, tensor in both.items()}}


def write_both_names(folder, model_type):
    """Rewrites the `model.safetensors` that `save_pretrained` has just written into a folder of the given type."""
    path = Path(folder) / "model.safetensors"
    if model_type in _TYPES and path.is_file():
        partial = path.with_suffix(".partial")  # the old file is mapped into memory
        save_file(with_both_names(load_file(path), model_type), partial, metadata={"format": "pt"})
        os.replace(partial, path)


def check_heads(model):
    """Raises `ValueError` if the layers of a detector's decoder share what should be heads of their own."""
    if model.config.model_type in _TYPES:
        first, *others = model.model.decoder.class_embed
        if any(head.weight is first.weight for head in others):
            raise ValueError("Transformers 5.0.0 gives all its layers one head; install another version")
