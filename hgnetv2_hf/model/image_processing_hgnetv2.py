"""PaddleClas's evaluation transform: equal in every bit with PIL, of the same geometry with torchvision.

Source: PaddleClas ``deploy/python/preprocess.py``: decode to RGB, ``ResizeImage(resize_short, interpolation="bicubic",
backend="pil")``, ``CropImage``, ``NormalizeImage(scale=1/255, order="")``.
"""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Optional, Union

import numpy as np
import PIL.Image
import PIL.ImageOps
import torch
from transformers.image_processing_utils import BaseImageProcessor, BatchFeature
from transformers.image_utils import load_image

from .compat import torchvision_image_processor_base
from .remote_code import AUTO_MAPS, SavesCode


if TYPE_CHECKING:  # for the loader of remote code: see CODE_FILES
    from .configuration_hgnetv2 import HGNetV2Config  # noqa: F401
    from .modeling_hgnetv2 import HGNetV2Model  # noqa: F401
    from .variants import VARIANTS  # noqa: F401

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# A resized image may have this many pixels: 1 × 5000 at 232 has 269 million, a photo 80 thousand.
MAX_RESIZED_PIXELS = 2**29
_STRIP_PIXELS = 2**24  # what one step of the vertical pass may hold

_OPTIONS = (
    "do_convert_rgb",
    "do_resize",
    "size",
    "resample",
    "do_center_crop",
    "crop_size",
    "do_rescale",
    "rescale_factor",
    "do_normalize",
    "image_mean",
    "image_std",
)


