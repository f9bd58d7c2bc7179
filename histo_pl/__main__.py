"""Commands of python -m histo_pl: all that is not training, evaluation or prediction."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from histo_pl.cli.command_line import fast_imports, one_line_errors, prepare_process
from histo_pl.serving.limits import LIMITS, Limits

CHECKPOINT = "a best.ckpt, a run's or a cross-validation's folder, or latest"

CONVERT = """\
Convert a Keras model of the notebook's network to a checkpoint of histo_pl, or a checkpoint to a Keras model.

  python -m histo_pl convert Breast_Cancer_Model.h5 model.ckpt
  python -m histo_pl convert weights.h5 model.ckpt --image-size 512
  python -m histo_pl convert outputs/DAY/TIME/best.ckpt model.h5

Reads .h5 and .keras of Keras 2 and 3, whole models and weights alone; writes .h5, which both read. Keras is
not needed, and nothing in the file is executed. docs/keras.md says more."""

SUMMARIZE = """\
Compare the runs below a folder: mean, standard deviation and every value of each metric. If they are the folds of one
cross-validation, all their test tiles are pooled, with intervals.

  python -m histo_pl summarize multirun/DAY/TIME

Writes summary.json and summary.png into the folder."""

AUDIT = """\
Look in folders of tiles for what makes results untrue: unreadable files, copies (exact, turned, flipped, zoomed,
sheared, recompressed or brightened), one image in both classes, copies and cases on both sides of a split, classes that
differ in how their files are stored, and how well colour alone tells the classes apart.

  python -m histo_pl audit tiles
  python -m histo_pl audit tiles --group-regex 'patient\\d+'
  python -m histo_pl audit train test
  python -m histo_pl audit BreaKHis_v1 data=breakhis data.magnification=200

Altered copies need OpenCV: pip install -e '.[audit]'. The copies go to groups.csv, which data.groups_file= takes, so
that the next split keeps them together."""

RECALIBRATE = """\
Fit a checkpoint to another laboratory with a few labelled tiles of it: offset and slope of the logit, the threshold,
and the limit beyond which a tile is unlike the training. All are shrunk towards what they were, so that three tiles a
class do no harm. What to expect there is printed, cross-validated by case, and a new checkpoint written.

  python -m histo_pl recalibrate outputs/DAY/TIME/best.ckpt theirs.ckpt --data tiles
  python -m histo_pl recalibrate latest theirs.ckpt --data tiles data.group_regex='patient\\d+'

Take the tiles at random from what the model will see: the probabilities hold for their share of malignant ones."""

ROBUSTNESS = """\
Ask a checkpoint about tiles that it has not seen, as they are and altered by growing strengths: other stains,
magnifications, gamma, white balance, blur and compression; and by each further fact, such as the scanner.

  python -m histo_pl robustness latest tiles data.group_regex='patient\\d+'
  python -m histo_pl robustness multirun/DAY/TIME tiles data.columns.scanner='scan-([a-z]+)'

Of a cross-validation each tile is answered by the models that have not seen it. Writes robustness.csv, robustness.png
and, with data.columns, columns.csv."""

BENCHMARK = """\
Measure this machine: reading tiles with each cache, a training step and its share of what the device can do, whole
epochs, prediction, and the time to start. It draws its own tiles and leaves nothing behind. At 512 pixels it takes ten
minutes on two cores; of one round, or of tiles of 64 pixels, little can be concluded.

  python -m histo_pl benchmark
  python -m histo_pl benchmark --image-size 224 --batch-size 32

docs/benchmarks.md explains the tables, and has those against Keras on TensorFlow."""


EXPORT = """\
Write a folder with a model that other programs run, and its card. It is compared with the checkpoint on tiles, and not
written if a probability differs by more than 0.0001.

  python -m histo_pl export latest model_onnx                             # ONNX: onnxruntime, Pillow and NumPy suffice
  python -m histo_pl export latest model_torch --to torch                 # a .pt2 of torch.export
  python -m histo_pl export latest model_qupath --to qupath --mpp 0.5     # for QuPath's WSInfer extension
  python -m histo_pl export multirun/DAY/TIME model_onnx --tiles tiles    # all folds as one, compared on your tiles

