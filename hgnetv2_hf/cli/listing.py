"""``hgnetv2-hf list``: its text is computed from the tables alone, so that it takes no second."""

from typing import NamedTuple

from ..hub.published import ASSETS, PUBLISHED, Published
from ..model.variants import ALIASES, ALL_VARIANTS, VARIANTS, canonical_name
from ._framework import add_command, fail


_NOTES = """
top-1, top-5: per cent on ImageNet-1k as PaddleClas publishes them for these weights (b0 to b6 at
its own preprocessing, 236); timm's files hold the same weights. AP: on COCO val2017, as the
detector's authors publish it; *: at an IoU of 0.5 on PaddleX's own images, or (_ML) the labels'
mean AP on COCO 2017. size: of the tensors, 4 bytes each. A dash: not published, not known for
timm's own computation, or a backbone alone.
"""


def add(commands):
    parser = add_command(commands, "list", "List variants and published checkpoints with accuracy, size and address.")
    parser.add_argument("word", nargs="?", metavar="WORD", help="only this variant, layout or part of a name")
    parser.add_argument("--short", action="store_true", help="leave the addresses out")
    return parser


def run(arguments):
    try:
        print(listing(arguments.word, arguments.short))
    except LookupError as error:
        return fail(error)


def listing(word=None, short=False):
    """
    Variants with their sizes, and published checkpoints with the accuracy that their authors give.

    Args:
        word (`str`, *optional*): only what has this variant or alias, this layout, or this text in its name.
        short (`bool`, defaults to `False`): leave the addresses out.

    Returns:
        `str`: lines of at most 100 characters, and the addresses, of which the longest takes 134.

    Raises:
        `LookupError`: nothing matches.
    """
    rows = {name: row for name, row in PUBLISHED.items() if word is None or _matches(word, name, row)}
    variants = {name for name in ALL_VARIANTS if word is None or _variant(word) == name}
    variants |= {row.variant for row in rows.values()}
    if not variants:
        layouts = ", ".join(dict.fromkeys(row.layout for row in PUBLISHED.values()))
        known = ", ".join([*ALL_VARIANTS, *ALIASES])
        raise LookupError(
            f"Nothing published matches {word!r}; expected a variant ({known}), a layout ({layouts}) or a part of a "
            "name."
        )
    sections = [_variants_table([name for name in ALL_VARIANTS if name in variants])]
    if rows:
        sections.append(_published_table(rows, short) + [*_NOTES.rstrip().splitlines()])
    return "\n\n".join("\n".join(lines) for lines in sections if lines)


def _matches(word, name, row):
    if _variant(word) is not None:
        return row.variant == _variant(word)
    text = word.lower()
    return text == row.layout or text in name.lower()


def _variant(word):
    try:
        return canonical_name(word, ALL_VARIANTS)
    except ValueError:
        return None


def _variants_table(names):
    if not names:
        return []
    also = {name: alias for alias, name in ALIASES.items()}
    lines = ["variant  also  parameters  LAB  stages"]
    for name in names:
        count = f"{parameter_count(name) / 1e6:.2f} M"
        lab = "yes" if name in VARIANTS and VARIANTS[name].use_learnable_affine_block else "no"
        lines.append(f"{name:<9}{also.get(name, ''):<6}{count:>10}  {lab:<5}{len(ALL_VARIANTS[name].stages)}")
    lines += ["", "parameters: with PaddleClas's 1000-class head; of the backbone where there are three stages"]
    return lines if set(names) <= set(VARIANTS) else [*lines, "tiny, small, base: PP-HGNet; the others: PP-HGNetV2"]


def _published_table(rows, short):
    lines = [f"{'published checkpoint':<42}variant  top-1  top-5    AP      size  resize"]
    for name, row in rows.items():
        top1, top5 = _figure(row.top1), _figure(row.top5)
        ap = "-" if row.ap is None else f"{row.ap:.1f}"
        mark = " " if row.ap is None or row.ap_of == Published._field_defaults["ap_of"] else "*"
        size = file_size(row)
        size = f"{size / 1e6:.1f} MB" if size is not None else "-"
        lines.append(
            f"{name:<42}{row.variant:<7}{top1:>7}{top5:>7}{ap:>6}{mark}{size:>9}  {row.resize_short or '-':>6}"
        )
        if not short:
            lines.append(f"    {row.url or (row.page and f'from {row.page}') or 'ships with this package'}")
    return lines