class HGNetV2ImageProcessor(SavesCode, BaseImageProcessor):
    r"""
    PaddleClas's evaluation transform with PIL: the bytes are those of PaddleClas's own operators.

    Args:
        do_convert_rgb (`bool`, defaults to `True`): any mode to RGB; 16-bit values are divided by 256, transparency is
            dropped, EXIF rotation is applied, as PaddleClas's decoder does.
        do_resize (`bool`, defaults to `True`), size (`dict` or `int`, defaults to `{"shortest_edge": 232}`): resize so
            that the short side has this many pixels, both sides `round(side * shortest_edge / short)`; or
            `{"height", "width"}` for a fixed size. The published `_ssld` checkpoints use 236.
        resample (`int`, defaults to 3): PIL filter; 3 is bicubic.
        do_center_crop (`bool`, defaults to `True`), crop_size (`dict` or `int`, defaults to 224×224): crop at
            `((width - crop) // 2, (height - crop) // 2)`.
        do_rescale (`bool`, defaults to `True`), rescale_factor (`float`, defaults to 1/255).
        do_normalize (`bool`, defaults to `True`), image_mean, image_std: one value per channel, ImageNet's by default.
            A single one, `[0.449]`, stands for a network with one channel: its images become grey (PIL's `L`) after
            the step to RGB.

    Images may be paths, URLs, PIL images, arrays or tensors (height × width, or with 1, 3 or 4 channels first or last;
    `uint8`, `uint16`, or floats in 0…1), single, as a list of mixed sizes, or as a batch with four dimensions.

    Raises:
        `ValueError`: an image cannot be read or interpreted, its resized form has more than 2**29 pixels, or the crop
            is larger than the resized image (as in PaddleClas).

    Example:

        >>> import PIL.Image
        >>> import torch
        >>> import hgnetv2_hf
        >>> processor = hgnetv2_hf.HGNetV2ImageProcessor(size={"shortest_edge": 236})
        >>> processor(PIL.Image.new("RGB", (640, 480)), return_tensors="pt").pixel_values.shape
        torch.Size([1, 3, 224, 224])
    """

    model_input_names = ["pixel_values"]

    def __init__(
        self,
        do_convert_rgb: bool = True,
        do_resize: bool = True,
        size: Union[int, dict[str, int], None] = None,
        resample: int = PIL.Image.Resampling.BICUBIC,
        do_center_crop: bool = True,
        crop_size: Union[int, dict[str, int], None] = None,
        do_rescale: bool = True,
        rescale_factor: float = 1 / 255,
        do_normalize: bool = True,
        image_mean: Optional[Sequence[float]] = None,
        image_std: Optional[Sequence[float]] = None,
        **kwargs,
    ):
        for derived in ("image_processor_type", "auto_map"):
            kwargs.pop(derived, None)
        super().__init__(**kwargs)
        self.do_convert_rgb = do_convert_rgb
        self.do_resize = do_resize
        self.size = _resize_size(size if size is not None else {"shortest_edge": 232})
        self.resample = int(resample)
        self.do_center_crop = do_center_crop
        self.crop_size = _crop_size(crop_size if crop_size is not None else 224)
        self.do_rescale = do_rescale
        self.rescale_factor = rescale_factor
        self.do_normalize = do_normalize
        self.image_mean = _per_channel("image_mean", image_mean if image_mean is not None else IMAGENET_MEAN)
        self.image_std = _per_channel("image_std", image_std if image_std is not None else IMAGENET_STD)

    def __call__(self, images, *args, **kwargs):
        return self.preprocess(images, *args, **kwargs)

    def preprocess(
        self, images, return_tensors=None, data_format="channels_first", input_data_format=None, **kwargs
    ) -> BatchFeature:
        r"""
        Args:
            images: one image or a list (see the class).
            return_tensors (`str`, *optional*): `"pt"` or `"np"`; without it, a list of arrays.
            data_format (`str`, defaults to `"channels_first"`): or `"channels_last"`.
            input_data_format (`str`, *optional*): of arrays and tensors, where their shape leaves a doubt.
            kwargs: any option of the constructor, for this call.

        Returns:
            `BatchFeature`: `pixel_values`, float32, `(batch, channels, crop height, crop width)`; 3 channels, or 1
            (see `image_mean`).
        """
        options = self._options(kwargs)
        arrays = [self._process(image, options) for image in _as_images(images, input_data_format)]
        if _is_channels_first(data_format):
            arrays = [np.ascontiguousarray(array.transpose(2, 0, 1)) for array in arrays]
        return _batch(arrays, return_tensors)

    def _options(self, overrides):
        overrides.pop("device", None)  # the torchvision form's
        unknown = set(overrides) - set(_OPTIONS)
        if unknown:
            raise ValueError(f"Unknown image processor option: {', '.join(sorted(unknown))}.")
        options = {name: getattr(self, name) for name in _OPTIONS}
        options.update({name: value for name, value in overrides.items() if value is not None})
        options["size"] = _resize_size(options["size"])
        options["crop_size"] = _crop_size(options["crop_size"])
        for name in ("image_mean", "image_std"):
            options[name] = _per_channel(name, options[name])
        return options

    def _process(self, image, options):
        """One PIL image to an array (height, width, channels), float32 unless neither rescaled nor normalised."""
        if options["do_convert_rgb"]:
            image = _with_channels(image, len(options["image_mean"]))
        width, height, box = _geometry(image.size, options)
        pixels = np.asarray(_resize_and_crop(image, width, height, options["resample"], box))
        pixels = pixels[:, :, None] if pixels.ndim == 2 else pixels
        if not options["do_rescale"] and not options["do_normalize"]:
            return pixels
        # The order and precision of PaddleClas's NormalizeImage, so that every bit agrees; a row at a time, because
        # NumPy is slow on an innermost dimension of 3.
        height, width, channels = pixels.shape
        rows = pixels.reshape(height, width * channels).astype("float32")
        if options["do_rescale"]:
            rows *= np.float32(options["rescale_factor"])
        if options["do_normalize"]:
            rows -= np.tile(np.array(options["image_mean"], dtype="float32"), width)
            rows /= np.tile(np.array(options["image_std"], dtype="float32"), width)
        return rows.reshape(height, width, channels)

    def to_dict(self):
        """What ``preprocessor_config.json`` holds."""
        output = {name: getattr(self, name) for name in _OPTIONS}
        return {**output, "image_processor_type": type(self).__name__, "auto_map": AUTO_MAPS["image_processor"]}


_TorchvisionBase = torchvision_image_processor_base()

if _TorchvisionBase is None:

    class HGNetV2ImageProcessorFast(HGNetV2ImageProcessor):
        """The torchvision form; torchvision is not installed here."""

        def __init__(self, *args, **kwargs):
            raise ImportError(
                "HGNetV2ImageProcessorFast needs torchvision: `pip install torchvision`, or use HGNetV2ImageProcessor."
            )

