"""Where training programs put weights inside their files: under keys, and behind prefixes of the names."""

# Averaged weights before the others.
NESTINGS = (("ema", "module"), ("state_dict_ema",), ("model",), ("state_dict",))
# DataParallel's, torch.compile's, Paddle's DataParallel's.
_WRAPPERS = ("module.", "_orig_mod.", "_layers.")
_STUDENT, _TEACHER = "Student.", "Teacher."  # in PaddleClas's distillation models


def unwrap(content, kind):
    """
    Args:
        content: what the file holds.
        kind (`type` or `tuple[type]`): what is a tensor.

    Returns:
        `tuple[Any, str]`: the dictionary that holds tensors, and its place, such as `"ema.module"`, or `""`;
        ``content`` itself where there is none or it holds tensors.
    """

    def holds_tensors(value):
        return isinstance(value, dict) and any(isinstance(each, kind) for each in value.values())

    if isinstance(content, dict) and not holds_tensors(content):
        for nesting in NESTINGS:
            inner = content
            for key in nesting:
                inner = inner.get(key) if isinstance(inner, dict) else None
            if holds_tensors(inner):
                return inner, ".".join(nesting)
    return content, ""


def strip_prefixes(tensors):
    """
    Takes off prefixes that all names share, and leaves a teacher beside its student out.

    Args:
        tensors (`dict[str, Any]`): by name.

    Returns:
        `tuple[dict[str, Any], str]`: the same by their plain names, and `"Student"` where it was taken, or `""`.
    """
    place = ""
    while tensors:
        if any(name.startswith(_STUDENT) for name in tensors) and all(
            name.startswith((_STUDENT, _TEACHER)) for name in tensors
        ):
            tensors = {name: tensor for name, tensor in tensors.items() if name.startswith(_STUDENT)}
            prefix, place = _STUDENT, _STUDENT.rstrip(".")
        else:
            prefix = next((each for each in _WRAPPERS if all(name.startswith(each) for name in tensors)), None)
        if prefix is None:
            break
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors, place
