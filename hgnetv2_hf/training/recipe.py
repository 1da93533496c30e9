"""What `train` does unless told otherwise, as data: PaddleClas's recipe in the words of `TrainingArguments`."""

import os


# PaddleClas ppcls/configs/ImageNet/PPHGNetV2/PPHGNetV2_B*.yaml; PaddleClas clips no gradients.
TRAINING_ARGUMENTS = {
    "num_train_epochs": 200,
    "per_device_train_batch_size": 128,
    "per_device_eval_batch_size": 128,
    "optim": "sgd",
    "max_grad_norm": 0.0,
    "lr_scheduler_type": "cosine",
    "label_smoothing_factor": 0.1,
    # How the run is watched and kept; PaddleClas evaluates and saves every epoch too.
    "eval_strategy": "epoch",
    "save_strategy": "epoch",
    "save_total_limit": 2,
    "metric_for_best_model": "accuracy",
    "logging_steps": 0.005,
    "logging_nan_inf_filter": False,
    "report_to": "none",
    "remove_unused_columns": False,
    "dataloader_num_workers": min(8, os.cpu_count() or 1),
    "dataloader_persistent_workers": True,
}
# With `--fsdp "full_shard auto_wrap"`: every process loads the weights itself, which works on CPUs too.
FSDP_CONFIG = {"version": 2, "cpu_ram_efficient_loading": False, "sync_module_states": False}
WARMUP_EPOCHS = 5
MOMENTUM = 0.9
WEIGHT_DECAY = {"sgd": 2e-5, "other": 0.05}

# `sgd`: for 1024 images a step, and scaled with them; 0.5 is PaddleClas's, which says that fine-tuning needs less. The others
# are taken as they are. `tests/compare_optimizers.py` compares them: the README has the figures.
IMAGES_PER_STEP = 1024
LEARNING_RATES = {
    #        fresh  trained weights
    "sgd": (0.5, 0.05),
    "other": (4e-3, 5e-4),
}


def learning_rate(optim, is_fresh, images_per_step):
    """The rate for this optimizer (`TrainingArguments.optim`), fresh or trained weights, and the images of one step."""
    fresh, trained = LEARNING_RATES.get(optim, LEARNING_RATES["other"])
    rate = fresh if is_fresh else trained
    return rate * images_per_step / IMAGES_PER_STEP if optim == "sgd" else rate


def weight_decay(optim):
    return WEIGHT_DECAY.get(optim, WEIGHT_DECAY["other"])
