"""How every command begins: options, an engine, threads, and samples as the model takes them.

Where there are no samples, noise in the shape of the inputs stands in: it shows sizes and speed, and nothing else.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from pcns_onnx.api.options import Options
from pcns_onnx.calibration.calibration import Calibration
from pcns_onnx.calibration.shapes import dependency_graph_of, stated_shapes
from pcns_onnx.data.dataset import Dataset, Feeding, open_data, split
from pcns_onnx.data.options import InputOptions
from pcns_onnx.data.sources import DataSource, is_fed
from pcns_onnx.dependency.dependency_graph import DependencyGraph
from pcns_onnx.dependency.states.stateful_inputs import carried_states
from pcns_onnx.errors import InputError
from pcns_onnx.graph import CarriedState, Graph, ModelSource
from pcns_onnx.graph.layout import layout_of
from pcns_onnx.graph.model_source import ModelFolder
from pcns_onnx.graph.queries import choosing_inputs, names_of
from pcns_onnx.progress import WHOLE, Progress
from pcns_onnx.rewrite.canonical import Canonical
from pcns_onnx.runtime.batching import Batching, batching_of, runs
from pcns_onnx.runtime.carry import check_carries, with_states
from pcns_onnx.runtime.dask_executor import executor_for
from pcns_onnx.runtime.decoding import empty_caches, with_decoding
from pcns_onnx.runtime.engine import Engine, choose_engine
from pcns_onnx.runtime.executor import Executor
from pcns_onnx.runtime.padding import PaddingProof, find_padding, shared_padding
from pcns_onnx.runtime.samples import Samples, at_latency_batch, fixed_batch, samples_of
from pcns_onnx.runtime.targets.registry import ONNXRUNTIME, target_named
from pcns_onnx.runtime.targets.timer import missing, require


@dataclass(frozen=True)
class Run:
    """What one call of a public function runs with."""

    options: Options
    engine: Engine
    executor: Executor
    progress: Progress
    notes: list[str] = field(default_factory=list)
    """What was found out before the end and is to be said."""
    folders: list[Path] = field(default_factory=list)
    """Where the models' files lie, and one folder up, which is where optimum puts a tokenizer."""

    def load(self, model: ModelSource) -> Graph:
        """A model, with what was said about its inputs."""
        self.look_near(model)
        return load_model(model, self.options)

    def form(self, model: ModelSource) -> Canonical:
        """The forms of a model, whose states are open as far as they may get narrower."""
        self.look_near(model)
        return form_of(model, self.options)

    def look_near(self, model: ModelSource) -> None:
        """Remember where the files of a model lie, if it is one of files."""
        if isinstance(model, str | os.PathLike):
            folder = ModelFolder.of(model)
            here = Path(model if folder is None else folder.model).absolute().parent
            self.folders.extend([here, here.parent])

    def opened(self, form: Canonical, data: DataSource) -> tuple[Canonical, Dataset]:
        """The samples of a source, conformed to the model's inputs; and the model with what is known of them now."""
        feeding = self._feeding(form.twin)
        dataset = self._samples(form, data, feeding)
        verdict = batching_of(self.engine, form.twin, dataset, self.options.data.batch, is_fed=is_fed(data))
        if verdict is Batching.WHOLE and (feeding.carried or self.options.inputs.decode is not None):
            verdict = Batching.SINGLE  # a step is one row: that is what was asked for
        if verdict is Batching.WHOLE:
            whole = self._samples(form, data, replace(feeding, layout=feeding.layout.as_whole()))
            if runs(self.engine, form.twin, whole):
                self.say(
                    "what is fed at once is taken as one sample, since its rows depend on each other: say --batch-axis "
                    f"{next(iter(feeding.layout.axes))}=0 where they are samples"
                )
                dataset = whole
        form, dataset = form.laid_out(dataset.layout), self._batched(dataset, verdict)
        return form, self._padded(form, dataset)

    def _padded(self, form: Canonical, dataset: Dataset) -> Dataset:
        """The samples, of which it is known what is padding where the model shows that it does not count."""
        inputs = self.options.inputs
        if inputs.carries() or inputs.decode is not None:
            if inputs.mask is not None:
                raise InputError("--mask is for whole samples, not for steps of --carry and --decode: leave one out")
            return dataset
        return self._as_proven(dataset, find_padding(self.engine, form.twin, dataset, inputs.mask))

    def padded_for(self, form: Canonical, dataset: Dataset) -> Dataset:
        """The samples with what is padding for another model, too."""
        if dataset.padding is None:
            return dataset
        return self._as_proven(dataset, shared_padding(self.engine, form.twin, dataset.padding))

    def _as_proven(self, dataset: Dataset, proof: PaddingProof) -> Dataset:
        if proof.note is not None:
            self.say(proof.note)
        return dataset.padded(proof.padding)

    def noise(self, form: Canonical) -> Dataset:
        """One batch of noise in the shape of the model's inputs."""
        return self.batched_for(form, stand_in(form.original, self.options))

    def batched_for(self, form: Canonical, dataset: Dataset) -> Dataset:
        """The samples as another model takes them, too: one by one if it has to be."""
        verdict = batching_of(self.engine, form.twin, dataset, self.options.data.batch, is_fed=False)
        return self._batched(dataset, verdict)

    def _batched(self, dataset: Dataset, verdict: Batching) -> Dataset:
        if verdict is not Batching.SINGLE or dataset.is_single:
            return dataset
        if self.options.data.batch > 1:
            self.say("the model takes one sample at a time, whatever its inputs say: it is run with --batch 1")
        return dataset.one_by_one()

    def _feeding(self, graph: Graph) -> Feeding:
        stated, inputs = stated_shapes(graph, self.options.scope), matched_inputs(graph, self.options)
        feeding = inputs.feeding(graph.inputs, graph.layout, stated)
        if self.options.gates.metric is None:
            feeding = replace(feeding, classes=_classes(graph))
        check_carries(graph, inputs.carries())
        if inputs.decode is not None:
            caches = empty_caches(graph, self._carries(graph))
            feeding = replace(feeding, constants={**caches, **feeding.constants}, carried=())
        return feeding

    def _samples(self, form: Canonical, data: DataSource, feeding: Feeding) -> Dataset:
        chosen = self.options.data
        dataset = open_data(
            data,
            form.twin.inputs,
            normalize=chosen.normalize,
            preprocess=chosen.preparing(self.folders),
            feeding=feeding,
        )
        for note in dataset.notes:
            self.say(note)
        carries, tokens = self._carries(form.twin), self.options.inputs.decode
        if tokens is not None:
            return with_decoding(dataset, self.engine, form.twin, carries, tokens)
        return with_states(dataset, self.engine, form.twin, carries, feeding.constants) if carries else dataset

    def _carries(self, graph: Graph) -> dict[str, str]:
        """Input -> the output that is fed back to it; a decoder that is to go on has its caches found."""
        inputs = matched_inputs(graph, self.options)
        if inputs.decode is None or inputs.carry:
            return inputs.carries()
        caches = {state.input: state.output for state in carried_states(graph, {}) if state.is_cache}
        if not caches:
            raise InputError("--decode finds no cache that an output gives back: name it with --carry OUTPUT=INPUT")
        return caches

    def say(self, note: str) -> None:
        """Say what was found out at once, and in the report."""
        if note not in self.notes:
            self.notes.append(note)
            self.progress.say(note)

    def all_of(self, dataset: Dataset) -> Dataset:
        """As many of the samples as were asked for, none held out."""
        return split(dataset, holdout=0.0, seed=self.options.data.seed, samples=self.options.data.samples)[0]

    def samples(self, dataset: Dataset, *graphs: Graph) -> Samples:
        """Batches as the models take them."""
        return samples_of(dataset, self.options.data.batch, *graphs)

    def timed(self, samples: Samples) -> Samples:
        """The same samples in the batches that latency is measured at."""
        return at_latency_batch(samples, self.options.runtime.batch_latency)

    def calibration(self, dataset: Dataset, graph: Graph) -> Calibration:
        """What every pass over `dataset` needs to know."""
        return Calibration(
            self.engine,
            self.samples(dataset, graph).formed("sorted"),
            self.options.data.seed,
            self.progress,
            self.options.runtime.budget,
            self.executor,
        )

    def dependencies(self, graph: Graph, dataset: Dataset) -> DependencyGraph:
        """Which channels of `graph` go together."""
        return dependency_graph_of(graph, self.engine, dataset, self.options.scope)


