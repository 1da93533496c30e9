"""Where training programs put weights inside their files: under keys, and behind prefixes of the names.

A file may hold several sets of weights: averaged ones beside the others, a student beside its teacher. Each has a
place, the keys and the prefix joined by dots: ``ema.module``, ``model.Teacher``.
"""

from typing import Any, NamedTuple

from ..errors import ConversionError


# Keys of dictionaries, the outer one first, and what `weights` calls what lies there. In the order of preference:
# averaged weights before the others.
NESTINGS = {
    ("ema", "module"): "ema",  # D-FINE, RT-DETR
    ("state_dict_ema",): "ema",  # timm's trainer
    ("ema_state_dict",): "ema",  # MMEngine and others
    ("model_ema",): "ema",  # torchvision's reference trainings
    ("ema_model",): "ema",
    ("params_ema",): "ema",  # BasicSR
    ("ema",): "ema",
    ("model",): "model",
    ("state_dict",): "model",
    ("model_state_dict",): "model",
    ("params",): "model",
    ("student",): "student",
    ("teacher",): "teacher",
}
# Prefixes that part a dictionary into sets. PaddleClas's distillation models have the first two.
PREFIXES = {
    "Student.": "student",
    "student.": "student",
    "Teacher.": "teacher",
    "teacher.": "teacher",
    "ema_model.": "ema",
    "model_ema.": "ema",
    "model.": "model",
}
KINDS = ("ema", "model", "student", "teacher")
# DataParallel's, torch.compile's, Paddle's DataParallel's.
_WRAPPERS = ("module.", "_orig_mod.", "_layers.")
_AVERAGED_MODELS = "n_averaged"  # a count beside the weights of torch.optim.swa_utils.AveragedModel
_NOT_ALONE = ("model.",)  # what many networks begin all their names with is no set by itself
_MAX_NAME_LENGTH = 500


class WeightSet(NamedTuple):
    """One of the sets in a file."""

    place: str  # for people, such as "ema.module" or "Student"; "" where it has no name
    kind: str  # "ema", "model", "student", "teacher", or "" where it is called otherwise
    prefix: str  # of its names, as [`strip_prefixes`] takes it off
    content: Any  # the dictionary that holds it


class Place(NamedTuple):
    """Where the weights of a conversion lay."""

    taken: str = ""
    others: tuple[str, ...] = ()


def choose_weights(path, content, tensor_type, wanted=None):
    """
    Args:
        path (`str`): of the file, for messages.
        content: what the file holds.
        tensor_type (`type` or `tuple[type]`): what is a tensor.
        wanted (`str`, *optional*): one of [`KINDS`], or a place such as `"state_dict_ema"`; by default the first in
            the order of the tables above.

    Returns:
        `tuple[WeightSet, Place]`: the set that is taken, and the names of the others. Where nothing holds tensors, the
        set is ``content`` itself.

    Raises:
        `ConversionError`: there is no such set; the message names those that are there.
    """
    known, others = _find_sets(content, tensor_type)
    if wanted is None:
        found = known[:1] or [WeightSet("", "", "", content)]
        if not known and others:
            raise ConversionError(
                f"{path} holds weights under {_listed(others)}; pass --weights with the name of those to convert."
            )
    else:
        called = [each for each in (*known, *others) if _is_called(each, wanted)]
        found = [each for each in called if each.place == wanted] or called
        if not found:
            named = [each for each in (*known, *others) if each.place]
            holds = f"but these: {_listed(named)}" if named else "but one set without a name: leave --weights out"
            raise ConversionError(f"{path} holds no weights {wanted[:80]!r}, {holds}.")
        if len(found) > 1 and wanted.lower() not in KINDS:
            raise ConversionError(
                f"{path} holds several weights {wanted[:80]!r}: {_listed(found)}; name one of them whole."
            )
    taken = found[0]
    rest = tuple(each.place for each in (*known, *others) if each is not taken and each.place)
    return taken, Place(taken.place, rest)


