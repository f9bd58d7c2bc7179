"""Prediction of images: a table for a person, a file if asked, and a folder of maps for slides and evidence."""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from histo_pl.errors import UserError
from histo_pl.hardware import keep_freed_memory as keep_memory
from histo_pl.images import OPENCV_RESIZE, read_rgb, read_size, squeeze_pixels
from histo_pl.inference.files import find_images, find_others
from histo_pl.inference.folder import forget_run, names_of, open_folder
from histo_pl.inference.predictor import Prediction, Predictor
from histo_pl.inference.shards import Shard, is_done, mark_done
from histo_pl.inference.slide_options import LARGE, SlideOptions
from histo_pl.inference.table import FORMATS, check_format, format_table, write_table
from histo_pl.models.checkpoint import CANNOT_TELL, SYNTHETIC, UNCALIBRATED_TTA, TrainedModel, find_checkpoint
from histo_pl.models.ensemble import load_model
from histo_pl.models.evidence import method_for
from histo_pl.models.scale import describe_other_scale
from histo_pl.signals import CommandLine
from histo_pl.slides.opening import is_slide

PREPROCESS = {"opencv": OPENCV_RESIZE}
SLIDE_BATCH_SIZE = 8  # on a processor: reading bounds the speed, and less memory is flatter (docs/benchmarks.md)
ENGINES = (None, "ray")
EVIDENCE = "evidence"  # the folder of the tiles' maps
TABLE = "predictions.csv"  # of the tiles beside slides


def predict(
    ckpt: str | None,
    img: str | None,
    out: str | None = None,
    device: str = "auto",
    batch_size: int | None = None,
    preprocess: str | None = None,
    tta: bool = False,
    keep_freed_memory: bool = True,
    shard: str | None = None,
    engine: str | None = None,
    command_line: CommandLine = lambda *_: None,
    **slide_options: Any,  # noqa: ANN401
) -> int:
    """Print a table of predictions, and write it if asked.

    Slides, and images much larger than the training tiles, are cut into tiles, and a folder is written with their maps.

    Args:
        ckpt: A checkpoint's path, or `latest`.
        img: An image file, a slide, a folder or a pattern.
        out: A .csv or .json file to write; with slides or evidence maps a folder; None: predictions/DAY/TIME for those.
        device: See `Predictor`.
        batch_size: See `Predictor`; None, where slides are asked about on a processor: `SLIDE_BATCH_SIZE`.
        preprocess: The resize to the network's size. None: that of its training; `opencv`: that of the
            notebook's prediction.
        tta: See `Predictor`.
        keep_freed_memory: Keep freed memory for the next tensor, see `hardware.keep_freed_memory`.
        shard: One of several equal parts of the files, such as `3/16`; `out` is then a folder that all share, see
            `shards.merge`.
        engine: None: this process; `ray`: the processes of a Ray cluster, or of this machine.
        command_line: Writes this run's command with some keys changed, for the message of a stopped run.
        **slide_options: The arguments of `SlideOptions.of`.

    Returns:
        The exit status: 0, or 1 if any file has no answer.

    Raises:
        UserError: An argument is missing or wrong, or a single file was asked for and has no answer.
    """
    if keep_freed_memory:
        keep_memory()
    options, part = SlideOptions.of(**slide_options), Shard.of(shard)
    checkpoint, found = find_checkpoint(ckpt), find_images(img)
    names = dict(zip(found, names_of(found), strict=True))
    files = found if part is None else [file for file in found if part.holds(names[file])]
    if engine not in ENGINES:
        raise UserError(f"engine is unknown. Expected null or ray. Received: engine={engine}")
    make_predictor = partial(_make_predictor, checkpoint.absolute(), preprocess, device, batch_size, tta)
    predictor = make_predictor()
    is_tiled = {file: options.is_tiled(file, predictor.model) for file in files}
    tiled, plain = ([file for file in files if is_tiled[file] is wanted] for wanted in (True, False))
    if tiled and batch_size is None and predictor.device == "cpu":
        predictor.batch_size = SLIDE_BATCH_SIZE
    folder = None
    if tiled or options.explain is not False or part is not None:
        settings = options.settings() | {"batch_size": batch_size, "tta": tta, "preprocess": preprocess}
        own = out if part is None else _folder_of_shard(out, part)
        folder = _open_folder(own, checkpoint, predictor, settings, command_line)
    elif out is not None:
        check_format(Path(out))
    if folder and is_done(folder):
        print(f"{folder} is finished already.", file=sys.stderr)
        return 0
    asked = _Asked(checkpoint, img, names, tiled, plain, make_predictor if engine else None)
    errors = _answer(predictor, asked, options, folder, Path(out) if out else None)
    for note in _notes(predictor, find_others(str(img))):
        print(note, file=sys.stderr)
    if folder and part is not None:
        mark_done(folder, names, files, len(errors))
    if errors:
        print(f"{len(errors)} of {len(files)} files have no answer.", file=sys.stderr)
    return int(bool(errors))


