"""YAML that a person or another program wrote: plain data, of a bounded size."""

import os

from ..wording import sentence


def read_yaml(path, largest, error):
    """
    Args:
        path (`Path`): the file.
        largest (`int`): bytes; PyYAML takes seconds for more than some 100,000.
        error (`type`): what to raise, with one sentence.

    Returns:
        `dict`: the content. Tags that would build Python objects are refused.
    """
    import yaml

    try:
        if os.path.getsize(path) > largest:
            raise error(f"{path} has {os.path.getsize(path)} bytes; such a file has a few thousand.")
        content = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except RecursionError as reason:
        raise error(f"{path} nests deeper than any such file does.") from reason
    except (OSError, ValueError, TypeError, yaml.YAMLError) as reason:
        raise error(f"{path} cannot be read as YAML: {sentence(reason)[:200]}.") from reason
    if not isinstance(content, dict):
        raise error(f"{path} holds no table of keys and values.")
    return content
