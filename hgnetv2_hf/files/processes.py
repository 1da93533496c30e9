"""Several processes of one run, as `torchrun` and `accelerate launch` start them."""

import os

import torch
from accelerate.utils import broadcast_object_list

from ..errors import HGNetV2Error


def number_of_processes():
    """How many processes the launcher started; 1 without one."""
    return int(os.environ.get("WORLD_SIZE", 1))


def has_accelerator():
    """Whether PyTorch finds a GPU or another accelerator."""
    if hasattr(torch, "accelerator"):  # since 2.6
        return torch.accelerator.is_available()
    return torch.cuda.is_available()


def in_main_process(is_main, call):
    """
    Calls a function in the first process only.

    Args:
        is_main (`bool`): whether this is the first process.
        call (callable): takes nothing; its answer can be pickled.

    Returns:
        The answer, in every process.

    Raises:
        `HGNetV2Error`: the first process's, in every process.
    """
    answer = [None]
    if is_main:
        try:
            answer = [call()]
        except HGNetV2Error as error:
            answer = [error]
    (answer,) = broadcast_object_list(answer)
    if isinstance(answer, HGNetV2Error):
        raise answer
    return answer
