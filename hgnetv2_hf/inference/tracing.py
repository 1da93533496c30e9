"""What keeps batch and image size open where PyTorch traces Transformers' detectors."""

import builtins
import contextlib
import logging
import sys
import warnings

import torch


@contextlib.contextmanager
def open_shapes(model):
    """
    Inside the block a detector can be traced with an open batch and image size; anchors follow the size.

    Transformers' forwards ask for `len` of a tensor, turn sizes into `int`, and check sums of them. Each of these
    fixes a size in the graph, or leaves an operation that exporters do not know. Under these names their modules get
    what keeps the size a symbol. This can go when their forwards ask for `shape`.

    Args:
        model (`nn.Module`): a copy of its own; its configuration is changed for good.
    """
    for module in model.modules():
        if getattr(getattr(module, "config", None), "anchor_image_size", None):
            module.config.anchor_image_size = None
    with contextlib.ExitStack() as stack:
        for name in _modules_of(model):
            for function, replacement in _REPLACEMENTS.items():
                stack.enter_context(_replaced(sys.modules[name], function, replacement))
        yield


def _modules_of(model):
    classes = {base for module in model.modules() for base in type(module).__mro__}
    return {cls.__module__ for cls in classes if cls.__module__.startswith("transformers.models.")}


def _length(value):
    return value.shape[0] if isinstance(value, torch.Tensor) else builtins.len(value)


_REPLACEMENTS = {
    "len": _length,
    "torch_int": lambda size: size,
    "torch_compilable_check": lambda condition, message=None, *_: None,
}


@contextlib.contextmanager
def _replaced(module, name, replacement):
    missing = object()
    previous = vars(module).get(name, missing)
    setattr(module, name, replacement)
    try:
        yield
    finally:
        if previous is missing:
            delattr(module, name)
        else:
            setattr(module, name, previous)


@contextlib.contextmanager
def quiet():
    """Exporters talk to their own developers."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)