else:

    class HGNetV2ImageProcessorFast(HGNetV2ImageProcessor, _TorchvisionBase):
        r"""
        The same transform with torchvision: same geometry, faster, and on `device="cuda"` if asked. Interpolation
        rounds differently: within 2 grey levels of PIL on photos; at most 32 on noise, for tall images that shrink.

        Example:

            >>> import PIL.Image
            >>> import torch
            >>> import hgnetv2_hf
            >>> processor = hgnetv2_hf.HGNetV2ImageProcessorFast(size={"shortest_edge": 236})
            >>> processor(PIL.Image.new("RGB", (640, 480)), return_tensors="pt").pixel_values.shape
            torch.Size([1, 3, 224, 224])
        """

        slow_image_processor_class = HGNetV2ImageProcessor

        def preprocess(
            self, images, return_tensors=None, data_format="channels_first", input_data_format=None, **kwargs
        ):
            device = kwargs.pop("device", None)
            options = self._options(kwargs)
            tensors = [self._process(image, options, device) for image in _as_images(images, input_data_format)]
            if not _is_channels_first(data_format):
                tensors = [tensor.permute(1, 2, 0) for tensor in tensors]
            if return_tensors != "pt":
                tensors = [tensor.cpu().numpy() for tensor in tensors]
            return _batch(tensors, return_tensors)

        def _process(self, image, options, device):
            """One PIL image to a float32 tensor (channels, height, width)."""
            if options["do_convert_rgb"]:
                image = _with_channels(image, len(options["image_mean"]))
            pixels = torch.from_numpy(np.array(image))
            pixels = pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)
            pixels = pixels.to(device)
            width, height, (left, top, right, bottom) = _geometry(image.size, options)
            if image.size != (width, height):
                pixels = _torchvision_resize(pixels, width, height, options["resample"])
            pixels = pixels[:, top:bottom, left:right]
            if options["do_rescale"]:
                pixels = pixels.float() * options["rescale_factor"]
            if options["do_normalize"]:
                mean = torch.tensor(options["image_mean"], device=pixels.device).view(-1, 1, 1)
                std = torch.tensor(options["image_std"], device=pixels.device).view(-1, 1, 1)
                pixels = (pixels.float() - mean) / std
            return pixels.contiguous()


def _torchvision_resize(pixels, width, height, resample):
    try:
        from torchvision.transforms import InterpolationMode
        from torchvision.transforms.v2 import functional as F
    except ImportError as error:
        raise ImportError("HGNetV2ImageProcessorFast needs torchvision: `pip install torchvision`.") from error
    modes = {
        PIL.Image.Resampling.NEAREST: InterpolationMode.NEAREST_EXACT,
        PIL.Image.Resampling.BILINEAR: InterpolationMode.BILINEAR,
        PIL.Image.Resampling.BICUBIC: InterpolationMode.BICUBIC,
    }
    if resample not in modes:
        raise ValueError(
            f"torchvision has no filter for resample={resample}; use the PIL form, HGNetV2ImageProcessor."
        )
    return F.resize(pixels, [height, width], interpolation=modes[resample], antialias=True)


def _geometry(image_size, options):
    """Width and height after resizing, and the box (left, top, right, bottom) that the crop keeps of it."""
    width, height = image_size
    if options["do_resize"]:
        width, height = _resized(width, height, options["size"])
    if options["do_center_crop"]:
        return width, height, _crop_box(width, height, options["crop_size"])
    return width, height, (0, 0, width, height)


def _resized(width, height, size):
    """Width and height after resizing; Python's ``round``, as PaddleClas."""
    if "shortest_edge" in size:
        scale = float(size["shortest_edge"]) / min(width, height)
        resized = int(round(width * scale)), int(round(height * scale))
    else:
        resized = size["width"], size["height"]
    if resized[0] * resized[1] > MAX_RESIZED_PIXELS:
        raise ValueError(
            f"An image of {width}×{height} pixels resized to {resized[0]}×{resized[1]} exceeds the limit of "
            f"{MAX_RESIZED_PIXELS} pixels; crop it first, or lower `size`."
        )
    return resized


