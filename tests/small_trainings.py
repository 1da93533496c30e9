"""Trainings of seconds, for the tests of `data` and `training`."""

from hgnetv2_hf.training import Options, train


QUIET = {
    "use_cpu": True,
    "dataloader_num_workers": 0,
    "disable_tqdm": True,
    "per_device_train_batch_size": 8,
}
NO_AUGMENTATION = {"flip": 0.0, "rand_augment": "none", "random_erasing": 0.0, "crop_scale": (0.8, 1.0)}


def quick(data, model, output, options=None, **arguments):
    return train(
        str(data), str(model), str(output), options or Options(**NO_AUGMENTATION), show=str, **QUIET, **arguments
    )
