"""The experiments of 'A Low Effort Approach to Structured CNN Design Using PCA' (Garg, Panda and Roy).

    python tools/papers/pca_design/pca_design.py [SHARED] [--train] [--out tools/results/paper_pca_design]

With SHARED (see its README) the design of VGG-16-BN on CIFAR-10 is made on 12,800 training images, which is what its
layers need for D/M = 100, and stands beside the row of the paper's Table 2. Without it the net is the CNN of `models/`.
Both print Table 2's ratios, computed from its widths, and draw Fig. 7, 10 and 12.

`--train` also draws Fig. 9 (accuracy against the share of the variance) and Fig. 11 (accuracy against the number
of layers): every point is a net trained from scratch. Without SHARED the nets are designed from a small VGG,
which is first trained on the digits; with it from VGG-16-BN, and trained on CIFAR-10: that takes a GPU (`--device
cuda --epochs 60 --seeds 1`). The tables go to OUT/report_*.md, the figures beside them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import numpy as np
import onnx
from onnx import numpy_helper

from pcns_onnx import Normalize, design
from pcns_onnx.api.training.design import DesignResult
from pcns_onnx.architecture.blueprint import Blueprint, configuration_text
from pcns_onnx.architecture.chain import Chain
from pcns_onnx.architecture.depth import RULES, Rule
from pcns_onnx.architecture.fresh import initialise
from pcns_onnx.graph import Graph

# A script sees its own folder only; what it shares with others is named from `tools`.
sys.path.insert(0, str(Path(__file__).parents[2]))

from papers.pca_design import figures as draw
from papers.pca_design.table2 import V16, V16_FINAL, V16_SIGNIFICANT, M, network, table, vgg

TOOLS = Path(__file__).parents[2]
MODELS = TOOLS.parent / "models"
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
SMALL_VGG = vgg([32, 32, M, 64, 64, M, 96, 96, 96], 10, size=8)
SHARES = (0.999, 0.99, 0.97, 0.95, 0.9, 0.8, 0.7, 0.5)
PAPER_IMAGES = 12_800


@dataclass(frozen=True)
class Subject:
    """The net that is looked at, its data, and the significant dimensions that the paper found for it."""

    name: str
    model: onnx.ModelProto
    data: Mapping[str, np.ndarray]
    normalize: Normalize | None = None
    published: Sequence[int] = ()

    def design(self, **choices: float | str) -> DesignResult:
        """A design of it, with one thread."""
        extra = {} if self.normalize is None else {"normalize": self.normalize}
        return design(self.model, self.data, threads=1, **choices, **extra)  # type: ignore[arg-type]


def digits_cnn() -> Subject:
    """The CNN of `models/`."""
    with np.load(MODELS / "digits_images.npz") as stored:
        return Subject("digits, CNN", onnx.load(MODELS / "digits_cnn.onnx"), {"input": stored["input"]})


def vgg16(shared: Path, images: int) -> Subject:
    """VGG-16-BN and CIFAR-10."""
    from papers.pca_design.training import cifar10_images

    widths = [item for item in V16_SIGNIFICANT if isinstance(item, int)]
    data = {"input": cifar10_images(shared / "data", images)}
    model = onnx.load(shared / "models" / "vgg16bn_cifar10.onnx")
    return Subject("CIFAR-10, VGG-16-BN", model, data, Normalize(MEAN, STD), widths)


def designed(subject: Subject, out: Path, suffix: str) -> Iterator[str]:
    """The design at 0.999, its rows beside the paper's, and Fig. 7, 10 and 12."""
    result = subject.design()
    found = result.blueprint
    yield f"\n## {subject.name}: the design at {found.variance}\n"
    yield from (f"warning: {line}\n" for line in found.warnings)
    yield "| layer | filters | significant | paper | D/M | sensitivity | |\n" + "|---" * 7 + "|"
    for at, layer in enumerate(found.layers):
        kept, published = "" if layer.stays else "dropped", subject.published[at] if subject.published else ""
        figures = f"{layer.rows_per_filter:,.0f} | {layer.sensitivity:.3f}"
        yield f"| {layer.name} | {layer.filters} | {layer.significant} | {published} | {figures} | {kept} |"
    yield "\n| row | configuration | MACs | #ops | parameters | #params |\n" + "|---" * 6 + "|"
    for name in ("initial", "significant", "final"):
        row = getattr(found, name)
        costs = f"{row.macs:,} | {row.ops:.2f}X | {row.parameters:,} | {row.params:.2f}X"
        yield f"| {name} | `{configuration_text(row.configuration)}` | {costs} |"
    if subject.published:
        for name, vector in (("initial", V16), ("significant", V16_SIGNIFICANT), ("final", V16_FINAL)):
            yield f"| {name}, Table 2 | `{configuration_text(vector)}` | | | | |"
    chain = Chain.of(Graph.load(subject.model))
    for name, rule in RULES.items():
        yield f"\n{name}: `{configuration_text(chain.configuration(left(found, rule)))}`"
    yield f"\nlayers from the one to prune hardest to the most sensitive: {', '.join(found.prunable)}"
    draw.pca_graphs(found, out / f"fig10_pca_graphs{suffix}.png")
    draw.significant_dimensions(found, out / f"fig12_dimensions{suffix}.png", subject.published, "Table 2")
    draw.filters(_first_weight(subject.model), result.eigenfilters, out / f"fig07_eigenfilters{suffix}.png")