@contextmanager
def run(options: Options, progress: Progress | None = None, *, times: bool = False) -> Iterator[Run]:
    """Choose the engine, limit threads and start the workers that are asked for; timed as the stage 'total'.

    `times`: the result rests on times, so the target has to be here.
    """
    chosen, progress = options.runtime, progress or Progress()
    engine, without = _aimed(choose_engine(chosen.device, chosen.threads, chosen.libraries), chosen.target, times)
    with (
        threadpool_limits(chosen.threads or None),
        progress.stage(WHOLE),
        executor_for(chosen.workers, chosen.scheduler) as executor,
    ):
        running = Run(options, engine, executor, progress)
        if without is not None:
            running.say(without)
        yield running


def _aimed(engine: Engine, name: str, times: bool) -> tuple[Engine, str | None]:
    """The engine that times with the target, or the same, and why; raises `UnsupportedError` where it has to."""
    target = target_named(name)
    if target is ONNXRUNTIME:
        return engine, None
    if times:
        require(target)
    why = missing(target)
    if why is None:
        return replace(engine, target=target.name), None
    return engine, f"widths are multiples that {target.title} likes, but latency is onnxruntime's: {why}"


def _classes(graph: Graph) -> int:
    """How many classes the output tells apart of which accuracy is taken; 0 where the model does not say."""
    scores = (spec for spec in graph.outputs if len(spec.shape) == 2 and spec.dtype.kind == "f" and spec.shape[1] != 1)
    return next((spec.shape[1] or 0 for spec in scores), 0)


