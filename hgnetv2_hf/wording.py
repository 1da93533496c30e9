"""Text for people: numbers with their nouns, errors in one line, names that can be printed."""


def counted(number, noun, plural=None):
    """`1 image`, `2 images`; `plural` where it is not the noun with an s."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


def printable(text):
    """Text as valid UTF-8: what Python could not decode becomes a backslash escape."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def sentence(error):
    """An error's message in one line."""
    return " ".join(str(error).split()) or type(error).__name__