def _figure(value):
    return "-" if value is None else f"{value:.2f}" if value > 60 else f"{value:.1f}"


def file_size(row):
    """Bytes of a published file's tensors; of the file itself where it ships with the package; ``None`` for
    detectors."""
    if row.task == "detection":
        return None
    if row.url is None:
        return (ASSETS / row.file_name).stat().st_size
    count = _network(row.variant, classifier=row.task == "classification", has_decoder=row.ap is not None)
    return 4 * (count.learned + count.statistics)


def parameter_count(variant):
    """Parameters of the classifier with 1000 classes, or of the backbone where there is no classifier."""
    return _network(variant, classifier=len(ALL_VARIANTS[variant].stages) == 4).learned


class _Count(NamedTuple):
    """Numbers in the tensors of a part: parameters, and batch norm's means and variances."""

    learned: int
    statistics: int


def _conv(in_channels, out_channels, kernel_size, lab=False, groups=1):
    """A convolution with batch norm, and LAB's scale and bias where an activation follows."""
    weights = out_channels * (in_channels // groups) * kernel_size**2
    return _Count(weights + 2 * out_channels + 2 * lab, 2 * out_channels)


def _network(name, classifier, has_decoder=False):
    variant = ALL_VARIANTS[name]
    lab = False if name not in VARIANTS else variant.use_learnable_affine_block
    parts = [*_stem(*variant.stem_channels, lab)] if name in VARIANTS else [*_pp_hgnet_stem(variant.stem_channels)]
    for stage in variant.stages:
        parts += _stage(stage, lab) if name in VARIANTS else _pp_hgnet_stage(stage)
    if classifier:
        width, expanded, classes = variant.stages[-1].out_channels, 2048, 1000
        last = _ml_decoder(expanded) if has_decoder else expanded * classes + classes
        parts.append(_Count(width * expanded + 2 * lab + last, 0))
    return _Count(*map(sum, zip(*parts)))


def _ml_decoder(channels, queries=80, width=768, inner=2048):
    """PaddleClas's ML-Decoder as PaddleX publishes it: one layer, a query per label."""
    attention, feed_forward, norms = 4 * (width * width + width), 2 * width * inner + inner + width, 3 * 2 * width
    return channels * width + width + queries * width + attention + feed_forward + norms + queries * (width + 1)


def _stem(channels, mid, out, lab):
    yield _conv(channels, mid, 3, lab)
    yield _conv(mid, mid // 2, 2, lab)
    yield _conv(mid // 2, mid, 2, lab)
    yield _conv(2 * mid, mid, 3, lab)
    yield _conv(mid, out, 1, lab)


def _pp_hgnet_stem(widths):
    for before, after in zip(widths, widths[1:]):
        yield _conv(before, after, 3)


def _pp_hgnet_stage(stage):
    width, mid, out = stage.in_channels, stage.mid_channels, stage.out_channels
    if stage.downsample:
        yield _conv(width, width, 3, groups=width)
    for _ in range(stage.num_blocks):
        for before in [width] + [mid] * (stage.num_layers - 1):
            yield _conv(before, mid, 3)
        yield _conv(width + stage.num_layers * mid, out, 1)
        yield _Count(out * out + out, 0)  # the attention
        width = out


def _stage(stage, lab):
    if stage.downsample:
        yield _conv(stage.in_channels, stage.in_channels, 3, groups=stage.in_channels)
    width, mid, out = stage.in_channels, stage.mid_channels, stage.out_channels
    for _ in range(stage.num_blocks):
        for layer in range(stage.num_layers):
            before = width if layer == 0 else mid
            if stage.light_block:
                yield _conv(before, mid, 1)
                yield _conv(mid, mid, stage.kernel_size, lab, groups=mid)
            else:
                yield _conv(before, mid, stage.kernel_size, lab)
        yield _conv(width + stage.num_layers * mid, out // 2, 1, lab)
        yield _conv(out // 2, out, 1, lab)
        width = out
