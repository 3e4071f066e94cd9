"""`PcnsShrink`, a pass for Microsoft's Olive: shrinking as one step of a workflow JSON.

Olive finds passes through a package configuration. `python -m pcns_onnx.interop.olive > package.json`
writes Olive's own with this pass in it:

    olive run --config workflow.json --package-config package.json

Samples come from the pass's `data_config` (as for OnnxStaticQuantization), or from `data`, anything that
`pcns-onnx shrink --data` takes. `macs` is searched where the workflow searches.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Union

import msgspec
import numpy as np
from olive.common.config_utils import validate_config
from olive.data.config import DataConfig
from olive.hardware.accelerator import AcceleratorSpec
from olive.model import ONNXModelHandler
from olive.model.utils import resolve_onnx_path
from olive.package_config import OlivePackageConfig
from olive.passes import Pass
from olive.passes.pass_config import BasePassConfig, PassConfigParam
from olive.search.search_parameter import Categorical

from pcns_onnx.api.shrink import shrink
from pcns_onnx.data.conform import Normalize
from pcns_onnx.data.sources import DataSource
from pcns_onnx.errors import InputError

REPORT = "pcns_report.json"
"""The report's name, beside the model."""


class PcnsShrink(Pass):  # type: ignore[misc, unused-ignore]
    """Makes an ONNX model narrower and re-fits it by least squares on unlabelled samples, without retraining."""

    @classmethod
    def _default_config(cls, accelerator_spec: AcceleratorSpec) -> dict[str, PassConfigParam]:
        # Olive reads these types at run time; its own passes write Union and Optional like that too.
        return {
            "data_config": PassConfigParam(
                type_=Union[DataConfig, dict],  # noqa: UP007
                default_value=None,
                description="Samples to solve and check on. Give this or `data`.",
            ),
            "data": PassConfigParam(
                type_=str, default_value=None, description="Samples as `pcns-onnx shrink --data` takes them: a path."
            ),
            "macs": PassConfigParam(
                type_=float,
                default_value=0.5,
                search_defaults=Categorical([0.8, 0.65, 0.5, 0.35]),
                description="Fraction of the multiply-adds that may be left; null where `options` says how small.",
            ),
            "max_drop": PassConfigParam(
                type_=float,
                default_value=None,
                description="Most points of accuracy that may be lost on samples held out (labels needed).",
            ),
            "normalize": PassConfigParam(
                type_=list, default_value=None, description="[mean, std] for uint8 images: (x/255 - mean) / std."
            ),
            "options": PassConfigParam(
                type_=dict,
                default_value=None,
                description="Further keyword arguments of pcns_onnx.shrink, as {'method': 'obs', 'threads': 1}.",
            ),
        }

    def _run_for_config(
        self, model: ONNXModelHandler, config: type[BasePassConfig], output_model_path: str
    ) -> ONNXModelHandler:
        path = Path(resolve_onnx_path(output_model_path, Path(model.model_path).name))
        values = vars(config)
        choices: dict[str, Any] = dict(values["options"] or {})
        if values["macs"] is not None and not choices.keys() & {"budget", "width", "variance", "plan"}:
            choices["budget"] = f"macs={values['macs']}"
        if values["max_drop"] is not None:
            choices["max_drop"] = values["max_drop"]
        if values["normalize"] is not None:
            choices["normalize"] = Normalize(*values["normalize"])
        path.parent.mkdir(parents=True, exist_ok=True)
        source = samples(values["data"], values["data_config"], [spec for spec in model.io_config["input_names"]])
        shrink(model.model_path, source, path, report=path.parent / REPORT, **choices)
        return ONNXModelHandler(model_path=str(path))


def samples(data: str | None, config: Any, inputs: list[str]) -> DataSource | None:
    """Where the pass's samples come from: a path, or the batches of an Olive data configuration."""
    if data is not None and config is not None:
        raise InputError("data and data_config both name samples: give one of the two")
    if config is None:
        return data
    container = validate_config(config, DataConfig).to_data_container()

    def feeds() -> Iterator[Mapping[str, Any]]:
        for batch in container.create_dataloader():
            values, labels = batch if isinstance(batch, tuple | list) and len(batch) == 2 else (batch, None)
            feed = dict(values) if isinstance(values, Mapping) else {inputs[0]: values}
            feed = {name: np.asarray(value) for name, value in feed.items() if name in inputs}
            if labels is not None and np.asarray(labels).dtype.kind in "iub":
                feed.setdefault("labels", np.asarray(labels))
            yield feed

    return feeds


def package_config() -> dict[str, Any]:
    """Olive's package configuration with this pass in it."""
    config: dict[str, Any] = msgspec.json.decode(Path(OlivePackageConfig.get_default_config_path()).read_bytes())
    config["passes"]["PcnsShrink"] = {
        "module_path": "pcns_onnx.interop.olive.PcnsShrink",
        "supported_providers": ["*"],
        "supported_accelerators": ["*"],
        "supported_precisions": ["*"],
        "supported_algorithms": [],
        "supported_quantization_encodings": [],
        "dataset": "dataset_optional",
    }
    return config


if __name__ == "__main__":
    print(msgspec.json.format(msgspec.json.encode(package_config()), indent=1).decode())