def matched_inputs(graph: Graph, options: Options) -> InputOptions:
    """What is said of a model's inputs, with the names that patterns stand for."""
    return options.inputs.matching([spec.name for spec in graph.inputs], [spec.name for spec in graph.outputs])


def form_of(model: ModelSource, options: Options) -> Canonical:
    """The forms of a model, whose states are open as far as they may get narrower; raises `InputError`."""
    graph = load_model(model, options)
    return Canonical.of(graph, states=_narrowing_states(graph, options))


def _narrowing_states(graph: Graph, options: Options) -> tuple[CarriedState, ...]:
    """The states that may get narrower at both ends; raises `InputError` where there is none that was asked for."""
    scope, carries = options.scope, matched_inputs(graph, options).carries()
    if "narrow" not in (scope.states, scope.caches):
        return ()
    check_carries(graph, carries)
    states = carried_states(graph, carries)
    for is_cache, name, chosen in ((False, "states", scope.states), (True, "caches", scope.caches)):
        if chosen == "narrow" and not any(state.is_cache == is_cache for state in states):
            kind = "cache of K and V" if is_cache else "state"
            raise InputError(
                f"--{name} narrow finds no {kind} that an output gives back to an input: name them with "
                "--carry OUTPUT=INPUT"
            )
    return tuple(state for state in states if (scope.caches if state.is_cache else scope.states) == "narrow")


def load_model(model: ModelSource, options: Options) -> Graph:
    """A model, with the axes of samples and the choices that the caller states; raises `InputError`."""
    graph, stated = _settled(Graph.load(model), options), options.inputs.axes()
    ranks = {spec.name: len(spec.shape) for spec in graph.inputs}
    for name, axis in stated.items():
        if name not in ranks:
            raise InputError(f"--batch-axis names '{name}', which is no input: the model has {names_of(graph)}")
        if axis is not None and axis >= ranks[name]:
            raise InputError(f"--batch-axis {name}={axis} is too large: the input has {ranks[name]} axes, from 0")
    return graph.copy(replace(layout_of(graph.inputs, stated), stored=graph.layout.stored)) if stated else graph