@dataclass(frozen=True)
class _Asked:
    """The question: the images, and the model that is asked.

    Attributes:
        checkpoint: Of the model that is asked.
        img: As the user named them.
        names: Of all, for their folders, see `names_of`.
        tiled: Those that are cut into tiles.
        plain: Those that are one tile each.
        by_ray: Makes the predictor of each of Ray's processes; None: this process answers.
    """

    checkpoint: Path
    img: str | None
    names: Mapping[Path, str]
    tiled: Sequence[Path]
    plain: Sequence[Path]
    by_ray: Callable[[], Predictor] | None = None

    @property
    def is_single(self) -> bool:
        """True if one file was named."""
        return list(self.names) == [Path(str(self.img))]


def _answer(
    predictor: Predictor, asked: _Asked, options: SlideOptions, folder: Path | None, table: Path | None
) -> list[str]:
    """Answer for all images, print the tables, and write them; return the errors."""
    predictions = _predict(predictor, asked) if asked.plain else []
    errors = [p.error for p in predictions if p.error]
    if errors and asked.is_single:
        raise UserError(errors[0])
    print(f"Model: {asked.checkpoint}, trained on: {predictor.model.trained_on}", file=sys.stderr)
    _announce(asked.tiled, asked.plain, predictor.model, options)
    if predictions:
        _show(predictions, folder / TABLE if folder else table)
    if folder:
        _write_evidence(predictor, predictions, folder / EVIDENCE, options, asked.names)
        errors += _predict_slides(predictor, asked, folder, options) if asked.tiled else []
        print(f"Everything is in {folder}{'; look at report.html' if asked.tiled else ''}.", file=sys.stderr)
    return errors


def _make_predictor(
    checkpoint: Path, preprocess: str | None, device: str, batch_size: int | None, tta: bool
) -> Predictor:
    return Predictor(_load(checkpoint, preprocess), device, batch_size, tta)


def _predict(predictor: Predictor, asked: _Asked) -> list[Prediction]:
    if asked.by_ray is None:
        return list(predictor.predict(asked.plain))
    from histo_pl.inference.ray_engine import predict_by_ray

    return predict_by_ray(asked.by_ray, asked.plain)


def _ask_slides(predictor: Predictor, asked: _Asked, folder: Path, options: SlideOptions) -> list[dict[str, Any]]:
    from histo_pl.inference.slide_run import ask_or_fail, ask_slides

    files = {file: asked.names[file] for file in asked.tiled}
    if asked.by_ray is None:
        return ask_slides(predictor, files, folder, options)
    from histo_pl.inference.ray_engine import ask_slides_by_ray

    return ask_slides_by_ray(asked.by_ray, partial(ask_or_fail, folder=folder.absolute(), options=options), files)


def _open_folder(
    out: str | None, checkpoint: Path, predictor: Predictor, settings: dict[str, Any], command_line: CommandLine
) -> Path:
    """Check what is to be written into a folder, and open it."""
    method_for(predictor.network, settings["explain"])
    if out is not None and (Path(out).suffix.lower() in FORMATS or Path(out).is_file()):
        raise UserError(
            f"Slides and evidence maps are written into a folder. Expected out=FOLDER, or none for "
            f"predictions/DAY/TIME. Received: out={out}"
        )
    return open_folder(out, checkpoint, settings, command_line)


def _folder_of_shard(out: str | None, shard: Shard) -> str:
    if out is None:
        raise UserError(f"All shards share a folder. Expected out=FOLDER. Received: shard={shard.number}/{shard.count}")
    return str(Path(out, shard.folder))


