"""D-FINE, DEIM and RT-DETRv4 name their tensors alike; this module tells them apart, or refuses to guess.

Sources: the three programs' ``configs`` and ``hgnetv2.py``. D-FINE freezes batch norm in the backbones of L and X, and
a frozen batch norm counts no batches; DEIM and RT-DETRv4 train it in every size.
"""

import re
from pathlib import Path
from typing import NamedTuple, Optional

from ..errors import ConversionError


class Family(NamedTuple):
    """A program whose detectors have D-FINE's tensors, or nearly."""

    title: str
    file_names: Optional[str]  # a pattern of names that say so, in lower case without hyphens and underscores
    unsupported: Optional[str] = None  # what Transformers cannot express; ``None`` where it can


_SILU = "SiLU in the prediction heads, where Transformers' D-FINE has ReLU"
FAMILIES = {
    "dfine": Family("D-FINE", None),  # only a published name says so: others name their DEIM files `dfine` too
    "deim": Family("DEIM", r"deim(?!v2)", _SILU),
    "rtdetrv4": Family("RT-DETRv4", r"rtdetrv4|rtv4", _SILU),
    "deimv2": Family("DEIMv2", r"deimv2", "other layers"),
}
FAMILY_NAMES = ("dfine", "deim", "rtdetrv4")  # what an option may say; DEIMv2's tensors speak for themselves

# What the tensors show: a pattern of names that only these families have.
_MARKS = (
    (r"^encoder\.feature_projector\.", ("rtdetrv4",), "the file holds encoder.feature_projector"),
    (r"\.swish_ffn\.", ("deimv2",), "the file holds SwiGLU layers (swish_ffn)"),
)
_FROZEN_IN_DFINE = ("b4", "b5")  # the backbones of L and X
_COUNTER = ".num_batches_tracked"


class Shown(NamedTuple):
    """What the tensors leave possible, and why."""

    families: tuple[str, ...]
    reason: str


def families_shown(names, variant):
    """
    Args:
        names (iterable of `str`): the file's tensors.
        variant (`str` or `None`): that of the backbone.

    Returns:
        [`Shown`]: the families whose files have such tensors; more than one where nothing tells them apart.
    """
    for pattern, families, reason in _MARKS:
        if any(re.search(pattern, name) for name in names):
            return Shown(families, reason)
    counters = [name for name in names if name.endswith(_COUNTER)]
    if variant in _FROZEN_IN_DFINE and counters:
        if any(name.startswith("backbone.") for name in counters):
            return Shown(("deim", "rtdetrv4"), "its backbone counts batches, which that of D-FINE's L and X does not")
        return Shown(("dfine",), "its backbone counts no batches, as only that of D-FINE's L and X does")
    return Shown(FAMILY_NAMES, "nothing in the file tells D-FINE from DEIM")


def decide_family(source, names, variant, wanted=None):
    """
    Args:
        source ([`Source`]): the file; a published name counts, other names only against D-FINE.
        names, variant: as in [`families_shown`].
        wanted (`str`, *optional*): what the user says, of [`FAMILY_NAMES`].

    Returns:
        `tuple[str, str]`: the family and where that is known from.

    Raises:
        `ConversionError`: the tensors contradict what is said, nothing decides, or the family is unsupported.
    """
    shown = families_shown(names, variant)
    named = _named(source)
    if wanted is not None:
        family, reason = wanted, f"option; {shown.reason}"
        said = f"family={wanted} is chosen"
    elif named is not None:
        family, reason = named
        said = f"it is {reason}"
    elif len(shown.families) == 1:
        (family,), reason = shown
        said = ""
    elif "dfine" in shown.families:
        raise ConversionError(
            f"{source.path} holds a detector of D-FINE or of DEIM, whose tensors are the same though they compute "
            "different activations; pass --family dfine if it comes from D-FINE, or --task backbone for its backbone "
            "alone."
        )
    else:
        family, reason = shown.families[0], shown.reason
        said = ""
    if family not in shown.families:
        raise _contradiction(source, shown, said)
    _refuse_unsupported(source, (family,) if said else shown.families, reason)
    return family, reason


def check_family(source, names, variant, wanted):
    """Raises ``ConversionError`` where the tensors contradict the option; all that a backbone needs."""
    shown = families_shown(names, variant)
    if wanted not in shown.families:
        raise _contradiction(source, shown, f"family={wanted} is chosen")


def _named(source):
    """What the name says: the family and a text, or ``None``."""
    if source.row is not None and source.row.layout == "dfine" and source.row.task == "detection":
        return "dfine", f"published as {source.name}"
    plain = re.sub(r"[-_ .]", "", Path(source.path).name.lower())
    for key, family in FAMILIES.items():
        if family.file_names is not None and re.search(family.file_names, plain):
            return key, f"named after {family.title}"
    return None


def _contradiction(source, shown, said):
    known = [family for family in shown.families if family in FAMILY_NAMES]
    what_next = (
        f"pass --family {known[0]} if the tensors are right" if known else "--task backbone converts its backbone"
    )
    return ConversionError(
        f"{source.path} holds a detector of {_titles(shown.families)} ({shown.reason}), but {said}; {what_next}."
    )


def _refuse_unsupported(source, families, reason):
    what = FAMILIES[families[0]].unsupported
    if what is not None:
        raise ConversionError(
            f"{source.path} holds a detector of {_titles(families)} ({reason}), which has {what}; Transformers "
            "cannot express that, but --task backbone converts its backbone."
        )


def _titles(families):
    return " or ".join(FAMILIES[family].title for family in families)