def _settled(graph: Graph, options: Options) -> Graph:
    """The model with the branches that inputs choose of which `--constant` says what they are, and without these."""
    choosing = choosing_inputs(graph)
    stated = {name: value for name, value in options.inputs.constants().items() if name in choosing}
    if not stated:
        return graph
    shapes = stated_shapes(graph, options.scope)
    feeding = replace(options.inputs, constant=stated, carry=()).feeding(graph.inputs, graph.layout, shapes)
    values = {name: value for name, value in feeding.constants.items() if feeding.layout.axes[name] is None}
    twin = graph.with_constants(values)
    return twin if _choices(graph) - _choices(twin) else graph


def _choices(graph: Graph) -> set[tuple[str, str]]:
    return {(node.key, node.inputs[0]) for node in graph.nodes if node.op == "If"}


@dataclass(frozen=True)
class Fed:
    """A model and its samples: what the solve sees, and what the check sees (`held_out`, None where that is all)."""

    form: Canonical
    train: Dataset
    held_out: Dataset | None


def datasets(run: Run, form: Canonical, data: DataSource | None, *, solves: bool) -> Fed:
    """What the solve sees, and what the check sees: `eval`, or a share held out, None where there is nothing else.

    Where nothing is solved (`solves` false), the check sees all of the data. Without data noise stands in for it.
    """
    chosen = run.options.data
    if data is None:
        laid_out, seen_by_check = form, None
        if chosen.eval is not None:
            laid_out, seen_by_check = run.opened(form, chosen.eval)
        return Fed(laid_out, run.noise(laid_out), seen_by_check)
    holdout = chosen.holdout if chosen.eval is None and solves else 0.0
    form, everything = run.opened(form, data)
    train, held_out = split(everything, holdout=holdout, seed=chosen.seed, samples=chosen.samples)
    if chosen.eval is not None:
        return Fed(form, train, run.opened(form, chosen.eval)[1])
    if not solves:
        return Fed(form, train, train)
    if held_out is not None and _is_empty(held_out, fixed_batch(form.original)):
        return Fed(form, run.all_of(everything), None)
    return Fed(form, train, held_out)


def stand_in(graph: Graph, options: Options) -> Dataset:
    """One batch of seeded noise in the shape of the inputs; integers are ones, which most models take."""
    stated, count = stated_shapes(graph, options.scope), fixed_batch(graph) or options.data.batch
    feeding = matched_inputs(graph, options).feeding(graph.inputs, graph.layout, stated)
    feeding = replace(feeding, carried=())
    generator, feeds = np.random.default_rng(options.data.seed), {}
    for spec in graph.inputs:
        if spec.name in feeding.constants:
            continue
        known, axis = stated.get(spec.name, ()), feeding.layout.axes[spec.name]
        sizes = [own or (known[at] if at < len(known) else None) for at, own in enumerate(spec.shape)]
        if axis is not None:
            sizes[axis] = count
        if None in sizes:
            raise InputError(f"input '{spec.name}' has open sizes: say them with --shape {spec.name}=1x3x224x224")
        shape = tuple(size for size in sizes if size is not None)
        is_float = spec.dtype.kind not in "biu"
        noise = generator.standard_normal(shape) if is_float else np.ones(shape)
        feeds[spec.name] = np.asarray(noise).astype(np.float32 if is_float else spec.dtype)
    return open_data(feeds, graph.inputs, feeding=feeding)


def _is_empty(dataset: Dataset, fixed: int | None) -> bool:
    """Whether there is not even one batch; data that cannot be read is refused where it is used."""
    try:
        return next(iter(Samples(dataset, fixed or 1, fixed is not None)), None) is None
    except InputError:
        return True
