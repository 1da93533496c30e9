"""Words that depend on a number."""


def counted(number, noun, plural=None):
    """`1 image`, `2 images`; `plural` where it is not the noun with an s."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"
