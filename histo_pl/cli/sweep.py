"""Search for settings: trials of Optuna, each a run of train.py, in a folder that several processes share."""

import csv
import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock
from hydra import compose, initialize_config_dir
from hydra.errors import CompactHydraException
from lightning import Callback, LightningModule, Trainer
from matplotlib.figure import Figure
from omegaconf import DictConfig, OmegaConf

from histo_pl.cli.auto_resume import checkpoint_to_resume, has_finished
from histo_pl.cli.build import training_arguments
from histo_pl.cli.command_line import CONF, quote_literals
from histo_pl.cli.mistakes import describe_mistake
from histo_pl.errors import UserError
from histo_pl.evaluation.plots import save
from histo_pl.storage import atomic_write_text, try_lock
from histo_pl.training.run import run_training
from histo_pl.training.run_files import read_results

OBJECTIVE = "val/auroc"  # of the validation tiles: the test has no part in a choice
JOURNAL, TABLE, LINE = "journal.log", "trials.csv", "arguments.json"
LEAST_FOR_IMPORTANCE = 4  # finished trials


def sweep(folder: str | Path, space: str, trials: int, arguments: Sequence[str] = ()) -> str:
    """Run trials until a study has so many, by the tree-structured Parzen estimator (Bergstra et al., NeurIPS 2011).

    A trial whose process has died is taken up again where it was. Several processes may run the same command.

    Args:
        folder: The study's; made if it is not there.
        space: The name of a file of conf/sweep, or the path of one.
        trials: Number of trials of the whole study, at least 1.
        arguments: Those of train.py, as typed; with `data.folds` the objective is the mean over all folds.

    Returns:
        The best trial, and the line that runs it again, for a person.

    Raises:
        UserError: Optuna is not installed, the space is not as expected, or the study is of other arguments.
    """
    optuna, folder = _optuna(), Path(folder)
    distributions = read_space(space)
    if trials < 1:
        raise UserError(f"The number of trials is out of range. Expected at least 1. Received: {trials}")
    _compose(arguments)  # a slip is told before there is a study
    folder.mkdir(parents=True, exist_ok=True)
    _check_same(folder / LINE, {"arguments": list(arguments), "space": _plain(distributions, optuna)})
    study = _open_study(folder, optuna)
    while True:
        with _next_trial(study, folder, distributions, trials, optuna) as trial:
            if trial is None:
                break
            _run(study, trial, folder / "trials" / str(trial.number), arguments, optuna)
    _write_table(study, folder / TABLE)
    save({"study": _picture(study, optuna)}, folder)
    return _describe(study, folder, arguments, optuna)


