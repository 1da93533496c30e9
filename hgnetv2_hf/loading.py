"""One call that gives a backbone from any folder that holds the network."""

import os
from typing import Optional, Union

from transformers import AutoConfig

from . import modeling_hgnetv2 as modeling


def load_backbone(
    name_or_folder: Union[str, os.PathLike], out_features: Optional[list[str]] = None, **kwargs
) -> modeling.HGNetV2Backbone:
    """
    Loads the network as a backbone from a converted folder or a Hub repository, classifiers included; offline too.

    `AutoBackbone.from_pretrained` does the same on Transformers 4.56 but fails on local folders in 5.23.

    Args:
        name_or_folder (`str` or `os.PathLike`): a folder or a repository of type `hgnet_v2` or `pp_hgnet_v2`.
        out_features (`list[str]`, *optional*): maps to return, of `"stem"`, `"stage1"`, …; by default what the
            configuration says, the last stage unless it was set.
        kwargs: passed on to `from_pretrained` (`dtype`, `device_map`, `revision`, …).

    Returns:
        `HGNetV2Backbone` or `PPHGNetV2Backbone`; `backbone.channels` holds the width of each map.

    Raises:
        `ValueError`: the folder holds another model, or a stage does not exist.
        `OSError`: there is no such folder or repository.
    """
    hub_options = ("revision", "token", "cache_dir", "local_files_only", "force_download", "subfolder")
    config = AutoConfig.from_pretrained(
        name_or_folder, **{key: value for key, value in kwargs.items() if key in hub_options}
    )
    classes = {"hgnet_v2": modeling.HGNetV2Backbone, "pp_hgnet_v2": modeling.PPHGNetV2Backbone}
    if config.model_type not in classes:
        raise ValueError(
            f"{name_or_folder} holds a {config.model_type} model, not an HGNetV2 (hgnet_v2 or pp_hgnet_v2)."
        )
    if out_features is not None:
        config.out_features = list(out_features)
    return classes[config.model_type].from_pretrained(name_or_folder, config=config, **kwargs)
