"""Figures: the same look for the same variant, nothing cut off, equal bytes from equal records, provenance inside."""

import itertools
import json
import os
import subprocess
import sys

import matplotlib
import numpy as np
import pandas as pd
import pytest
from helpers.pictures import assert_legible, assert_readable
from helpers.places import TESTS
from matplotlib.colors import to_rgb
from PIL import Image

from binaryvit.analysis import figure_files
from binaryvit.analysis.curves.figures import training_curves
from binaryvit.analysis.ladder.figures import accuracy_against_operations
from binaryvit.analysis.style import DOUBLE_COLUMN, style
from binaryvit.errors import BinaryViTError
from binaryvit.models.ladder import LADDER, variant_style
from binaryvit.palette import GREY

PROVENANCE = {"study": "tiny (1)", "runs": {"a-seed0": "0" * 40, 'b"\\)ü': None}}
IMAGES = "10,000 images of CIFAR-10 (JPEG q75)"


def points(names=LADDER["micro"], seeds=1):
    return pd.DataFrame(
        {
            "variant": names,
            "label": [variant_style(name).label for name in names],
            "bops": [0, 9e7, 9e7, 9e7, 9e7, 6e7, 6e7],
            "ops": [9.2e7, 2.63e6, 2.6e6, 2.6e6, 2.6e6, 2.1e6, 3.9e6],
            "ops_elementwise": [1e8, 2e7, 2e7, 2.1e7, 2.2e7, 2.6e7, 3e7],
            "bytes": [5.4e6, 3.8e5, 3.8e5, 4.0e5, 4.1e5, 4.5e5, 1.1e6],
            "top1": [79.0, 46.0, 49.0, 52.0, 53.0, 61.0, 63.0],
            "top1_std": 0.5 if seeds > 1 else np.nan,
            "seeds": seeds,
        }
    )


@pytest.fixture
def metrics():
    epoch = np.arange(1, 6)
    columns = {name: np.linspace(2.0, 1.0, 5) for name in ("train_loss", "eval_loss")}
    columns |= {name: np.linspace(10.0, 60.0, 5) for name in ("train_top1", "top1")}
    return pd.DataFrame({"epoch": epoch, "lr": 1e-3 / epoch, "flip_rate": 0.05 / epoch, **columns})


def test_a_variant_looks_the_same_in_every_family_and_unlike_any_other():
    families = [[variant_style(name) for name in names] for names in LADDER.values()]
    assert all(styles == families[0] for styles in families)
    for part in ("label", "colour", "marker"):
        assert len({getattr(style, part) for style in families[0]}) == 7
    assert variant_style("resnet18").label == "resnet18"
    assert variant_style("resnet18").colour not in {style.colour for style in families[0]}


@pytest.mark.parametrize(
    "matrix",
    [
        # Machado, Oliveira and Fernandes (2009), severity 1: protanopia, deuteranopia, tritanopia, on RGB.
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
    ],
)
def test_colours_differ_for_colour_blind_readers(matrix):
    seen = [np.array(matrix) @ to_rgb(variant_style(name).colour) for name in LADDER["micro"]]
    assert min(np.linalg.norm(one - two) for one, two in itertools.combinations(seen, 2)) > 0.1


def legend_texts(figure):
    (legend,) = figure.legends
    return [legend.get_title().get_text(), *(text.get_text() for text in legend.get_texts())]


def test_accuracy_against_operations_shows_and_names_every_point():
    table = points()
    figure = accuracy_against_operations(table, IMAGES)
    for axes, cost in zip(figure.axes, ("ops", "bytes"), strict=True):
        drawn = {container.get_label(): container.lines[0] for container in axes.containers}
        for row in table.itertuples():
            style, line = variant_style(row.variant), drawn[f"{row.label}  {row.top1:.1f}%, {row.ops / 1e6:,.2f} M OPs"]
            assert line.get_xydata().tolist() == [[getattr(row, cost), row.top1]]
            assert (line.get_color(), line.get_marker()) == (style.colour, style.marker)
        ladder = next(line for line in axes.lines if line.get_linestyle() == ":")
        assert ladder.get_ydata().tolist() == table["top1"].tolist()[1:] and axes.get_xscale() == "log"
    assert legend_texts(figure) == [f"{IMAGES}; one seed each; dotted: the ladder, in order", *drawn]
    assert_readable(figure)


def test_its_title_says_what_one_bit_costs():
    def title(table):
        return accuracy_against_operations(table, IMAGES).get_suptitle().replace("\n", " ")

    table = points().assign(top1=[80.0, 50, 60, 70.5, 65, 64, 63], ops=[9e9, 1e8, 1e8, 1e8, 1e8, 5e7, 6e7])
    saved = "with 90 to 180 times fewer OPs than their teacher (80.0%)"
    assert title(table) == f"The ladder's binary models reach 50.0 to 70.5% {saved}"
    better = table.iloc[[1]].assign(variant="reactresnet_micro_patch2_32", label="binary ResNet", top1=72.0)
    assert title(pd.concat([table, better])) == f"{title(table)}; the binary ResNet reaches 72.0%"
    assert title(pd.concat([table, better.assign(top1=70.0)])) == title(table)
    assert title(table.assign(bops=0)) == title(table[1:]) == "Accuracy and cost of each model"