class Pruning(Callback):
    """Report each epoch's objective, and end the trial where others did better by then.

    Args:
        trial: Optuna's.
        pruned: The exception that ends it.
    """

    def __init__(self, trial: Any, pruned: type[Exception]) -> None:  # noqa: ANN401
        self.trial, self.pruned = trial, pruned

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report, and prune."""
        value = trainer.callback_metrics.get(OBJECTIVE)
        if value is None or trainer.sanity_checking:
            return
        self.trial.report(float(value), trainer.current_epoch)
        if self.trial.should_prune():
            raise self.pruned


def _optuna() -> Any:  # noqa: ANN401
    try:
        import optuna
    except ModuleNotFoundError as error:
        raise UserError(
            "A search for settings needs Optuna. Install it with pip install -e '.[sweep]'. "
            "Received: no module named optuna"
        ) from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def read_space(space: str) -> dict[str, Any]:
    """Read a space of settings.

    Args:
        space: The name of a file of conf/sweep, or the path of one.

    Returns:
        Optuna's distributions by key of train.py.

    Raises:
        UserError: Optuna is not installed, or the file is not as expected.
    """
    optuna = _optuna()
    named = CONF / "sweep" / f"{space}.yaml"
    file = named if named.is_file() else Path(space)
    if not file.is_file():
        known = ", ".join(sorted(path.stem for path in (CONF / "sweep").glob("*.yaml")))
        raise UserError(f"The space is unknown. Expected one of {known}, or a YAML file. Received: --space {space}")
    keys: Any = OmegaConf.to_container(OmegaConf.load(file))
    if not isinstance(keys, dict) or not keys:
        raise UserError(
            f"The space is empty. Expected keys of train.py, each with choices or a range. Received: {file}"
        )
    return {key: _distribution(key, one, optuna.distributions) for key, one in keys.items()}


def _distribution(key: str, one: Any, kinds: Any) -> Any:  # noqa: ANN401
    try:
        if set(one) == {"choices"}:
            return kinds.CategoricalDistribution(tuple(one["choices"]))
        whole = isinstance(one["low"], int) and isinstance(one["high"], int)
        return (kinds.IntDistribution if whole else kinds.FloatDistribution)(**one)
    except (TypeError, KeyError, ValueError) as error:
        raise UserError(
            f"The space of {key} is not as expected ({error}). Expected choices: [8, 16], or low: 1.0e-4, high: 1.0e-2 "
            f"and, if wanted, log: true or step: 2. Received: {one}"
        ) from error


def _plain(distributions: Mapping[str, Any], optuna: Any) -> dict[str, Any]:  # noqa: ANN401
    return {key: json.loads(optuna.distributions.distribution_to_json(one)) for key, one in distributions.items()}


def _check_same(file: Path, line: dict[str, Any]) -> None:
    if file.is_file() and json.loads(file.read_text(encoding="utf-8")) != line:
        raise UserError(
            f"This study was begun with other arguments or another space, and its trials would not compare. Expected "
            f"those of {file}, or another folder. Received: {' '.join(line['arguments']) or 'no arguments'}"
        )
    with atomic_write_text(file) as stream:
        stream.write(json.dumps(line, indent=2) + "\n")


def _open_study(folder: Path, optuna: Any) -> Any:  # noqa: ANN401
    journal = optuna.storages.journal
    lock = journal.JournalFileOpenLock(str(folder / JOURNAL))
    storage = optuna.storages.JournalStorage(journal.JournalFileBackend(str(folder / JOURNAL), lock_obj=lock))
    sampler, pruner = optuna.samplers.TPESampler(multivariate=True), optuna.pruners.MedianPruner(n_warmup_steps=1)
    return optuna.create_study(
        storage=storage,
        study_name="study",
        direction="maximize",
        load_if_exists=True,
        sampler=sampler,
        pruner=pruner,
    )


@contextmanager
def _next_trial(
    study: Any,  # noqa: ANN401
    folder: Path,
    distributions: Mapping[str, Any],
    trials: int,
    optuna: Any,  # noqa: ANN401
) -> Iterator[Any]:
    """Yield a trial that is this process's alone: one whose process has died, or a new one; None: there are enough."""
    held: FileLock | None = None
    trial = None
    with FileLock(folder / ".lock"):
        known = study.get_trials(deepcopy=False)
        for one in known:
            if (
                one.state == optuna.trial.TrialState.RUNNING
                and (held := try_lock(_lock_of(folder, one.number))) is not None
            ):
                trial = optuna.trial.Trial(study, one._trial_id)
                break
        if trial is None and len(known) < trials:
            trial = study.ask(dict(distributions))
            held = try_lock(_lock_of(folder, trial.number))
    try:
        yield trial
    finally:
        if held is not None:
            held.release()


def _lock_of(folder: Path, number: int) -> Path:
    return folder / f".trial-{number}.lock"


def _run(study: Any, trial: Any, folder: Path, arguments: Sequence[str], optuna: Any) -> None:  # noqa: ANN401
    """Train, and tell the study the objective; a trial that is pruned or refused is told as such."""
    states = optuna.trial.TrialState
    try:
        value = _objective(trial, folder, arguments, optuna.TrialPruned)
    except optuna.TrialPruned:
        study.tell(trial, state=states.PRUNED)
        print(f"Trial {trial.number} was pruned: {_typed(trial.params)}", flush=True)
    except UserError as error:
        study.tell(trial, state=states.FAIL)
        print(f"Trial {trial.number} failed: {error}", flush=True)
    else:
        study.tell(trial, value)
        print(f"Trial {trial.number}: AUROC {value:.4f} with {_typed(trial.params)}", flush=True)