def left(found: Blueprint, rule: Rule) -> dict[str, int]:
    """Significant dimensions by layer, without the Convs that the rule drops."""
    stays = iter(rule([layer.significant for layer in found.layers if layer.kind == "Conv"]))
    return {layer.name: layer.significant for layer in found.layers if layer.kind != "Conv" or next(stays)}


def trained(subject: Subject, data: object, out: Path, suffix: str, args: argparse.Namespace) -> Iterator[str]:
    """Fig. 9 and Fig. 11 as tables and pictures: every point is a net trained from scratch, `args.seeds` times."""
    from papers.pca_design import training

    assert isinstance(data, training.Split)
    chain, found = Chain.of(Graph.load(subject.model)), subject.design().blueprint
    layers, seeds = found.layers, range(args.seed, args.seed + args.seeds)
    convs = [layer.name for layer in layers if layer.kind == "Conv"]
    full = {layer.name: layer.filters for layer in layers}
    significant = {layer.name: layer.significant for layer in layers}

    def scores(widths: Mapping[str, int]) -> list[float]:
        nets = ((chain.fresh_net(widths, seed).proto, seed) for seed in seeds)
        return [training.trained(m, data, epochs=args.epochs, seed=s, device=args.device)[1] for m, s in nets]

    def row(name: object, widths: Mapping[str, int], got: Sequence[float]) -> str:
        made = Chain.of(chain.fresh_net(widths))
        macs, parameters = made.costs({layer.name: layer.width for layer in made.hidden})
        all_macs, every = chain.costs(full)
        vector = configuration_text(chain.configuration(widths))
        return f"| {name} | `{vector}` | {all_macs / macs:.1f}X | {every / parameters:.1f}X | {_said(got)} |"

    yield f"\n## {subject.name}: accuracy by share of the variance (Fig. 9), by layers (Fig. 11)\n"
    yield f"{args.seeds} nets each, {args.epochs} epochs, all from scratch; widths alone, but where it says final.\n"
    yield "| share | configuration | #ops | #params | accuracy (%) |\n" + "|---" * 5 + "|"
    original = scores(full)
    yield row("original", full, original)
    by_share = dict[float, list[float]]()
    for share in SHARES:
        widths = {layer.name: layer.dimensions(share) for layer in layers}
        by_share[share] = scores(widths)
        yield row(share, widths, by_share[share])
    for name, rule in RULES.items():
        widths = left(found, rule)
        if len(widths) < len(significant):
            yield row(f"{found.variance}, final, {name}", widths, scores(widths))
    yield "\n| layers | last one | its significant dimensions | accuracy (%) |\n" + "|---" * 4 + "|"
    by_depth = dict[float, list[float]]()
    for depth in range(len(convs), 0, -1):
        gone = set(convs[depth:])
        by_depth[depth] = scores({name: width for name, width in significant.items() if name not in gone})
        last = convs[depth - 1]
        yield f"| {depth} | {last} | {significant[last]} | {_said(by_depth[depth])} |"
    draw.accuracy_curve(by_share, original, "share of the variance", out / f"fig09_accuracy{suffix}.png")
    draw.accuracy_curve(by_depth, original, "layers in front of the classifier", out / f"fig11_depth{suffix}.png")


