"""The only wiring: one short function for each stage, from recipe to released model."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from danlu import shaping
from danlu.artifact import Artifact, Store, machine_record, read_json, sync_tree, write_json
from danlu.errors import CheckFailed, DanluError, InputError, from_machine
from danlu.interrupt import Interruption
from danlu.log import Metric, Screen
from danlu.recipe import Recipe, dump

if TYPE_CHECKING:
    from danlu.data.sources import File

_WIRING = (
    "pipeline.py", "stages.py", "series_stages.py", "events_stages.py", "speech_stages.py",
    "fitting.py", "series_fitting.py", "events_fitting.py", "lesson.py", "start.py", "batch.py",
    "journal.py", "launch.py", "shaping.py",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Result:
    """What a run came to.

    Attributes
    ----------
    folder : Path
        The run folder.
    metrics : list of Metric
        Every number.
    headline : str
        The report's first line.
    released : bool
        Whether the gate let the model out.
    built : list of str
        The stages that this run made; the others were found finished.
    verdicts : list of dict
        The gate's conditions, and what came of each.
    """

    folder: Path
    metrics: list[Metric]
    headline: str
    released: bool
    built: list[str]
    verdicts: list[dict[str, Any]]


def run(
    recipe: Recipe, out: Path, screen: Screen, profile: bool = False, fetch: bool = False
) -> Result:
    """Take a recipe from raw data to a released model.

    Parameters
    ----------
    recipe : Recipe
        Filled.
    out : Path
        The run folder.
    screen : Screen
        Shows what happens.
    profile : bool
        Whether to measure where the time of a training step goes, for the report.
    fetch : bool
        Whether sources that the recipe names and the cache lacks may be downloaded.

    Raises
    ------
    InputError
        If the recipe or the data are wrong; nothing is then left half-written.
    CheckFailed
        If the gate does not hold; everything but the release is written.
    MachineError
        If the disk, the memory or a permission gives out; finished stages are kept.
    Interrupted
        If it was asked to leave, see :mod:`danlu.interrupt`; a training stage is saved first.
    """
    from danlu.data.sources import open_source

    fresh = not out.exists()
    store, interruption = Store(out, recipe.seed, screen.say), Interruption(screen.console.quiet)
    try:
        with interruption.listening():
            sources = recipe.data.sources
            files = [file for one in sources for file in open_source(one, fetch=fetch)]
            with store.lock():
                return _Run(recipe, files, store, screen, interruption).go(profile)
    except InputError:
        if fresh and not any(store.stages.glob("[!.]*")):
            shutil.rmtree(out, ignore_errors=True)
        raise
    except Exception as error:
        if not isinstance(error, DanluError) and (refused := from_machine(error)):
            raise refused from error
        raise


def prepare_data(
    recipe: Recipe, folder: Path, screen: Screen, fetch: bool = False
) -> dict[str, Path]:
    """Make just the data and the tokenizer, and return their folders by name."""
    from danlu.data.sources import open_source

    files = [file for source in recipe.data.sources for file in open_source(source, fetch=fetch)]
    run = _Run(recipe, files, Store(folder, recipe.seed, screen.say), screen)
    run.start()
    run.data()
    run.tokenizer()
    return {name: artifact.path for name, artifact in run.artifacts.items()}


class _Run:
    """One run: the stages in order, and what they leave in the run folder."""

    def __init__(
        self,
        recipe: Recipe,
        files: list[File],
        store: Store,
        screen: Screen,
        interruption: Interruption | None = None,
    ) -> None:
        self.recipe, self.files, self.store, self.screen = recipe, files, store, screen
        self.interruption = interruption or Interruption()
        self.artifacts: dict[str, Artifact] = {}

    def go(self, profile: bool) -> Result:
        """Run every stage that the recipe asks for, and perhaps measure a training step."""
        self.start()
        recipe, root = self.recipe, self.store.root
        _put(root / "recipe.toml", dump(recipe).encode())
        live = root / "events.jsonl"
        live.unlink(missing_ok=True)
        self.data()
        self.tokenizer()
        if recipe.pretrain.objective != "none":
            self.pretrain()
        if recipe.data.task != "pretrain":
            self.finetune()
        if profile:
            self.profile()
        self.baseline()
        self.evaluate()
        if recipe.audit.protected:
            self.audit()
        self.report()
        return self.release()

    def _build(
        self,
        name: str,
        section: Any,
        inputs: dict[str, str],
        code: tuple[str, ...],
        make: Callable[[Path], None],
    ) -> Artifact:
        """Build a stage or find it finished, and say which."""

        def loudly(folder: Path) -> None:
            try:
                with self.screen.stage(name):
                    make(folder)
            except InputError:
                shutil.rmtree(folder, ignore_errors=True)
                raise

        artifact = self.store.build(name, section, inputs, (*_WIRING, *code), loudly)
        if not artifact.built:
            self.screen.say(f"[bold]{name}[/] [dim]unchanged ({artifact.key})[/]")
        self.artifacts[name] = artifact
        return artifact

    def _keys(self, *names: str) -> dict[str, str]:
        return {name: self.artifacts[name].key for name in names if name in self.artifacts}

    def _paths(self) -> dict[str, Path]:
        return {name: artifact.path for name, artifact in self.artifacts.items()}

    def start(self) -> None:
        """Read the checkpoint that the recipe begins from, if it names one."""
        if not self.recipe.model.start:
            return
        from danlu import start
        from danlu.data.adopt import locate

        checkpoint = locate(self.recipe.model.start)
        make = partial(start.begin, self.recipe, checkpoint)
        section, inputs = start.section(self.recipe), {"checkpoint": start.digest(checkpoint)}
        artifact = self._build("start", section, inputs, ("data", "model"), make)
        for line in start.lines(artifact.json(start.CONFIG)):
            self.screen.say(f"  {line}")
        self.recipe = start.settled(self.recipe, artifact.path)

    def data(self) -> None:
        """Read, clean, find duplicates and contradictions, redact, split."""
        inputs = {f"{n}:{file.name}": file.digest for n, file in enumerate(self.files)}
        modality = self.recipe.data.modality
        of_files = [self.recipe.data.content] if modality in ("image", "audio") else []
        if named := [*of_files, *self.recipe.table.images]:
            from danlu.data.media import digest_named

            inputs["named"] = digest_named(self.files, named)

        def make(folder: Path) -> None:
            if modality == "series":
                from danlu.data.series_prepare import prepare
            elif modality == "events":
                from danlu.data.events_prepare import prepare
            else:
                from danlu.data.prepare import prepare

            prepare(self.recipe, self.files, folder, lambda line: self.screen.say(f"  {line}"))

        artifact = self._build("data", shaping.of_data(self.recipe), inputs, ("data",), make)
        for finding in artifact.json("report.json")["findings"]:
            self.screen.say(f"  [yellow]![/] {finding}")

    def tokenizer(self) -> None:
        """Train the tokenizer on the training split; tokenise every split."""
        recipe, modality = self.recipe, self.recipe.data.modality
        paths = self._paths()

        def make(folder: Path) -> None:
            from danlu.data import kinds
            from danlu.stages import tokenize

            report = tokenize(recipe, paths, folder)
            self.screen.say(f"  {kinds.of(modality).seen(recipe, report)}")

        section = shaping.of_encoding(recipe)
        self._build("tokenizer", section, self._keys("data", "start"), ("data",), make)

    def pretrain(self) -> None:
        """Learn from the text alone."""
        self._train("pretrain", self._keys("tokenizer", "start"))

    def finetune(self) -> None:
        """Learn from the labels, from the pre-trained weights if there are any."""
        self._train("finetune", self._keys("data", "tokenizer", "start", "pretrain"))

    def _train(self, stage: str, inputs: dict[str, str]) -> None:
        section = shaping.of_training(self.recipe, stage)

        def make(folder: Path) -> None:
            from danlu.launch import fit

            own, live = folder / "events.jsonl", self.store.root / "events.jsonl"
            if own.is_file():  # of an attempt that was interrupted
                with live.open("ab") as file:
                    file.write(own.read_bytes())
            logs, stop = [own, live], self.interruption
            fit(stage, self.recipe, self._paths(), folder, logs, self.screen, stop)

        self._build(stage, section, inputs, ("data", "model", "parallel", "train"), make)

    def profile(self) -> None:
        """Measure where the time of a training step goes."""
        stages: list[str] = [name for name in ("pretrain", "finetune") if name in self.artifacts]
        section = shaping.of_training(self.recipe, *stages)
        # A speed belongs to the machine, and to the way of computing.
        section["on"] = [machine_record(), os.environ.get("DANLU_NO_KERNELS")]

        def make(folder: Path) -> None:
            from danlu.fitting import profile

            profile(self.recipe, self._paths(), folder, stages, self.screen)

        inputs = self._keys("data", "tokenizer", "start", *stages)
        self._build("profile", section, inputs, ("data", "model", "parallel", "train"), make)

    def baseline(self) -> None:
        """Fit the classical models on the same split."""
        inputs = self._keys("data")
        if self.recipe.data.modality not in ("text", "table"):  # what was encoded serves both
            inputs |= self._keys("tokenizer")

        def make(folder: Path) -> None:
            from danlu.stages import baseline

            baseline(self.recipe, self._paths(), folder)

        section = shaping.of_baseline(self.recipe)
        self._build("baseline", section, inputs, ("data", "evaluate"), make)

    def evaluate(self) -> None:
        """Measure the model and the baselines on the test split."""
        section = shaping.of_evaluation(self.recipe)
        inputs = self._keys("data", "tokenizer", "start", "pretrain", "finetune", "baseline")

        def make(folder: Path) -> None:
            from danlu.stages import evaluate

            evaluate(self.recipe, self._paths(), folder)

        self._build(
            "evaluate", section, inputs, ("audit", "data", "evaluate", "model", "serve"), make
        )

    def audit(self) -> None:
        """Measure whether the model treats protected groups alike."""
        section = shaping.of_audit(self.recipe)

        def make(folder: Path) -> None:
            from danlu.stages import audit

            audit(self.recipe, self._paths(), folder)

        self._build("audit", section, self._keys("data", "evaluate"), ("audit", "evaluate"), make)

    def report(self) -> None:
        """Judge the gate; write the report and the card."""

        def make(folder: Path) -> None:
            from danlu.release.report import write

            write(self.recipe, list(self.artifacts.values()), folder)

        inputs = self._keys(*self.artifacts)
        self._build("report", shaping.of_report(self.recipe), inputs, ("release", "audit"), make)

    def release(self) -> Result:
        """Copy what users read to the run folder; let the model out if the gate holds."""
        root, report = self.store.root, self.artifacts["report"]
        for name in ("report.html", "card.md", "metrics.json"):
            _put(root / name, (report.path / name).read_bytes())
        events = [a.path / "events.jsonl" for a in self.artifacts.values()]
        _put(root / "events.jsonl", b"".join(p.read_bytes() for p in events if p.is_file()))
        summary = report.json("summary.json")
        verdicts = summary["verdicts"]
        released = all(verdict["passed"] for verdict in verdicts)
        model = root / "model"
        if released:
            trained = self.artifacts.get("finetune") or self.artifacts["pretrain"]
            _release(
                self.recipe, trained, self.artifacts["tokenizer"], report.path / "card.md", model
            )
        else:
            shutil.rmtree(model, ignore_errors=True)
        result = Result(
            folder=root,
            metrics=[Metric(**row) for row in read_json(root / "metrics.json")],
            headline=summary["headline"],
            released=released,
            built=[name for name, artifact in self.artifacts.items() if artifact.built],
            verdicts=verdicts,
        )
        if not released:
            failed = [v for v in verdicts if not v["passed"]]
            raise CheckFailed(
                "the gate did not hold, and the model was not released\n"
                + "\n".join(f"  {v['condition']}: {v['reason']}" for v in failed),
                where=str(root / "report.html"),
                mend="improve the model, or change gate.require",
            )
        return result


def _put(target: Path, content: bytes) -> None:
    """Write a file so that readers see the old or the new one, and nothing between."""
    aside = target.with_name(f".{target.name}.new")
    aside.write_bytes(content)
    aside.replace(target)


def _release(
    recipe: Recipe, trained: Artifact, tokenizer: Artifact, card: Path, model: Path
) -> None:
    """Lay the released model out in the Hugging Face layout."""
    from danlu.data import kinds

    aside = model.with_name(".model.new")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    shutil.copyfile(trained.path / "model.safetensors", aside / "model.safetensors")
    for name in kinds.of(recipe.data.modality).files:
        if (tokenizer.path / name).is_file():  # an encoder writes those that it needs
            shutil.copyfile(tokenizer.path / name, aside / name)
    shutil.copyfile(card, aside / "README.md")
    config = {"name": recipe.name, **trained.json("config.json")}
    write_json(
        aside / "config.json",
        {**config, "stages": trained.manifest["inputs"] | {trained.stage: trained.key}},
    )
    sync_tree(aside)
    retired = model.with_name(".model.old")
    shutil.rmtree(retired, ignore_errors=True)
    if model.exists():
        model.rename(retired)
    aside.rename(model)
    shutil.rmtree(retired, ignore_errors=True)