def _objective(trial: Any, folder: Path, arguments: Sequence[str], pruned: type[Exception]) -> float:  # noqa: ANN401
    typed = [*arguments, *(f"{key}={value}" for key, value in trial.params.items())]
    whole = _compose([*typed, f"run_dir={folder}"])
    if whole.data.get("folds") is None:
        return _train(whole, [Pruning(trial, pruned)])
    values = []
    for fold in range(whole.data.folds):
        config = _compose([*typed, f"data.fold={fold}", f"run_dir={folder / str(fold)}"])
        values.append(_train(config, []))
        trial.report(sum(values) / len(values), fold)
        if trial.should_prune():
            raise pruned
    return sum(values) / len(values)


def _compose(typed: Sequence[str]) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        try:
            return compose("train", quote_literals(typed, {}))
        except CompactHydraException as error:
            raise UserError(describe_mistake(error, "train").removeprefix("Error: ")) from error


def _train(config: DictConfig, callbacks: Sequence[Callback]) -> float:
    """Train, or go on, or read what a finished run found; return the validation AUROC of the kept weights."""
    folder = Path(config.run_dir)
    if has_finished(folder):
        results = read_results(folder)
    else:
        config.resume = checkpoint_to_resume(folder)
        built = training_arguments(config)
        make = built["make_trainer"]
        built["make_trainer"] = lambda others: make([*others, *callbacks])
        results = run_training(**built)
    return results["validation"]["auroc"]


def _typed(parameters: Mapping[str, Any]) -> str:
    return shlex.join(f"{key}={value}" for key, value in parameters.items())


def _write_table(study: Any, file: Path) -> None:  # noqa: ANN401
    trials = study.get_trials(deepcopy=False)
    keys = sorted({key for trial in trials for key in trial.params})
    with atomic_write_text(file) as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["trial", "state", "auroc", *keys])
        for trial in trials:
            value = "" if trial.value is None else trial.value
            writer.writerow([trial.number, trial.state.name.lower(), value, *(trial.params.get(key) for key in keys)])


def _picture(study: Any, optuna: Any) -> Figure:  # noqa: ANN401
    """Draw the trials in their order, and what each setting explains of their differences."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    history, importance = figure.subplots(1, 2, width_ratios=(2, 1))
    done = [trial for trial in study.get_trials(deepcopy=False) if trial.state.name == "COMPLETE"]
    history.plot([trial.number for trial in done], [trial.value for trial in done], "o")
    best = [max(trial.value for trial in done[: index + 1]) for index in range(len(done))]
    history.step([trial.number for trial in done], best, where="post")
    history.set(xlabel="trial", ylabel="validation AUROC", title="trials, and the best so far")
    found = {}
    if len(done) >= LEAST_FOR_IMPORTANCE:
        evaluator = optuna.importance.PedAnovaImportanceEvaluator()
        found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    importance.barh(list(found), list(found.values()))
    importance.set(title="importance (PED-ANOVA)" if found else "importance: too few trials", xlim=(0, 1))
    return figure


def _describe(study: Any, folder: Path, arguments: Sequence[str], optuna: Any) -> str:  # noqa: ANN401
    trials = study.get_trials(deepcopy=False)
    states = {state: sum(one.state.name == state for one in trials) for state in ("COMPLETE", "PRUNED", "FAIL")}
    counted = ", ".join(f"{number} {state.lower()}" for state, number in states.items())
    if not states["COMPLETE"]:
        return f"{len(trials)} trials: {counted}. Nothing was found. See {folder / TABLE}."
    best = study.best_trial
    command = shlex.join(["python", "train.py", *arguments, *(f"{key}={value}" for key, value in best.params.items())])
    return "\n".join(
        [
            f"{len(trials)} trials: {counted}; all in {folder / TABLE} and study.png.",
            f"Best: trial {best.number}, validation AUROC {best.value:.4f}, in {folder / 'trials' / str(best.number)}.",
            "The best of many is optimistic: its test, which had no part in the choice, is in its report.",
            f"To run it again:\n\n  {command}",
        ]
    )