def test_seeds_get_error_bars():
    figure = accuracy_against_operations(points(seeds=3), IMAGES)
    assert legend_texts(figure)[0] == f"{IMAGES}; mean and standard deviation of 3 seeds; dotted: the ladder, in order"
    assert all(container.has_yerr for axes in figure.axes for container in axes.containers)
    assert_readable(figure)


def test_published_models_are_grey_and_marked_by_certainty():
    published = pd.DataFrame(
        {"ops": [1e8, 2e8, np.nan, 3e8], "bytes": [4e6, np.nan, 5e6, 6e6], "top1": [70.0, 60.0, 50.0, 55.0]}
        | {"certainty": ["authors", "table", "doubtful", "second-hand"]}
    )
    figure = accuracy_against_operations(points(LADDER["small"]), IMAGES, published)
    labels = {line.get_label(): line for line in figure.axes[0].lines if line.get_label().startswith("published")}
    assert set(labels) == {"published: authors", "published: table", "published: second-hand"}  # one has no operations
    assert labels["published: authors"].get_markerfacecolor() == GREY
    assert labels["published: table"].get_markerfacecolor() == "white"
    assert_readable(figure)


def test_one_point_is_enough_and_none_is_an_error():
    assert_readable(accuracy_against_operations(points().iloc[:1], IMAGES))
    with pytest.raises(BinaryViTError, match="no run of this study"):
        accuracy_against_operations(points().iloc[:0], IMAGES)


@pytest.mark.parametrize(("epochs", "absent", "panels"), [(5, [], 4), (1, [], 4), (5, ["flip_rate"], 3)])
def test_curves_have_a_panel_for_what_there_is(metrics, epochs, absent, panels):
    metrics = metrics.iloc[:epochs].assign(**dict.fromkeys(absent, np.nan))
    figure = training_curves(metrics)
    assert len(figure.axes) == panels
    assert all(len(line.get_xdata()) == epochs for axes in figure.axes for line in axes.lines)
    assert any("flipped" in axes.get_ylabel() for axes in figure.axes) == (not absent)
    assert_legible(figure)


def test_curves_of_nothing_are_an_error(metrics):
    with pytest.raises(BinaryViTError, match="no metrics"):
        training_curves(metrics.iloc[:0])


def test_drawing_leaves_the_users_style_alone(metrics):
    matplotlib.get_backend()  # chosen when first asked for
    before = matplotlib.rcParams.copy()
    training_curves(metrics)
    assert matplotlib.rcParams == before


def test_files_carry_their_provenance_and_real_fonts(tmp_path):
    paths = figure_files.save(accuracy_against_operations(points(), IMAGES), tmp_path / "new" / "a.b", PROVENANCE)
    assert [path.name for path in paths] == ["a.b.pdf", "a.b.png"]
    assert [figure_files.read_provenance(path) for path in paths] == [PROVENANCE, PROVENANCE]
    with Image.open(paths[1]) as image:
        assert image.size == (round(DOUBLE_COLUMN * 200), 800)
        assert len(np.unique(np.asarray(image.convert("L")))) > 50
    pdf = paths[0].read_bytes()
    assert b"/CIDFontType2" in pdf and b"/Type3" not in pdf
    assert b"CreationDate" not in pdf


def test_a_png_has_the_pixels_and_the_resolution_of_what_was_drawn_in_fewer_bytes(tmp_path):
    figure = accuracy_against_operations(points(), IMAGES)
    with style():
        figure.savefig(tmp_path / "drawn.png")
    with (tmp_path / "written.png").open("wb") as file:
        figure_files.write_png(figure, file)
    with Image.open(tmp_path / "drawn.png") as drawn, Image.open(tmp_path / "written.png") as written:
        assert np.array_equal(np.asarray(drawn.convert("RGB")), np.asarray(written))
        assert written.info["dpi"] == drawn.info["dpi"]
    assert (tmp_path / "written.png").stat().st_size < (tmp_path / "drawn.png").stat().st_size


def test_equal_records_give_equal_bytes_in_another_process_at_another_time(tmp_path):
    here = figure_files.save(accuracy_against_operations(points(), IMAGES), tmp_path / "here", PROVENANCE)
    script = (
        "import sys, json, time; real = time.time; time.time = lambda: real() + 1e6\n"
        "sys.path[:0] = sys.argv[1:3]\n"
        "import test_figure_files as t\n"
        "from binaryvit.analysis import figure_files\n"
        "figure_files.save(t.accuracy_against_operations(t.points(), t.IMAGES), sys.argv[3], t.PROVENANCE)\n"
    )
    folder = TESTS
    command = [sys.executable, "-c", script, str(folder), str(folder / "analysis"), str(tmp_path / "there")]
    subprocess.run(command, check=True, env=os.environ | {"PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo"})
    for path in here:
        assert path.read_bytes() == path.with_name(path.name.replace("here", "there")).read_bytes()


@pytest.mark.parametrize("name", ["absent.png", "foreign.png", "foreign.pdf", "text.png"])
def test_provenance_of_foreign_files_is_an_error(tmp_path, name):
    Image.new("L", (2, 2)).save(tmp_path / "foreign.png")
    (tmp_path / "foreign.pdf").write_bytes(b"%PDF-1.4\n")
    (tmp_path / "text.png").write_text(json.dumps({}))
    with pytest.raises(BinaryViTError, match="no provenance"):
        figure_files.read_provenance(tmp_path / name)
