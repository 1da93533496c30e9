"""Folders that load on a machine without this package (``trust_remote_code=True``).

Every folder that holds this package's model or image processor also carries the source files named here and an
``auto_map`` that points to them, whoever writes it: ``convert``, ``save_pretrained``, ``Trainer`` or ``push_to_hub``.
Transformers' own mechanism is not enough: it forgets the files when a model that was loaded this way is saved again.
"""

import shutil
from pathlib import Path


# Transformers 4.56 copies from a folder only the files that the loaded one itself imports, not what those import in
# turn. So the three entry files (configuration, model, image processor) name all the others, under `if TYPE_CHECKING`
# where they use none of them: the loader reads such imports, and Python does not run them. They can go with the last
# supported version that does not follow imports (5.23 does).
CODE_FILES = (
    "compat.py",
    "configuration_hgnetv2.py",
    "image_processing_hgnetv2.py",
    "modeling_hgnetv2.py",
    "remote_code.py",
    "variants.py",
)
# What a folder of PP-HGNet carries, whose files use PP-HGNetV2's.
PP_HGNET_CODE_FILES = (*CODE_FILES, "configuration_pp_hgnet.py", "modeling_pp_hgnet.py")
# What a folder of a multi-label classifier carries.
ML_DECODER_CODE_FILES = (*CODE_FILES, "configuration_ml_decoder.py", "modeling_ml_decoder.py")
# What a folder of a classifier of KerasHub carries.
KERAS_CODE_FILES = (*CODE_FILES, "configuration_keras.py", "modeling_keras.py")
# What a folder of a detector carries. Its backbone is of a stock type, whose code comes with Transformers.
DETECTOR_CODE_FILES = (
    "compat.py",
    "configuration_deim.py",
    "modeling_deim.py",
    "modeling_deimv2.py",
    "remote_code.py",
)

AUTO_MAPS = {
    "hgnet_v2": {
        "AutoConfig": "configuration_hgnetv2.HGNetV2Config",
        "AutoModel": "modeling_hgnetv2.HGNetV2Model",
        "AutoBackbone": "modeling_hgnetv2.HGNetV2Backbone",
        "AutoModelForImageClassification": "modeling_hgnetv2.HGNetV2ForImageClassification",
    },
    "pp_hgnet_v2": {
        "AutoConfig": "configuration_hgnetv2.PPHGNetV2Config",
        "AutoModel": "modeling_hgnetv2.PPHGNetV2Model",
        "AutoBackbone": "modeling_hgnetv2.PPHGNetV2Backbone",
        "AutoModelForImageClassification": "modeling_hgnetv2.PPHGNetV2ForImageClassification",
    },
    "pp_hgnet": {
        "AutoConfig": "configuration_pp_hgnet.PPHGNetConfig",
        "AutoModel": "modeling_pp_hgnet.PPHGNetModel",
        "AutoBackbone": "modeling_pp_hgnet.PPHGNetBackbone",
        "AutoModelForImageClassification": "modeling_pp_hgnet.PPHGNetForImageClassification",
    },
    "pp_hgnet_v2_ml": {
        "AutoConfig": "configuration_ml_decoder.PPHGNetV2MLConfig",
        "AutoModel": "modeling_ml_decoder.PPHGNetV2MLModel",
        "AutoBackbone": "modeling_ml_decoder.PPHGNetV2MLBackbone",
        "AutoModelForImageClassification": "modeling_ml_decoder.PPHGNetV2MLForImageClassification",
    },
    "hgnet_v2_keras": {
        "AutoConfig": "configuration_keras.HGNetV2KerasConfig",
        "AutoModel": "modeling_keras.HGNetV2KerasModel",
        "AutoBackbone": "modeling_keras.HGNetV2KerasBackbone",
        "AutoModelForImageClassification": "modeling_keras.HGNetV2KerasForImageClassification",
    },
    "deim": {
        "AutoConfig": "configuration_deim.DEIMConfig",
        "AutoModel": "modeling_deim.DEIMModel",
        "AutoModelForObjectDetection": "modeling_deim.DEIMForObjectDetection",
    },
    "deim_v2": {
        "AutoConfig": "configuration_deim.DEIMv2Config",
        "AutoModel": "modeling_deimv2.DEIMv2Model",
        "AutoModelForObjectDetection": "modeling_deimv2.DEIMv2ForObjectDetection",
    },
    # A plain string: Transformers 4.56 cannot read the two-form list, and 5.x would take inexact torchvision.
    "image_processor": {"AutoImageProcessor": "image_processing_hgnetv2.HGNetV2ImageProcessor"},
}
NETWORK_TYPES = tuple(model_type for model_type, classes in AUTO_MAPS.items() if "AutoBackbone" in classes)


def write_code(directory, code_files=CODE_FILES):
    """Copies the source files that ``auto_map`` names into ``directory``."""
    source = Path(__file__).parent
    directory = Path(directory)
    if directory.resolve() == source.resolve():
        return
    for name in code_files:
        shutil.copyfile(source / name, directory / name)


class SavesCode:
    """Mixin for configurations and image processors: what they save includes the code that loads it."""

    code_files = CODE_FILES

    def save_pretrained(self, save_directory, push_to_hub=False, **kwargs):
        result = super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)
        write_code(save_directory, self.code_files)
        return result

    def _upload_modified_files(self, working_dir, *args, **kwargs):
        # `save_pretrained(push_to_hub=True)` uploads before it returns, through this private method of
        # `PushToHubMixin`. It can go when `save_pretrained` copies the code of a class that came from a folder with
        # `auto_map`.
        write_code(working_dir, self.code_files)
        return super()._upload_modified_files(working_dir, *args, **kwargs)
