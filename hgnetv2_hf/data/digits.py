"""The checkpoint that ships with the package: a small HGNetV2 trained on scikit-learn's handwritten digits.

    python -m hgnetv2_hf.data.digits OUT.pdparams

trains it again (needs scikit-learn) and prints its accuracy on the held-out third. The data are 1,797 real scans of 8×8
pixels (E. Alpaydin, C. Kaynak, UCI "Optical Recognition of Handwritten Digits"), rendered as 8-bit greyscale.
"""

import argparse

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from tqdm.auto import tqdm

from ..conversion.layouts import LAYOUTS, rename_back
from ..conversion.paddle_file import write_paddle_file
from ..hub.published import ASSETS, PUBLISHED
from ..model.configuration_hgnetv2 import PPHGNetV2Config
from ..model.image_processing_hgnetv2 import HGNetV2ImageProcessor
from ..model.modeling_hgnetv2 import PPHGNetV2ForImageClassification


SEED = 0
HELD_OUT_FILE = ASSETS / "digits_held_out.npz"


def load_split():
    """(scans, labels) for training, and for the held-out third: `uint8` (n, 8, 8) and `int64` (n,). Needs scikit-learn."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    scans = np.rint(digits.images * 255 / 16).astype("uint8")
    train_scans, held_scans, train_labels, held_labels = train_test_split(
        scans, digits.target, test_size=1 / 3, stratify=digits.target, random_state=SEED
    )
    return (train_scans, train_labels), (held_scans, held_labels)


def load_held_out():
    """The held-out third as it ships with the package: PIL images and their labels."""
    with np.load(HELD_OUT_FILE) as file:
        return [PIL.Image.fromarray(scan) for scan in file["scans"]], file["labels"].tolist()


def configuration():
    """Four stages like b0, with LAB and PaddleClas's head."""
    return PPHGNetV2Config(
        stem_channels=[3, 8, 16],
        stage_in_channels=[16, 32, 64, 96],
        stage_mid_channels=[8, 16, 16, 24],
        stage_out_channels=[32, 64, 96, 128],
        stage_num_blocks=[1, 1, 2, 1],
        stage_downsample=[False, True, True, True],
        stage_light_block=[False, False, True, True],
        stage_kernel_size=[3, 3, 5, 5],
        stage_numb_of_layers=[2, 2, 2, 2],
        use_learnable_affine_block=True,
        class_expand=256,
        num_labels=10,
    )


def image_processor():
    row = PUBLISHED["digits"]
    crop_size = {"height": row.crop_size, "width": row.crop_size}
    return HGNetV2ImageProcessor(size={"shortest_edge": row.resize_short}, crop_size=crop_size)


def train(epochs=80, batch_size=64, learning_rate=4e-3):
    """Trains from scratch. Returns the model and its accuracy (0…1) on the held-out third."""
    torch.manual_seed(SEED)
    (scans, labels), (held_scans, held_labels) = load_split()
    processor = image_processor()
    pixel_values = _pixel_values(processor, scans)
    labels = torch.from_numpy(labels)
    model = PPHGNetV2ForImageClassification(configuration()).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.02)
    steps = epochs * (len(labels) // batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=learning_rate, total_steps=steps)
    with tqdm(total=steps, desc="training", unit="step", mininterval=1) as progress:
        for _ in range(epochs):
            order = torch.randperm(len(labels))[: steps // epochs * batch_size]
            for batch in order.view(-1, batch_size):
                logits = model(_jitter(pixel_values[batch])).logits
                loss = F.cross_entropy(logits, labels[batch], label_smoothing=0.1)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                progress.update()
                progress.set_postfix(loss=f"{loss.item():.3f}")
    model.eval()
    with torch.inference_mode():
        predicted = model(_pixel_values(processor, held_scans)).logits.argmax(1)
    return model, (predicted == torch.from_numpy(held_labels)).double().mean().item()


def _pixel_values(processor, scans):
    return processor([PIL.Image.fromarray(scan) for scan in scans], return_tensors="pt")["pixel_values"]


def _jitter(pixel_values):
    """A random rotation, scale, shear and shift per image."""
    count = pixel_values.shape[0]
    theta = torch.zeros(count, 2, 3)
    theta[:, :, :2] = torch.eye(2) + torch.empty(count, 2, 2).uniform_(-0.15, 0.15)
    theta[:, :, 2].uniform_(-0.15, 0.15)
    grid = F.affine_grid(theta, list(pixel_values.shape), align_corners=False)
    return F.grid_sample(pixel_values, grid, padding_mode="border", align_corners=False)


def main():
    parser = argparse.ArgumentParser(prog="python -m hgnetv2_hf.data.digits", description=__doc__.partition("\n")[0])
    parser.add_argument("out", help="the .pdparams file to write")
    arguments = parser.parse_args()
    model, accuracy = train()
    write_paddle_file(rename_back(model.state_dict(), LAYOUTS["paddleclas"]), arguments.out)
    weights = sum(parameter.numel() for parameter in model.parameters())
    print(f"{arguments.out}: {weights} weights, {accuracy:.2%} of the held-out scans are classified correctly")


if __name__ == "__main__":
    main()
