"""Fine-tunes a detector with ``Trainer``: digits pasted on canvases, with COCO annotations, made on the spot.

    python finetune_detector.py OUT_DIR [--steps 600]

An RT-DETR with an HGNetV2 backbone starts from the weights of the digits checkpoint that ships with the package; neck,
decoder and heads start at random. Replace the data set and ``"digits"`` by your own and by
``"PPHGNetV2_B4_ssld_stage1"``.
"""

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from transformers import AutoConfig, RTDetrConfig, RTDetrForObjectDetection, Trainer, TrainingArguments
from transformers.models.auto.image_processing_auto import AutoImageProcessor

import hgnetv2_hf
from hgnetv2_hf.data import digits
from hgnetv2_hf.model.variants import STAGE_FIELDS


SIDE = 128  # pixels


def make_data(folder, count=16, seed=0):
    """Writes ``count`` canvases with two to four digits each, and ``annotations.json`` in COCO's form."""
    random = np.random.RandomState(seed)
    scans, labels = digits.load_held_out()
    images, annotations = [], []
    for index in range(count):
        canvas = random.randint(0, 60, (SIDE, SIDE)).astype("uint8")
        taken = np.zeros((SIDE, SIDE), bool)
        for _ in range(random.randint(2, 5)):
            size = int(random.randint(28, 48))
            x, y = random.randint(0, SIDE - size, 2).tolist()
            if taken[y : y + size, x : x + size].any():
                continue
            taken[y : y + size, x : x + size] = True
            number = random.randint(len(scans))
            scan = scans[number].convert("L").resize((size, size), PIL.Image.Resampling.BICUBIC)
            canvas[y : y + size, x : x + size] = np.maximum(canvas[y : y + size, x : x + size], np.asarray(scan))
            annotations.append(
                {
                    "id": len(annotations),
                    "image_id": index,
                    "category_id": int(labels[number]),
                    "bbox": [x, y, size, size],
                    "area": size * size,
                    "iscrowd": 0,
                }
            )
        images.append({"id": index, "file_name": f"{index}.png", "width": SIDE, "height": SIDE})
        PIL.Image.fromarray(canvas).convert("RGB").save(folder / f"{index}.png")
    categories = [{"id": number, "name": str(number)} for number in range(10)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations.json").write_text(json.dumps(content))


class CocoFolder(torch.utils.data.Dataset):
    """A folder of images with ``annotations.json``, prepared by the image processor."""

    def __init__(self, folder, processor):
        content = json.loads((folder / "annotations.json").read_text())
        self.examples = []
        for image in content["images"]:
            own = [each for each in content["annotations"] if each["image_id"] == image["id"]]
            picture = PIL.Image.open(folder / image["file_name"])
            target = {"image_id": image["id"], "annotations": own}
            inputs = processor(images=picture, annotations=target, return_tensors="pt")
            self.examples.append({"pixel_values": inputs["pixel_values"][0], "labels": inputs["labels"][0]})

    def __len__(self):
        return len(self.examples)

    def __getitem__(self, index):
        return self.examples[index]


def collate(examples):
    pixel_values = torch.stack([example["pixel_values"] for example in examples])
    return {"pixel_values": pixel_values, "labels": [dict(example["labels"]) for example in examples]}


def build_model():
    with tempfile.TemporaryDirectory() as folder:
        hgnetv2_hf.convert_checkpoint("digits", f"{folder}/digits")
        backbone = AutoConfig.from_pretrained(f"{folder}/digits")
    fields = {name: value for name, value in backbone.to_dict().items() if name in _ARCHITECTURE}
    config = RTDetrConfig(
        backbone_config=hgnetv2_hf.HGNetV2Config(**fields, out_features=["stage2", "stage3", "stage4"]),
        encoder_in_channels=backbone.stage_out_channels[1:],
        encoder_hidden_dim=64,
        encoder_ffn_dim=128,
        encoder_attention_heads=4,
        decoder_in_channels=[64] * 3,
        d_model=64,
        decoder_ffn_dim=128,
        decoder_layers=2,
        decoder_attention_heads=4,
        num_queries=20,
        num_denoising=20,
        id2label={number: str(number) for number in range(10)},
        label2id={str(number): number for number in range(10)},
    )
    model = RTDetrForObjectDetection(config)
    print(hgnetv2_hf.load_backbone_into(model, "digits"))
    return model


_ARCHITECTURE = ("stem_channels", "use_learnable_affine_block", *STAGE_FIELDS)


def share_found(model, dataset, folder, processor):
    """The share of the objects that a prediction of the right class overlaps with at least half (IoU)."""
    from torchvision.ops import box_iou

    model.eval()
    content = json.loads((folder / "annotations.json").read_text())
    found = 0
    for index, example in enumerate(dataset):
        with torch.inference_mode():
            output = model(example["pixel_values"][None])
        (result,) = processor.post_process_object_detection(output, threshold=0.3, target_sizes=[(SIDE, SIDE)])
        for each in content["annotations"]:
            if each["image_id"] == index:
                x, y, width, height = each["bbox"]
                box = torch.tensor([[x, y, x + width, y + height]], dtype=torch.float32)
                same = result["labels"] == each["category_id"]
                found += bool(same.any() and box_iou(result["boxes"][same], box).max() >= 0.5)
    return found / len(content["annotations"])


def finetune(output_dir, steps=600):
    """Returns the first and the last loss, and the share of objects found."""
    output_dir = Path(output_dir)
    data = output_dir / "data"
    data.mkdir(parents=True, exist_ok=True)
    make_data(data)
    torch.manual_seed(0)
    (output_dir / "preprocessor_config.json").write_text(
        json.dumps(
            {
                "image_processor_type": "RTDetrImageProcessor",
                "size": {"height": SIDE, "width": SIDE},
                "do_normalize": True,
                "image_mean": [0.485, 0.456, 0.406],
                "image_std": [0.229, 0.224, 0.225],
            }
        )
    )
    processor = AutoImageProcessor.from_pretrained(output_dir)
    dataset, model = CocoFolder(data, processor), build_model()
    arguments = TrainingArguments(
        output_dir=str(output_dir / "run"),
        per_device_train_batch_size=8,
        max_steps=steps,
        learning_rate=1e-3,
        lr_scheduler_type="cosine",
        warmup_steps=50,
        max_grad_norm=1.0,
        weight_decay=1e-4,
        logging_steps=10,
        save_strategy="no",
        remove_unused_columns=False,
        report_to=[],
        use_cpu=True,
    )
    trainer = Trainer(
        model=model, args=arguments, train_dataset=dataset, data_collator=collate, processing_class=processor
    )
    trainer.train()
    trainer.save_model(str(output_dir / "model"))
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return losses[0], losses[-1], share_found(model, dataset, data, processor)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("output_dir")
    parser.add_argument("--steps", type=int, default=600)
    arguments = parser.parse_args()
    first, last, found = finetune(arguments.output_dir, arguments.steps)
    print(f"loss {first:.2f} -> {last:.2f} ({1 - last / first:.0%} less); {found:.0%} of the objects found at IoU 0.5")
