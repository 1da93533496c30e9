"""D-FINE, DEIM and RT-DETRv4 name their tensors alike; this module tells them apart, or refuses to guess.

RT-DETRv4's network is DEIM's; DEIMv2's tensors speak for themselves.

Sources: the three programs' ``configs`` and ``hgnetv2.py``. D-FINE freezes batch norm in the backbones of L and X, and
a frozen batch norm counts no batches; DEIM and RT-DETRv4 train it in every size.
"""

from typing import NamedTuple

from ..errors import ConversionError
from .detectors import DETECTORS, TRAINING_ONLY, recognise_detector


FAMILY_NAMES = ("dfine", "deim", "rtdetrv4", "deimv2")  # what an option may say; rows of `DETECTORS`
_ALIKE = FAMILY_NAMES[:3]  # whose tensors have the same names and shapes

FROZEN_IN_DFINE = ("b4", "b5")  # the backbones of L and X
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
    if recognise_detector(names) == "deimv2":
        return Shown(("deimv2",), "the file holds its SwiGLU layers, swish_ffn")
    if any(name.startswith(TRAINING_ONLY) for name in names):
        return Shown(("rtdetrv4",), "the file holds encoder.feature_projector")
    counters = [name for name in names if name.endswith(_COUNTER)]
    if variant in FROZEN_IN_DFINE and counters:
        if any(name.startswith("backbone.") for name in counters):
            return Shown(("deim", "rtdetrv4"), "its backbone counts batches, which that of D-FINE's L and X does not")
        return Shown(("dfine",), "its backbone counts no batches, as only that of D-FINE's L and X does")
    return Shown(_ALIKE, "nothing in the file tells D-FINE from DEIM")


def decide_family(source, names, variant, wanted=None):
    """
    Args:
        source ([`Source`]): the file; only a published name counts, because files are called anything.
        names, variant: as in [`families_shown`].
        wanted (`str`, *optional*): what the user says, of [`FAMILY_NAMES`].

    Returns:
        `tuple[str, str]`: the family and where that is known from.

    Raises:
        `ConversionError`: the tensors contradict what is said, or nothing decides.
    """
    shown = families_shown(names, variant)
    if wanted is not None:
        family, reason, said = wanted, f"option; {shown.reason}", f"family={wanted} is chosen"
    elif source.row is not None and source.row.layout in FAMILY_NAMES and source.row.task == "detection":
        reason = f"published as {source.name}"
        family, said = source.row.layout, f"it is {reason}"
    elif "dfine" in shown.families and len(shown.families) > 1:
        raise ConversionError(
            f"{source.path} holds a detector of D-FINE, DEIM or RT-DETRv4, whose tensors are the same though their "
            "activations are not; pass --family dfine, deim or rtdetrv4, whichever trained it (another one would "
            "give wrong outputs), or --task backbone for its backbone alone."
        )
    else:  # DEIM's and RT-DETRv4's networks are one
        return shown.families[0], shown.reason
    if family not in shown.families:
        raise _contradiction(source, shown, said)
    return family, reason


def check_family(source, names, variant, wanted):
    """Raises ``ConversionError`` where the tensors contradict the option; all that a backbone needs."""
    shown = families_shown(names, variant)
    if wanted not in shown.families:
        raise _contradiction(source, shown, f"family={wanted} is chosen")


def _contradiction(source, shown, said):
    titles = " or ".join(DETECTORS[family].title for family in shown.families)
    return ConversionError(
        f"{source.path} holds a detector of {titles} ({shown.reason}), but {said}; pass --family {shown.families[0]} "
        "if the tensors are right."
    )
