"""What `train` can be asked for, beside the arguments of `TrainingArguments`."""

import dataclasses
from typing import Optional


@dataclasses.dataclass
class Options:
    """
    What [`train`] takes beside `TrainingArguments`.

    Args:
        recipe (`"auto"`, `"small"` or `"imagenet"`): the row of `recipe.py` that gives every default below; `"auto"` chooses by
            the number of images seen.
        from_scratch (`bool`): fresh weights, whatever the folder holds.
        compare_from_scratch (`bool`): train a second time with fresh weights on the same data, and report both.
        head (`"auto"`, `"keep"` or `"new"`): the last layer; see `load_starting_point`.
        image_size (`int`, *optional*): pixels per side; by default the image processor's.
        classes (`list[str]`, *optional*), images_per_class (`int`, *optional*): a subset of the data.
        validation_fraction (`float`): held out of each class where the data have no validation part; 0 for none.
        class_folders (`"outer"` or `"inner"`, *optional*): which folders are the classes where folders lie in folders.
        image_column, label_column, config_name (`str`, *optional*): of a data set of the `datasets` library.
        streaming (`bool`): read such a data set as a stream, for `max_steps` steps; unreadable images are skipped and counted.
        check (`bool`): decode every image once before training, and leave out those that cannot be read.
        crop_scale (`tuple[float, float]`), shift, flip (`float`), rand_augment (`str`), random_erasing (`float`): see [`Augmentation`].
            With a teacher nothing is erased by default, as in PaddleClas's SSLD files.
        draw_data (`int`, *optional*): a picture, `data.png`, of that many images: as they are evaluated, and augmented.
        class_weights (`bool`): every class counts the same in the loss, however many images it has.
        early_stopping (`int`, *optional*): stop after that many evaluations without a better accuracy, and keep the best weights.
        warmup_epochs (`float`): epochs in which the rate rises from 0; at most a quarter of the training; of a stream, a twentieth.
        lr_mult_list, lab_lr_mult, exempt_biases_and_lab: see [`parameter_groups`].
        freeze_at, freeze_stem_only, freeze_norm: see [`freeze`].
        drop_path (`float`): see [`set_drop_path_rate`].
        ema (`float`, *optional*): decay of the moving average whose weights are evaluated and saved.
        teacher (`str`, *optional*): a classifier to learn from; distillation_loss (`"ce"` or `"kl"`): see [`DistillationTrainer`].
        sync_batch_norm (`bool`): common batch statistics of all processes, where they are on GPUs and use DDP.
        channels_last (`bool`): memory format of weights and images of an HGNetV2; not with FSDP.
    """

    recipe: str = "auto"
    from_scratch: bool = False
    compare_from_scratch: bool = False
    head: str = "auto"
    image_size: Optional[int] = None
    classes: Optional[list[str]] = None
    images_per_class: Optional[int] = None
    validation_fraction: float = 0.1
    class_folders: Optional[str] = None
    image_column: Optional[str] = None
    label_column: Optional[str] = None
    config_name: Optional[str] = None
    streaming: bool = False
    check: bool = True
    crop_scale: Optional[tuple[float, float]] = None
    shift: Optional[float] = None
    flip: Optional[float] = None
    rand_augment: Optional[str] = None
    random_erasing: Optional[float] = None
    draw_data: Optional[int] = None
    class_weights: bool = False
    early_stopping: Optional[int] = None
    warmup_epochs: Optional[float] = None
    lr_mult_list: Optional[list[float]] = None
    lab_lr_mult: float = 0.01
    exempt_biases_and_lab: bool = False
    freeze_at: int = -1
    freeze_stem_only: bool = True
    freeze_norm: bool = False
    drop_path: float = 0.0
    ema: Optional[float] = None
    teacher: Optional[str] = None
    distillation_loss: str = "ce"
    sync_batch_norm: bool = True
    channels_last: bool = True