ONNX needs pip install -e '.[onnx]'. docs/handover.md says more."""

CARD = """\
Print the model card of a checkpoint in Markdown, with Hugging Face's metadata: from the checkpoint and the results.json
beside it alone. What they do not say is called unknown.

  python -m histo_pl card latest > README.md"""

MERGE = """\
Join the tables of all shards of a prediction, in the order of one run.

  python predict.py ckpt=best.ckpt img=slides out=opinions shard=1/16     # to 16/16, on any machines with one disk
  python -m histo_pl merge opinions

Names the shards that are missing, or unfinished; each can be run again. docs/clusters.md says more."""

SWEEP = """\
Search for settings by Optuna: trials are runs of train.py, and the objective is the AUROC of the validation tiles,
never of the test. Trials that others outdo by the same epoch are pruned.

  python -m histo_pl sweep study data=folder data.root=tiles                 # 20 trials over conf/sweep/learning.yaml
  python -m histo_pl sweep study data=folder data.root=tiles --trials 40     # goes on to 40
  python -m histo_pl sweep study data=folder data.root=tiles data.folds=5 --space my_space.yaml   # the mean of folds

Stopped or killed, the same line goes on; several processes that run it share the trials. It needs
pip install -e '.[sweep]'. docs/clusters.md says more."""

SERVE = """\
Answer for tiles that are dropped on a page, or sent to an HTTP API, until it is stopped. Nothing that is sent is
written to the disk or logged.

  python -m histo_pl serve latest                                      # http://127.0.0.1:8000, for this machine alone
  HISTO_PL_TOKEN=... python -m histo_pl serve latest --host 0.0.0.0    # for others, who need the token