def _announce(tiled: Sequence[Path], plain: Sequence[Path], model: TrainedModel, options: SlideOptions) -> None:
    """Name the images that are cut into tiles although they are no slides, and the large ones that are not."""
    large = [file for file in tiled if not is_slide(file)]
    if large and options.tile is None and model.tile_size:
        width, height = model.tile_size
        print(
            f"Cut into tiles, as they are larger than twice the training's ({width}x{height} pixels, or their field of "
            f"view where the scale is known): {len(large)} images, such as {large[0]}. The table has a row for each "
            f"image. tile=false squeezes the whole instead.",
            file=sys.stderr,
        )
    note = describe_other_scale(model, options.scale.mpp) if plain else None
    if note:
        print(note, file=sys.stderr)
    if plain and options.tile is None and model.tile_size is None:
        _warn_of_large(plain, model)


def _warn_of_large(plain: Sequence[Path], model: TrainedModel) -> None:
    """Say that an older checkpoint does not know the size of its training tiles, if an image is large."""
    for file in plain:
        try:
            size = read_size(file)
        except UserError:
            continue
        if max(size) > LARGE * model.image_size:
            print(
                f"Squeezed whole, as this checkpoint does not say the size of its training tiles: {file} "
                f"({size[0]}x{size[1]} pixels), perhaps others. tile=PIXELS cuts it into tiles.",
                file=sys.stderr,
            )
            return


def _show(predictions: Sequence[Prediction], table: Path | None) -> None:
    print(format_table(predictions))
    if table is not None:
        write_table(predictions, table)


def _write_evidence(
    predictor: Predictor,
    predictions: Sequence[Prediction],
    folder: Path,
    options: SlideOptions,
    names: Mapping[Path, str],
) -> None:
    """Draw the evidence map of each image that has an answer, if asked."""
    answered = [(Path(p.file), p.probability) for p in predictions if p.probability is not None]
    if options.explain is False or not answered:
        return
    from histo_pl.inference.pictures import write_evidence  # it loads matplotlib

    for file, probability in answered:
        pixels = read_rgb(file)
        image = squeeze_pixels(pixels, predictor.model.image_size, predictor.model.resize)[None]
        picture = folder / f"{names[file]}.png"
        picture.parent.mkdir(parents=True, exist_ok=True)
        write_evidence(picture, pixels, predictor.explain(image, options.explain), probability, names[file])


def _predict_slides(predictor: Predictor, asked: _Asked, folder: Path, options: SlideOptions) -> list[str]:
    """Answer for slides, print their table and write the run's folder; return the errors."""
    from histo_pl.inference.slide_report import write_report  # they load matplotlib
    from histo_pl.inference.slide_run import format_summaries, write_summaries

    summaries = _ask_slides(predictor, asked, folder, options)
    errors = [one["error"] for one in summaries if one.get("error")]
    if errors and asked.is_single:
        forget_run(folder)
        raise UserError(errors[0])
    print(format_summaries(summaries))
    write_summaries(folder / "slides.csv", summaries)
    title = f"Slides: the opinion of a model trained on {predictor.model.trained_on}"
    write_report(folder / "report.html", title, _notes(predictor, ()), summaries)
    return errors


def _notes(predictor: Predictor, passed_over: Sequence[Path]) -> list[str]:
    """List what a reader must know of the answers."""
    return [
        *([UNCALIBRATED_TTA] if predictor.tta and not predictor.model.decision_tta else []),
        *([] if predictor.tells_novelty else [CANNOT_TELL]),
        *([f"Passed over, as no images: {len(passed_over)} files, such as {passed_over[0]}"] if passed_over else []),
        *([SYNTHETIC] if predictor.model.data["synthetic"] else []),
    ]


def _load(checkpoint: Path, preprocess: str | None) -> TrainedModel:
    if preprocess is None:
        return load_model(checkpoint)
    if preprocess not in PREPROCESS:
        raise UserError(
            f"preprocess is unknown. Expected {' or '.join(PREPROCESS)}, or null for the resize of the training. "
            f"Received: {preprocess}"
        )
    return replace(load_model(checkpoint), resize=PREPROCESS[preprocess])
