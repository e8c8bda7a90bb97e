"""The notebook that builds a binary transformer by hand: it runs anywhere, its solutions hold, its numbers show."""

import ast
import base64
import os
import re
from io import BytesIO

import nbformat
import pytest
import torch
from helpers.executed_notebooks import kernels_of_this_checkout, outputs, printed
from helpers.places import ROOT
from nbclient import NotebookClient
from PIL import Image

from binaryvit.analysis.binarization import figures

NOTEBOOK = ROOT / "notebooks" / "binarization.ipynb"
SOLUTION = re.compile(r"<details><summary>Solution</summary>\n\n(.*?)\n</details>", re.DOTALL)
CODE = re.compile(r"```python\n(.*?)```", re.DOTALL)

# What a reader compares with the library, and with which of its names.
CHECKED = {
    "sign": "quantizers.sign",
    "pretend": "quantizers.binarize_activation",
    "binary_weight": "effective_weight",
    "two_levels": "quantizers.binarize_attention",
    "unit": "layers.BinaryUnit",
    "attention": "layers.BinaryAttention",
    "pooling_branches": "layers.PoolingBranches",
    "block": "layers.BinaryBlock",
    "merge": "layers.BinaryPatchMerging",
}


def solutions(document):
    """The code of each folded solution, by the number of the cell it is in."""
    return {
        number: "\n".join(CODE.findall(text))
        for number, cell in enumerate(document.cells)
        if cell.cell_type == "markdown"
        for text in SOLUTION.findall(cell.source)
    }


def with_solutions(document):
    """A copy in which the code of each folded solution is a cell that runs."""
    codes = solutions(document)
    cells = []
    for number, cell in enumerate(document.cells):
        cells.append(cell)
        if number in codes:
            cells.append(nbformat.v4.new_code_cell(codes[number]))
    return nbformat.v4.new_notebook(cells=cells, metadata=document.metadata)


def with_slider(document):
    """Appends the cell that chooses between pictures and a slider, and lets it choose the slider."""
    (cell,) = (cell for cell in document.cells if "FloatSlider" in cell.source)
    document.cells.append(nbformat.v4.new_code_cell(f"widgets = True\n{cell.source}"))
    return document


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """The notebook with its solutions and its slider, executed in an empty folder; an error in a cell ends it."""
    document = with_slider(with_solutions(nbformat.read(NOTEBOOK, as_version=4)))
    folder = tmp_path_factory.mktemp("somewhere")
    with kernels_of_this_checkout():
        NotebookClient(
            document, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
        ).execute()
    assert os.listdir(folder) == []
    return document


def test_each_part_ends_with_an_exercise_whose_solution_is_folded_in():
    document = nbformat.read(NOTEBOOK, as_version=4)
    text = "\n".join(cell.source for cell in document.cells if cell.cell_type == "markdown")
    parts = re.findall(r"^## (\d) ", text, re.MULTILINE)
    assert parts == re.findall(r"\*\*Exercise (\d)\.\*\*", text) == list("123456")
    codes = solutions(document)
    assert len(codes) == 6 and all("assert" in code for code in codes.values())


def test_every_piece_is_compared_with_the_librarys_in_the_cell_that_builds_it():
    document = with_solutions(nbformat.read(NOTEBOOK, as_version=4))
    cells = [cell.source for cell in document.cells if cell.cell_type == "code"]
    for name, its in CHECKED.items():
        built = next(number for number, cell in enumerate(cells) if f"def {name}(" in cell)
        compared = next(number for number, cell in enumerate(cells) if number >= built and its in cell)
        asserts = [node for node in ast.walk(ast.parse(cells[compared])) if isinstance(node, ast.Assert)]
        assert asserts, name
        assert compared - built <= 2, f"{name} is compared too far from where it is built"


def test_a_cell_is_thin():
    document = nbformat.read(NOTEBOOK, as_version=4)
    lines = [len(cell.source.splitlines()) for cell in document.cells if cell.cell_type == "code"]
    assert max(lines) <= 30


@pytest.mark.slow
def test_it_shows_what_it_says(executed):
    assert not printed(executed, "stderr")
    text = printed(executed)
    for said in (
        "With the best scale 25% of the row's energy is lost.",
        "+1 bits before centring: 84%, after: 50%",
        "147,456 multiply-accumulates, 589,824 bytes",
        "2,304 words, 18,432 bytes",
        "By hand and by the library: the same block",
    ):
        assert said in text, said
    steps, ladder = outputs(executed, "text/html")
    rows = re.findall(r"<tr>(.*?)</tr>", steps, re.DOTALL)
    numbers = [re.findall(r">([\d,]+)<", row) for row in rows[1:]]
    assert [row[0] for row in numbers] == ["2", "9", "9", "16", "16", "16"]
    means = [int(row[1].replace(",", "")) for row in numbers]
    assert means[:3] == [5, 33, 33] and 33 < means[3] < means[4] / 5 and means[4] == means[5]
    assert ">0.129<" in ladder and ">0.070<" in ladder and "BinaryViT (+ pyramid)" in ladder


@pytest.mark.slow
def test_its_figures_are_pictures_no_wider_than_a_page(executed):
    pictures = [Image.open(BytesIO(base64.b64decode(data))) for data in outputs(executed, "image/png")]
    assert len(pictures) == 9
    for picture in pictures:
        assert 4 * 150 < picture.width < 8 * 150
        assert len(set(picture.convert("L").get_flattened_data())) > 20, "an empty picture"


@pytest.mark.slow
def test_where_widgets_run_there_is_a_slider(executed):
    *_, last = executed.cells
    assert [output for output in last.outputs if "application/vnd.jupyter.widget-view+json" in output["data"]]


def test_a_level_is_drawn_with_the_probabilities_it_leaves_on():
    probabilities = torch.tensor([[0.1, 0.9], [0.6, 0.4]])
    titles = [axes.get_title() for axes in figures.attention_at(probabilities, [0.1, 1.0, 2.0]).axes]
    assert titles == ["a = 0.1: P > 0.05\n4 of 4 on", "a = 1: P > 0.5\n2 of 4 on", "a = 2: P > 1\n0 of 4 on"]