It needs pip install -e '.[serve]'. docs/serving.md describes the API."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command.

    Args:
        arguments: The command line without the program's name; None: `sys.argv`'s.
    """
    parser = _parser()
    found, rest = parser.parse_known_args(arguments)
    options = vars(found)
    if "arguments" in options and not any(one.startswith("-") for one in rest):
        options["arguments"] += rest  # argparse takes none that follow an option
    elif rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    run = options.pop("run", None)
    if run is None:
        parser.print_help()
        return
    with one_line_errors():
        print(run(**options))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m histo_pl",
        description="What is not training (train.py) or prediction (predict.py).",
        epilog="python -m histo_pl COMMAND --help tells more of each.",
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    _add_audit(commands)
    _add_benchmark(commands)
    _add_card(commands)
    _add_convert(commands)
    _add_export(commands)
    _add_merge(commands)
    _add_recalibrate(commands)
    _add_robustness(commands)
    _add_serve(commands)
    _add_summarize(commands)
    _add_sweep(commands)
    return parser


def _add(commands: Any, name: str, purpose: str, description: str, run: Callable[..., str]) -> argparse.ArgumentParser:  # noqa: ANN401
    raw = argparse.RawDescriptionHelpFormatter
    parser = commands.add_parser(name, help=purpose, description=description, formatter_class=raw)
    parser.set_defaults(run=run)
    return parser


def _add_audit(commands: Any) -> None:  # noqa: ANN401
    parser = _add(commands, "audit", "look for copies and leaks in folders of tiles", AUDIT, _audit)
    help_text = "a folder of tiles, and keys of conf/data as train.py takes them, such as data.exclude='**/old/**'"
    parser.add_argument("folders", nargs="+", metavar="DIR", help=help_text)
    parser.add_argument(
        "--group-regex", metavar="REGEX", help="finds the patient in a tile's path, as data.group_regex"
    )
    parser.add_argument("--split-file", type=Path, metavar="CSV", help="a split.csv: which part each tile belongs to")
    parser.add_argument("--exact-only", action="store_true", help="do not look for altered copies")
    parser.add_argument("--out", type=Path, metavar="DIR", help="the folder to write (default: audits/DAY/TIME)")


def _audit(folders: Sequence[str], group_regex: str | None, exact_only: bool, **options: Any) -> str:  # noqa: ANN401
    with fast_imports():
        from histo_pl.audit.run import audit_tiles
        from histo_pl.cli.data_options import source_options, split_arguments

    folders, keys = split_arguments(folders)
    source = source_options(keys) | ({} if group_regex is None else {"group_regex": group_regex})
    return audit_tiles(folders, exact_only=exact_only, **options, **source)


def _add_benchmark(commands: Any) -> None:  # noqa: ANN401
    parser = _add(
        commands, "benchmark", "measure how fast this machine reads, trains and predicts", BENCHMARK, _benchmark
    )
    parser.add_argument("--image-size", type=int, default=512, metavar="PIXELS", help="side of a tile (default: 512)")
    parser.add_argument("--batch-size", type=int, default=8, metavar="TILES", help="tiles a batch (default: 8)")
    parser.add_argument("--tiles", type=int, default=200, metavar="N", help="tiles, of which 80%% train (default: 200)")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="how often each is measured (default: 5)")


def _benchmark(**options: Any) -> str:  # noqa: ANN401
    with fast_imports():
        from histo_pl.benchmark import benchmark

    for part in benchmark(**options):
        print(part, flush=True, end="\n\n")
    return "The tiles were drawn by a program. docs/benchmarks.md explains the tables."


def _add_card(commands: Any) -> None:  # noqa: ANN401
    parser = _add(commands, "card", "the model card of a checkpoint", CARD, _card)
    parser.add_argument("checkpoint", metavar="CKPT", help=CHECKPOINT)


def _card(checkpoint: str) -> str:
    with fast_imports():
        from histo_pl.interop.model_card import format_card
        from histo_pl.models.ensemble import load_original

    return format_card(*load_original(checkpoint)).rstrip()


def _add_export(commands: Any) -> None:  # noqa: ANN401
    parser = _add(commands, "export", "a model for ONNX, torch.export or QuPath", EXPORT, _export)
    parser.add_argument("checkpoint", metavar="CKPT", help=CHECKPOINT)
    parser.add_argument("out", type=Path, metavar="OUT", help="the folder to write, a new one")
    parser.add_argument("--to", choices=("onnx", "torch", "qupath"), default="onnx", help="default: onnx")
    parser.add_argument(
        "--mpp", type=float, help="micrometres per pixel of the training tiles, for QuPath (default: the checkpoint's)"
    )
    parser.add_argument("--tiles", type=Path, metavar="DIR", help="tiles to compare on (default: some are drawn)")


def _export(**options: Any) -> str:  # noqa: ANN401
    with fast_imports():
        from histo_pl.interop.export import export

    return export(**options)


def _add_merge(commands: Any) -> None:  # noqa: ANN401
    parser = _add(commands, "merge", "join the shards of a prediction", MERGE, _merge)
    parser.add_argument("folder", type=Path, metavar="OUT", help="the out= of the shards")


def _merge(folder: Path) -> str:
    with fast_imports():
        from histo_pl.inference.shards import merge

    return merge(folder)


def _add_recalibrate(commands: Any) -> None:  # noqa: ANN401
    parser = _add(commands, "recalibrate", "fit a checkpoint to another laboratory", RECALIBRATE, _recalibrate)
    parser.add_argument("checkpoint", metavar="CKPT", help="a best.ckpt, a run's folder, or latest")
    parser.add_argument("out", type=Path, metavar="OUT", help="the checkpoint to write, a new file")
    help_text = "the folder of its labelled tiles, and keys of conf/data, such as data.group_regex='patient\\d+'"
    parser.add_argument("--data", nargs="+", required=True, metavar="DIR", help=help_text)


def _recalibrate(data: Sequence[str], **options: Any) -> str:  # noqa: ANN401
    with fast_imports():
        from histo_pl.cli.data_options import folder_and_options
        from histo_pl.evaluation.recalibrate import recalibrate

    root, data_options = folder_and_options(data)
    return recalibrate(**options, root=root, **data_options)


def _add_robustness(commands: Any) -> None:  # noqa: ANN401
    parser = _add(commands, "robustness", "results on altered tiles, and by scanner or site", ROBUSTNESS, _robustness)
    parser.add_argument("checkpoint", metavar="CKPT", help=CHECKPOINT)
    help_text = "a folder of labelled tiles, and keys of conf/data, such as data.columns.scanner='scan-([a-z]+)'"
    parser.add_argument("data", nargs="+", metavar="DIR", help=help_text)
    parser.add_argument("--out", type=Path, metavar="DIR", help="the folder to write (default: robustness/DAY/TIME)")
    parser.add_argument("--device", default="auto", help="auto (a GPU if there is one), cpu, cuda, cuda:1")


def _robustness(data: Sequence[str], **options: Any) -> str:  # noqa: ANN401
    with fast_imports():
        from histo_pl.cli.data_options import folder_and_options
        from histo_pl.evaluation.robustness import robustness

    root, data_options = folder_and_options(data)
    return robustness(root=root, **options, **data_options)


def _add_serve(commands: Any) -> None:  # noqa: ANN401
    parser = _add(commands, "serve", "a page and an HTTP API that answer for tiles", SERVE, _serve)
    limits = Limits()
    parser.add_argument("checkpoint", metavar="CKPT", help=CHECKPOINT)
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on (default: this machine's own)")
    parser.add_argument("--port", type=int, default=8000, help="0: a free one (default: 8000)")
    parser.add_argument("--token", help="the API asks for it; better in the environment, as HISTO_PL_TOKEN")
    parser.add_argument("--device", default="auto", help="auto (a GPU if there is one), cpu, cuda, cuda:1")
    help_text = "tiles a batch (default: 16 on a processor, 32 on a GPU)"
    parser.add_argument("--batch-size", type=int, metavar="TILES", help=help_text)
    for name, purpose in LIMITS.items():
        value = getattr(limits, name)
        option = f"--{name.replace('_', '-')}"
        parser.add_argument(
            option, type=type(value), default=value, metavar="N", help=f"{purpose} (default: {value:,})"
        )


def _serve(**options: Any) -> str:  # noqa: ANN401
    with fast_imports():
        from histo_pl.serving.run import serve

    limits = Limits(**{name: options.pop(name) for name in LIMITS})
    return serve(**options, limits=limits)


def _add_summarize(commands: Any) -> None:  # noqa: ANN401
    parser = _add(commands, "summarize", "compare the runs of a sweep or cross-validation", SUMMARIZE, _summarize)
    parser.add_argument("folder", type=Path, metavar="DIR", help="the folder of the runs' folders")


def _summarize(**options: Any) -> str:  # noqa: ANN401
    with fast_imports():
        from histo_pl.evaluation.summarize import summarize

    return summarize(**options)


def _add_sweep(commands: Any) -> None:  # noqa: ANN401
    parser = _add(commands, "sweep", "search for settings", SWEEP, _sweep)
    parser.add_argument("folder", type=Path, metavar="STUDY", help="the study's folder, which processes may share")
    parser.add_argument("arguments", nargs="*", metavar="KEY=VALUE", help="as for train.py")
    help_text = "a file of conf/sweep, or the path of another (default: learning)"
    parser.add_argument("--space", default="learning", metavar="NAME", help=help_text)
    parser.add_argument("--trials", type=int, default=20, metavar="N", help="of the whole study (default: 20)")


def _sweep(**options: Any) -> str:  # noqa: ANN401
    with fast_imports():
        from histo_pl.cli.sweep import sweep

    return sweep(**options)


def _add_convert(commands: Any) -> None:  # noqa: ANN401
    parser = _add(
        commands, "convert", "a Keras model (.h5, .keras) to a checkpoint (.ckpt), or back (.h5)", CONVERT, _convert
    )
    parser.add_argument("source", type=Path, metavar="IN", help="the file to read: .h5, .keras or .ckpt")
    parser.add_argument("target", type=Path, metavar="OUT", help="the file to write, a new one: .ckpt or .h5")
    parser.add_argument(
        "--image-size", type=int, metavar="PIXELS", help="side of the network's input, for a file of weights alone"
    )
    parser.add_argument(
        "--dense-activation",
        choices=("sigmoid", "relu"),
        help="what follows the dense layer of 256, for a file of weights alone (default: sigmoid, as in the notebook)",
    )
    parser.add_argument(
        "--malignant",
        type=int,
        choices=(0, 1),
        help="the index of the malignant class in Keras's class_indices (default: 1, as in the notebook)",
    )


def _convert(**options: Any) -> str:  # noqa: ANN401
    with fast_imports():
        from histo_pl.interop.convert import convert

    return convert(**options)


if __name__ == "__main__":
    prepare_process()
    main()
