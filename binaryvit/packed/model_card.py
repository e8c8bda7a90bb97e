"""The model card of an exported run: the model, its accuracy, its use, and where the numbers come from."""

import yaml
from torch import nn

from binaryvit.models.cost import cost
from binaryvit.models.description import Description
from binaryvit.models.ladder import variant_style
from binaryvit.models.layers import binary_layers
from binaryvit.records.run_record import RunRecord

_PAPER = "https://arxiv.org/abs/2306.16678"


def model_card(record: RunRecord, description: Description, model: nn.Module) -> str:
    """The card as Markdown, with the metadata that the Hugging Face hub reads in front.

    Args:
        record: the run's.
        description: of its weights, with preprocessing.
        model: the run's.
    """
    label, counted = variant_style(record.config["variant"]).label, cost(model)
    metadata = {
        "library_name": "timm",
        "pipeline_tag": "image-classification",
        "tags": ["timm", "image-classification", "vision-transformer"],
        "model-index": [{"name": record.id, "results": [_result(record)]}],
    }
    is_binary = bool(binary_layers(model))
    if is_binary:
        metadata["tags"].append("binary-neural-network")
    rows = {
        "variant": f"`{record.config['variant']}` ({label})",
        "data": f"{record.data.label}, {record.data.num_classes} classes",
        "top-1": f"{record.weights.top1:.2f}% of {record.data.eval_images:,} images of `{record.data.eval_split}`",
        "images": " x ".join(map(str, description.preprocessing.input_size)),
        "parameters": f"{counted.parameters / 1e6:.2f} M, of which {counted.binary_weights / 1e6:.2f} M of one bit",
        "size": f"{counted.bytes / 1e6:.2f} MB (one bit per binary weight, 4 bytes per other parameter)",
        "operations": f"{counted.ops / 1e6:.2f} M (BOPs / 64 + FLOPs)",
        "training": f"{record.result.epochs} epochs on {record.data.train_images:,} images of "
        f"`{record.data.train_split}`, batch size {record.config['batch_size']}, seed {record.seed}",
        "made from": f"commit `{record.git.commit}`, key `{record.key.config[:12]}`",
    }
    table = "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])
    weights = (
        "`model.safetensors` holds one bit per binary weight, and no latent weights: the model can be run and "
        "analysed, but not trained further."
        if is_binary
        else "The model has no binary weights."
    )
    return f"""---
{yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True).strip()}
---

# {record.id}

A vision transformer of the BinaryViT ladder ([Le and Li, CVPR Workshops 2023]({_PAPER})), trained with the `binaryvit`
research compendium.

{table}

## Use

```python
import binaryvit  # registers the model with timm
import timm

model = timm.create_model("local-dir:.", pretrained=True).eval()  # or hf-hub:<user>/<name>
transform = timm.data.create_transform(**timm.data.resolve_data_config(model=model))
```

{weights}

## Training configuration

```yaml
{yaml.safe_dump(_changed(record), sort_keys=False).strip()}
```
"""


def _result(record: RunRecord) -> dict:
    """The run's accuracy as the hub's model index takes it."""
    name = record.data.label
    metrics = [{"type": "accuracy", "name": "top-1", "value": round(record.weights.top1, 4)}]
    return {
        "task": {"type": "image-classification"},
        "dataset": {"name": name, "type": record.data.name, "split": record.data.eval_split},
        "metrics": metrics,
    }


def _changed(record: RunRecord) -> dict:
    """The fields of the run's configuration that were set."""
    return {name: value for name, value in record.config.items() if value is not None and value != {}}