def trained_vgg(data: object, args: argparse.Namespace) -> Subject:
    """A small VGG, trained on the digits here, to design from."""
    from papers.pca_design import training

    assert isinstance(data, training.Split)
    graph = Graph.load(network(SMALL_VGG, channels=1))
    initialise(graph, args.seed)
    net, _ = training.trained(graph.proto, data, epochs=args.epochs, seed=args.seed, device=args.device)
    return Subject("digits, small VGG", training.with_weights(graph.proto, net), digits_cnn().data)


def report(args: argparse.Namespace) -> Iterator[str]:
    """Everything that is asked for, line by line."""
    yield "# Low-effort PCA design\n\n## Table 2: ratios as stated, and from its widths\n"
    yield from table()
    suffix = suffix_of(args)
    if not args.train:
        yield from designed(vgg16(args.shared, args.images) if args.shared else digits_cnn(), args.out, suffix)
        return
    import torch

    from papers.pca_design import training

    torch.set_num_threads(args.threads)
    if args.shared:
        mean, std = (np.asarray(values, dtype=np.float32) for values in (MEAN, STD))
        data = training.cifar10(args.shared / "data", mean, std, args.device, args.train_images)
        subject = vgg16(args.shared, args.images)
    else:
        data = training.digits(MODELS, args.device)
        subject = trained_vgg(data, args)
    yield from designed(subject, args.out, suffix)
    yield from trained(subject, data, args.out, suffix, args)


def suffix_of(args: argparse.Namespace) -> str:
    """What the names of this run's files end with."""
    return ("_cifar10" if args.shared else "_digits") + ("_trained" if args.train else "")


def _first_weight(model: onnx.ModelProto) -> np.ndarray:
    conv = next(node for node in model.graph.node if node.op_type == "Conv")
    return np.asarray(next(numpy_helper.to_array(t) for t in model.graph.initializer if t.name == conv.input[1]))


def _said(scores: Sequence[float]) -> str:
    return f"{100 * float(np.mean(scores)):.2f} ({100 * min(scores):.1f} to {100 * max(scores):.1f})"


def main() -> None:
    """Print the report as it is made, and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shared", type=Path, nargs="?", help="folder with models/ and data/")
    parser.add_argument("--out", type=Path, default=TOOLS / "results" / "paper_pca_design")
    parser.add_argument("--images", type=int, default=PAPER_IMAGES, help="CIFAR-10 images that VGG-16 is looked at on")
    parser.add_argument("--train", action="store_true", help="train designs: Fig. 9 and 11")
    parser.add_argument("--train-images", type=int, default=50_000, help="CIFAR-10 images to train on")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seeds", type=int, default=3, help="nets per point")
    parser.add_argument("--seed", type=int, default=0, help="the first one")
    parser.add_argument("--device", default="cpu", help="where torch trains: cpu or cuda")
    parser.add_argument("--threads", type=int, default=2, help="of torch")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    start, lines = perf_counter(), list[str]()
    for line in report(args):
        print(line, flush=True)
        lines.append(line)
    (args.out / f"report{suffix_of(args)}.md").write_text("\n".join(lines) + "\n")
    print(f"\n{perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
