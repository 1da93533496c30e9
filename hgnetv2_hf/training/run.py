"""``hgnetv2-hf train``: a recipe on Hugging Face ``Trainer``, from data to a folder that `pipeline` takes.

While it runs, everything lies in ``OUTPUT.training``: checkpoints, logs and what was asked for. The same command
continues after the last whole checkpoint. ``OUTPUT`` appears at the end, complete, and ``OUTPUT.training`` goes.
"""

import contextlib
import dataclasses
import functools
import os
import shutil
from typing import Any, Optional

from ..errors import TrainingError, raised_as
from ..files.atomic import claim
from ..files.processes import in_main_process
from . import recipe
from .fit import fit
from .load import load_start, load_teacher, load_training_data, with_answers
from .options import Options
from .plan import build_training_arguments, check_request, make_plan, make_request
from .preprocessing import Preprocessing, build_augmentation
from .report import close_to_chance, draw_data, summary
from .trainer import uses_fsdp
from .work_folder import DATA_PICTURE, enter_work_folder, where_drawn
from .write import describe, write


@dataclasses.dataclass
class Trained:
    """What [`train`] did. ``str(result)`` is what the command prints."""

    output_dir: str
    metrics: dict[str, Any]  # what metrics.json holds

    def __str__(self):
        return summary(self.output_dir, self.metrics)


@raised_as(TrainingError)
def train(
    data: str, model: str, output_dir: str, options: Optional[Options] = None, overwrite: bool = False, show=print,
    **training_arguments,
) -> Trained:  # fmt: skip
    """
    Trains an image classifier with a recipe for its data, or distils one.

    Args:
        data (`str`): an image folder, the name of a data set of the `datasets` library, or `"digits"`.
        model (`str`): a classifier's folder or repository, a weight file or published name, or a variant (`"b0"`) with
            fresh weights. Any Transformers image classifier; options that are about stages need an HGNetV2.
        output_dir (`str`): the folder to write: model, labels, image processor, card, `metrics.json`, `curves.png`.
        options ([`Options`], *optional*)
        overwrite (`bool`, defaults to `False`): replace an existing folder, and start anew where another run was
            interrupted.
        show (callable, defaults to `print`): receives lines of text.
        training_arguments: every argument of `TrainingArguments` but `output_dir`; the defaults are those of
            `recipe.py`.

    Returns:
        [`Trained`]

    Raises:
        `TrainingError`: the data, the model or the output do not allow it; said before training starts.
    """
    with environment_restored():
        request = make_request(
            str(data), str(model), str(output_dir), options or Options(), overwrite, training_arguments
        )
        return _train(request, show)


def _train(request, show):
    # The data will say which recipe, but the processes that read them have to find each other first.
    args = build_training_arguments(request, recipe.RECIPES["imagenet"])
    check_request(request, args)
    is_main = args.process_index == 0
    in_main = functools.partial(in_main_process, is_main)
    show = show if is_main else lambda line: None
    with contextlib.ExitStack() as stack:
        in_main(lambda: stack.enter_context(claim_output(request)))
        data = load_training_data(request.data, request.options, args.seed, in_main, show)
        plan = make_plan(request, args, None if request.options.streaming else len(data.train), show)
        resumes = in_main(lambda: enter(request, plan.args, data))
        with work_kept_if_it_can_continue(request.work, is_main):
            return _train_in_work_folder(request, plan, data, resumes, in_main, show)


def _train_in_work_folder(request, plan, data, resumes, in_main, show):
    options, args, work = plan.options, plan.args, request.work
    teacher = load_teacher(options.teacher, work, in_main)
    data = with_answers(data, teacher, args)
    start = load_start(request.model, data.classes, teacher, options, args.seed, work, in_main)
    data = data.renumbered(start.classes)
    for line in start.notes:
        show(line)
    if options.draw_data:
        in_main(lambda: _draw_data(data, start.image_processor, request, show))
    fitted = fit(start, teacher, data, plan, work, resumes, in_main, show)
    metrics = {**describe(request, plan, data, start), **fitted.figures}
    metrics["close_to_chance"] = close_to_chance(metrics)
    if options.compare_from_scratch:
        show("\nfrom scratch, on the same data:")
        fresh_options = dataclasses.replace(options, from_scratch=True)
        fresh = load_start(request.model, data.classes, teacher, fresh_options, args.seed, work, in_main)
        same = data.renumbered(fresh.classes)
        other = fit(fresh, teacher, same, plan, work / "from_scratch", resumes, in_main, show)
        metrics["from_scratch"] = other.figures
    state_dict = None
    if uses_fsdp(args):  # every process hands over its part
        state_dict = fitted.trainer.accelerator.get_state_dict(fitted.trainer.model_wrapped)
    in_main(lambda: write(request, start, fitted, metrics, state_dict, show))
    return Trained(request.output_dir, metrics)


def claim_output(request):
    """The lock on the output of a request."""
    return claim(request.output_dir, request.model if os.path.isdir(request.model) else None, request.overwrite)


def enter(request, args, data):
    """Enters the work folder of a request: whether an interrupted run is taken up there."""
    settings = {
        "data": _absolute(request.data),
        "model": _absolute(request.model),
        "processes": args.world_size,
        **dataclasses.asdict(request.options),
        **request.training_arguments,
    }
    return enter_work_folder(request.work, settings, data.fingerprint(), request.overwrite)


def _absolute(name):
    return os.path.abspath(name) if os.path.exists(name) else name


@contextlib.contextmanager
def work_kept_if_it_can_continue(work, is_main):
    """Removes the work folder after an error unless a checkpoint lies there."""
    try:
        yield
    except BaseException:
        if is_main and not any(work.rglob("checkpoint-*")):
            shutil.rmtree(work, ignore_errors=True)
        raise


def _draw_data(data, processor, request, show):
    options, path = request.options, request.work / DATA_PICTURE
    if options.streaming:
        raise TrainingError("--draw-data needs data that are no stream.")
    draw_data(data, Preprocessing(processor), build_augmentation(processor, options), options.draw_data, path)
    show(where_drawn(request.work, request.output_dir))


@contextlib.contextmanager
def environment_restored():
    """`TrainingArguments` leaves its precision and more there, and the next run in this process would take it over."""
    environment = dict(os.environ)
    try:
        yield
    finally:
        for name in [name for name in os.environ if name.startswith(("ACCELERATE_", "FSDP_"))]:
            if name in environment:
                os.environ[name] = environment[name]
            else:
                del os.environ[name]
