"""Looking around in stored runs: one run, image, block, head and channel at a time, with widgets or as static pictures.

Forward passes are kept by run and image, so a change of the selection takes a fraction of a second.
"""

import os
from dataclasses import dataclass, replace
from functools import lru_cache
from html import escape

import ipywidgets
from IPython.display import Image, Markdown
from torch import Tensor, nn

from binaryvit.analysis.attention.capture import AttentionCapture, AttentionMaps, select
from binaryvit.analysis.attention.rollout import output_by_place
from binaryvit.analysis.display import show_figure
from binaryvit.analysis.explore.figures import Panels, head_and_channel
from binaryvit.analysis.images import Images, example_images
from binaryvit.analysis.labels import first_seeds
from binaryvit.analysis.stored import OpenStudy
from binaryvit.errors import BinaryViTError, suggestion
from binaryvit.models.layers import BinaryActivation

_LAST = 0.99  # a place is a share in [0, 1)


@dataclass(frozen=True)
class Selection:
    """What is looked at.

    Attributes:
        run, image: id of the run, and name of the image.
        other: id of a run to show below it, in the block, head, layer and channel nearest to these; empty: none.
        down, right: place of the patch that attends, shares in [0, 1) of the image's sides.
        block, head: whose attention.
        layer, channel: where in the block a sign is taken; the layer is empty in a model that takes none.
    """

    run: str
    image: str
    other: str = ""
    down: float = 0.5
    right: float = 0.5
    block: int = 0
    head: int = 0
    layer: str = ""
    channel: int = 0


@dataclass(frozen=True, eq=False)
class _Seen:
    """One forward pass."""

    maps: list[AttentionMaps]  # of all blocks
    rollout: Tensor | None  # from the output to the image's places; None where it cannot follow
    before_sign: dict[str, Tensor]  # what signs are taken of (tokens, channels), by module path


class Explorer:
    """The finished runs of a study, and images that may be shared.

    Args:
        opened: whose runs.
        examples: how many images, or files; see `images.example_images`.
    """

    def __init__(self, opened: OpenStudy, examples: Images = 4):
        self._runs = {run.id: run for run in opened.runs()}
        self._examples = examples
        self.runs = {run.label: run.id for run in self._runs.values()}
        self.images = example_images(next(iter(self._runs.values())), examples).names
        self._inputs = lru_cache(maxsize=8)(lambda run: example_images(self._runs[run], self._examples))
        self._seen = lru_cache(maxsize=32)(self._forward)

    def first(self) -> Selection:
        """The first run that takes signs (else the first), and the first of everything else."""
        binary = [run for run in self._runs.values() if run.is_binary_transformer]
        run = (binary or [*self._runs.values()])[0]
        return self.fit(Selection(run.id, self.images[0]))

    def fit(self, selection: Selection) -> Selection:
        """The selection, with the nearest block, head, layer and channel that its run has."""
        block = min(selection.block, self.blocks(selection) - 1)
        head = min(selection.head, self.heads(replace(selection, block=block)) - 1)
        selection = replace(selection, block=block, head=head)
        layers = self.layers(selection)
        layer = selection.layer if selection.layer in layers else (layers or [""])[0]
        selection = replace(selection, layer=layer)
        return replace(selection, channel=max(0, min(selection.channel, self.channels(selection) - 1)))

    def blocks(self, selection: Selection) -> int:
        """How many blocks the selected run has."""
        return len(self._see(selection).maps)

    def heads(self, selection: Selection) -> int:
        """How many heads the selected block has."""
        return select(self._see(selection).maps, selection.block, 0)[0].used.shape[1]

    def layers(self, selection: Selection) -> list[str]:
        """Where in the selected block signs are taken, in the order of the forward pass."""
        block = self._block(selection)
        return [name.removeprefix(block) for name in self._see(selection).before_sign if name.startswith(block)]

    def channels(self, selection: Selection) -> int:
        """How many channels the selected layer has; 0 without a layer."""
        return self._values(selection).shape[-1] if selection.layer else 0

    def view(self, selection: Selection) -> tuple[Image, Markdown]:
        """Picture and finding of a selection, of one model or of two below each other, as a notebook displays them.

        What its run does not have is replaced as in `fit`. Raises BinaryViTError when the study has no such run, there
        is no such image, or the place is outside of it.
        """
        place = (selection.down, selection.right)
        if not all(0 <= share < 1 for share in place):
            raise BinaryViTError(
                f"The place {place} is not in the image: down and right go from 0 up to, not including, 1."
            )
        runs = [selection.run, selection.other] if selection.other else [selection.run]
        shown = [self._look(self.fit(replace(selection, run=run))) for run in runs]
        panels, sentences = zip(*shown, strict=True)
        return show_figure(head_and_channel(panels, place)), Markdown(" ".join(sentences))

    def _look(self, selection: Selection) -> tuple[Panels, str]:
        """Panels and a sentence on the selected run."""
        seen = self._see(selection)
        maps, head = select(seen.maps, selection.block, selection.head)
        images = self._inputs(selection.run)
        query = maps.query_at((selection.down, selection.right))
        ratio = maps.on_key_grid(maps.probabilities[0, head, query]) * maps.used.shape[-1]
        attended = None if maps.level is None else maps.on_key_grid(maps.used[0, head, query]) > 0
        label = self._runs[selection.run].label
        # Not the label first: "+ affine" at the beginning of a line would become an item of a list.
        sentence = f"Head {head} of block {selection.block} in {label}: "
        if attended is None:
            sentence += f"the highest probability is {ratio.max():.1f} times that of even attention"
        else:
            sentence += f"{int(attended.sum())} of {attended.numel()} keys are attended"
            sentence += ", as this attention is off" if maps.off else ""
        title = f"{label}: block {selection.block}, head {head}"
        layer = channel = None
        if selection.layer:
            layer, channel = self._values(selection), self._values(selection)[:, selection.channel]
            positive, inside = (channel >= 0).float().mean(), (channel.abs() < 1).float().mean()
            sentence += (
                f"; in channel {selection.channel} of {selection.layer}, {positive:.0%} of the tokens become +1, and "
                f"{inside:.0%} are inside [-1, 1], where the sign passes a gradient"
            )
            title += f"; {selection.layer}, channel {selection.channel}"
        pixels = images.pixels[images.names.index(selection.image)]
        arrays = (ratio, attended, seen.rollout, channel, layer)
        arrays = [None if values is None else values.numpy() for values in arrays]
        return Panels(title, pixels, *arrays), f"{sentence}."

    def views(self) -> list[tuple[Image, Markdown]]:
        """The first image in the first block, head, layer and channel of every model, in its first seed."""
        return [self.view(Selection(run.id, self.images[0])) for run in first_seeds([*self._runs.values()])]

    def _see(self, selection: Selection) -> _Seen:
        for name, known in ((selection.run, [*self._runs]), (selection.image, [*self.images])):
            if name not in known:
                raise BinaryViTError(f"There is no {name!r} to look at{suggestion(name, known)}")
        return self._seen(selection.run, selection.image)

    def _forward(self, run: str, image: str) -> _Seen:
        images, before_sign = self._inputs(run), {}
        capture = AttentionCapture(self._runs[run].model())
        for name, module in capture.model.named_modules():
            if isinstance(module, BinaryActivation) and module.activation_bits == 1:
                module.register_forward_pre_hook(
                    lambda module, inputs, name=name: before_sign.update({name: (inputs[0] + module.shift)[0]})
                )
        maps = capture(images.inputs[[images.names.index(image)]])
        return _Seen(maps, _rollout(capture.model, maps), before_sign)

    def _block(self, selection: Selection) -> str:
        """Module path of the selected block, with a dot at its end."""
        return select(self._see(selection).maps, selection.block, 0)[0].layer.removesuffix("attn")

    def _values(self, selection: Selection) -> Tensor:
        return self._see(selection).before_sign[self._block(selection) + selection.layer]