def strip_prefixes(tensors, prefix=""):
    """
    Args:
        tensors (`dict[str, Any]`): by name.
        prefix (`str`): of a [`WeightSet`]; what does not begin with it is left out.

    Returns:
        `dict[str, Any]`: by the names that are left without it, and without the wrappers that all of them share.
    """
    kept = {name.removeprefix(prefix): each for name, each in tensors.items() if name.startswith(prefix)}
    wrapper = _shared_wrappers(kept)
    return {name.removeprefix(wrapper): each for name, each in kept.items() if name.startswith(wrapper)}


def _find_sets(content, tensor_type):
    """Those that the tables know, in their order, and those under other keys."""

    def holds_tensors(value):
        return isinstance(value, dict) and any(isinstance(each, tensor_type) for each in value.values())

    if not isinstance(content, dict):
        return [], []
    if holds_tensors(content):
        return _parted("", "", content, tensor_type), []
    known, seen = [], set()
    for keys, name in NESTINGS.items():
        inner = content
        for key in keys:
            inner = inner.get(key) if isinstance(inner, dict) else None
        if holds_tensors(inner):
            known += _parted(".".join(keys), name, inner, tensor_type)
            seen.add(id(inner))
    others = [
        WeightSet(".".join(keys), "", "", inner)
        for keys, inner in _dictionaries(content)
        if id(inner) not in seen and _looks_like_weights(inner, tensor_type)
    ]
    return known, others


def _dictionaries(content):
    """The dictionaries in a dictionary and in those, each once: a file may hold it in itself."""
    visited = {id(content)}
    level = [((), content)]
    for _ in range(2):
        level = [
            ((*keys, key), inner)
            for keys, outer in level
            for key, inner in outer.items()
            if isinstance(key, str) and len(key) <= _MAX_NAME_LENGTH and isinstance(inner, dict)
        ]
        level = [(keys, inner) for keys, inner in level if not (id(inner) in visited or visited.add(id(inner)))]
        yield from level


def _looks_like_weights(inner, tensor_type):
    """Tensors under the names of layers; the state of an optimizer or a scaler has none such."""
    return any(isinstance(name, str) and "." in name and isinstance(each, tensor_type) for name, each in inner.items())


def _parted(place, name, content, tensor_type):
    """The sets of one dictionary of tensors, as far as prefixes part it."""
    names = [each for each, value in content.items() if isinstance(each, str) and isinstance(value, tensor_type)]
    if any(len(each) > _MAX_NAME_LENGTH for each in names):
        return [WeightSet(place, name, "", content)]
    outer = _shared_wrappers(names)
    inside = [each.removeprefix(outer) for each in names if each != _AVERAGED_MODELS]
    found = [prefix for prefix in PREFIXES if any(each.startswith(prefix) for each in inside)]
    if not found or found in [[each] for each in _NOT_ALONE] or not all(map(_begins_with(found), inside)):
        return [WeightSet(place, name, "", content)]
    return [
        WeightSet(".".join(filter(None, (place, prefix[:-1]))), PREFIXES[prefix], outer + prefix, content)
        for prefix in found
    ]


def _begins_with(prefixes):
    return lambda name: name.startswith(tuple(prefixes))


def _shared_wrappers(names):
    """The prefixes of wrappers that all names have, one after the other."""
    names, shared = [name for name in names if name != _AVERAGED_MODELS], ""
    while names:
        wrapper = next((each for each in _WRAPPERS if all(name.startswith(shared + each) for name in names)), None)
        if wrapper is None:
            break
        shared += wrapper
    return shared


def _is_called(weights, wanted):
    wanted = wanted.lower()
    return wanted and wanted in (weights.kind, weights.place.lower(), *weights.place.lower().split("."))


def _listed(sets):
    names = [each.place[:80] for each in sets]
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more