def _crop_box(width, height, crop_size):
    if crop_size["width"] > width or crop_size["height"] > height:
        raise ValueError(
            f"The crop of {crop_size['width']}×{crop_size['height']} is larger than the resized image of "
            f"{width}×{height}; raise `size` or lower `crop_size`."
        )
    left = (width - crop_size["width"]) // 2
    top = (height - crop_size["height"]) // 2
    return left, top, left + crop_size["width"], top + crop_size["height"]


def _resize_and_crop(image, width, height, resample, box):
    """``image.resize((width, height), resample).crop(box)``, byte for byte, in bounded memory for 1 × 5000 pixels.

    PIL enlarges in two passes, columns first, and rounds to bytes in between. Doing the passes one by one, strip by
    strip, gives the same bytes. When the height shrinks PIL may begin with the rows, so it is left to PIL then.
    """
    if width * height <= _STRIP_PIXELS or height < image.height:
        return image.resize((width, height), resample).crop(box)
    left, top, right, bottom = box
    rows_per_strip = max(1, _STRIP_PIXELS // width)
    strips = []
    for start in range(0, image.height, rows_per_strip):
        strip = image.crop((0, start, image.width, min(start + rows_per_strip, image.height)))
        strips.append(strip.resize((width, strip.height), resample).crop((left, 0, right, strip.height)))
    wide = _paste(strips, (right - left, image.height), vertical=True)
    columns_per_strip = max(1, _STRIP_PIXELS // height)
    strips = []
    for start in range(0, wide.width, columns_per_strip):
        strip = wide.crop((start, 0, min(start + columns_per_strip, wide.width), wide.height))
        strips.append(strip.resize((strip.width, height), resample).crop((0, top, strip.width, bottom)))
    return _paste(strips, (right - left, bottom - top), vertical=False)


def _paste(strips, size, vertical):
    if len(strips) == 1:
        return strips[0]
    whole = PIL.Image.new(strips[0].mode, size)
    position = 0
    for strip in strips:
        whole.paste(strip, (0, position) if vertical else (position, 0))
        position += strip.height if vertical else strip.width
    return whole


def _with_channels(image, channels):
    """RGB, or its grey where the network has one channel."""
    image = to_rgb(image)
    return image.convert("L") if channels == 1 else image


def to_rgb(image):
    """PaddleClas decodes with OpenCV: EXIF rotation applied, transparency dropped, 16-bit values divided by 256."""
    file = getattr(image, "filename", "")  # PIL remembers it, and forgets it in copies
    subject = f"The image {file}" if file else "An image"
    image = PIL.ImageOps.exif_transpose(image)
    if image.mode == "RGB":
        return image
    if image.mode == "I" or image.mode.startswith("I;16"):
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(
                f"{subject} of mode {image.mode} with values from {values.min()} to {values.max()} has no defined "
                "scale; convert it to 8 or 16 bits first."
            )
        image = PIL.Image.fromarray((values // 256).astype("uint8"))
    elif image.mode == "F":
        raise ValueError(f"{subject} of mode F has no defined scale; convert it to 8 or 16 bits first.")
    elif image.mode == "CMYK":
        image = PIL.Image.fromarray(_cmyk_to_rgb(np.asarray(image)))
    return image.convert("RGB")


def _cmyk_to_rgb(values):
    """OpenCV's arithmetic (``icvCvt_CMYK2BGR_8u_C4C3R``), which PIL's differs from by one level."""
    light = 255 - values[:, :, 3:].astype("uint16")
    return (light - (values[:, :, :3] * light >> 8)).astype("uint8")


def _as_images(images, input_data_format):
    """Whatever the caller handed over, as a list of PIL images."""
    if isinstance(images, (list, tuple)):
        if not images:
            raise ValueError("There is no image to process: the list is empty.")
        return [image for item in images for image in _as_images(item, input_data_format)]
    if isinstance(images, PIL.Image.Image):
        return [images]
    if isinstance(images, (str, os.PathLike)):
        return [_open(images)]
    if isinstance(images, torch.Tensor):
        images = images.detach().cpu()
        images = (images.float() if images.dtype == torch.bfloat16 else images).numpy()
    if isinstance(images, np.ndarray):
        arrays = images if images.ndim == 4 else [images]
        return [_from_array(array, input_data_format) for array in arrays]
    raise ValueError(
        f"Cannot read an image from {type(images).__name__}; expected a path, a URL, a PIL image, an array or a "
        "tensor."
    )


def _open(source):
    source = os.fspath(source)
    if not os.path.exists(source) and source.startswith(("http://", "https://", "data:")):
        return load_image(source)
    try:
        with PIL.Image.open(source) as image:
            image.load()
            return image
    except Exception as error:  # PIL raises many kinds for damaged files
        raise ValueError(f"Cannot read the image {source}: {error}") from error


def _from_array(array, input_data_format):
    """A PIL image from a grey, RGB or RGBA array."""
    if array.ndim not in (2, 3) or 0 in array.shape:
        raise ValueError(
            f"An image array must have two or three dimensions, none of them empty; got shape {array.shape}."
        )
    if array.ndim == 3:
        if _channels_come_first(array, input_data_format):
            array = array.transpose(1, 2, 0)
        if array.shape[2] not in (1, 3, 4):
            raise ValueError(f"An image array must have 1, 3 or 4 channels; got shape {array.shape}.")
    return PIL.Image.fromarray(_as_bytes(array[:, :, 0] if array.shape[2:] == (1,) else array))


def _channels_come_first(array, input_data_format):
    if input_data_format is not None:
        return _is_channels_first(input_data_format)
    first, last = array.shape[0] in (1, 3, 4), array.shape[2] in (1, 3, 4)
    if first and last and array.shape[0] != array.shape[2]:
        raise ValueError(f"Channels may be first or last in shape {array.shape}; say which with `input_data_format`.")
    return first and not last


def _as_bytes(array):
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.bool_:
        return array.astype("uint8") * np.uint8(255)
    if array.dtype == np.uint16:
        return (array // 256).astype("uint8")
    if not np.isfinite(array).all():
        raise ValueError("The image array holds values that are not finite.")
    low, high = array.min(), array.max()
    if np.issubdtype(array.dtype, np.floating) and 0 <= low and high <= 1:
        return np.rint(array * 255).astype("uint8")
    if 0 <= low and high <= 255 and (array == np.rint(array)).all():
        return array.astype("uint8")
    raise ValueError(
        f"Cannot tell the scale of an image array of {array.dtype} with values from {low} to {high}; "
        "hand over uint8, uint16, or floats in 0…1."
    )


def _batch(arrays, return_tensors):
    if return_tensors is not None and len({array.shape for array in arrays}) > 1:
        raise ValueError(
            "Images of different sizes cannot form one batch without `do_center_crop` or a fixed `size`; "
            "leave out `return_tensors` to get a list."
        )
    return BatchFeature(data={"pixel_values": arrays}, tensor_type=return_tensors)


def _is_channels_first(data_format):
    value = getattr(data_format, "value", data_format)
    if value not in ("channels_first", "channels_last"):
        raise ValueError(f'A data format is "channels_first" or "channels_last", not {data_format!r}.')
    return value == "channels_first"


def _resize_size(size):
    size = dict(size) if hasattr(size, "keys") else {"shortest_edge": size}
    size = {key: value for key, value in size.items() if value is not None}
    if set(size) not in ({"shortest_edge"}, {"height", "width"}) or not all(map(_is_positive, size.values())):
        raise ValueError(
            f'`size` must be {{"shortest_edge": n}} or {{"height": h, "width": w}} in pixels; got {size}.'
        )
    return size


def _crop_size(size):
    size = dict(size) if hasattr(size, "keys") else {"height": size, "width": size}
    size = {key: value for key, value in size.items() if value is not None}
    if set(size) != {"height", "width"} or not all(map(_is_positive, size.values())):
        raise ValueError(f'`crop_size` must be {{"height": h, "width": w}} in pixels; got {size}.')
    return size


def _is_positive(value):
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool) and value > 0


def _per_channel(name, values):
    values = [values] * 3 if isinstance(values, (int, float)) else [float(value) for value in values]
    if name == "image_std" and not all(values):
        raise ValueError(f"`image_std` must not hold zeros; got {values}.")
    return values


__all__ = ["HGNetV2ImageProcessor", "HGNetV2ImageProcessorFast"]