def _rollout(model: nn.Module, maps: list[AttentionMaps]) -> Tensor | None:
    """Rolled-out attention of the output to the places of the first grid, over the even share."""
    try:
        return output_by_place(model, maps)[0]
    except BinaryViTError:  # attention in windows, or grids that don't divide
        return None


def widgets_run_here() -> bool:
    """Whether a Jupyter server runs this kernel, so that somebody can move widgets."""
    return "JPY_SESSION_NAME" in os.environ


def controls(explorer: Explorer) -> ipywidgets.VBox:
    """Widgets to choose runs, image, patch, block, head, layer and channel with, above the picture and its finding."""
    first = explorer.first()
    place = dict(max=_LAST, step=0.02, readout_format=".0%")  # a multiple of it is where the first patch is
    fields = {
        "run": ipywidgets.Dropdown(options=list(explorer.runs.items())),
        "other": ipywidgets.Dropdown(options=[("none", ""), *explorer.runs.items()]),
        "image": ipywidgets.Dropdown(options=list(explorer.images)),
        "down": ipywidgets.FloatSlider(**place),
        "right": ipywidgets.FloatSlider(**place),
        "block": ipywidgets.IntSlider(max=100),
        "head": ipywidgets.IntSlider(max=100),
        "layer": ipywidgets.Dropdown(),
        "channel": ipywidgets.IntSlider(max=100_000),
    }
    for name, field in fields.items():
        field.description = name
    fields["other"].description = "below it"
    picture, finding = ipywidgets.Image(layout={"width": "100%"}), ipywidgets.HTML()
    state = {"selection": first, "busy": False}

    def show(selection: Selection) -> None:
        """Sets fields, picture and finding to a selection, without listening to the fields."""
        state["busy"] = True
        try:
            selection = explorer.fit(selection)
            state["selection"] = selection
            fields["layer"].options = explorer.layers(selection) or [""]
            counts = {"block": explorer.blocks, "head": explorer.heads, "channel": explorer.channels}
            for name, count in counts.items():
                fields[name].max = max(0, count(selection) - 1)
            for name, field in fields.items():
                field.value = getattr(selection, name)
            fields["layer"].disabled = fields["channel"].disabled = not selection.layer
            image, text = explorer.view(selection)
            picture.value, finding.value = image.data, escape(text.data, quote=False)
        finally:
            state["busy"] = False

    def changed(change: dict) -> None:
        if not state["busy"]:
            name = next(name for name, field in fields.items() if field is change["owner"])
            show(replace(state["selection"], **{name: change["new"]}))

    for field in fields.values():
        field.observe(changed, names="value")
    show(first)
    whole = ipywidgets.Layout(flex="0 0 auto")  # on a narrow page the columns stand below each other, not cut off
    parts = ([*fields.values()][start : start + 3] for start in (0, 3, 6))
    columns = [ipywidgets.VBox(part, layout=whole) for part in parts]
    return ipywidgets.VBox([ipywidgets.HBox(columns, layout={"flex_flow": "row wrap"}), picture, finding])
