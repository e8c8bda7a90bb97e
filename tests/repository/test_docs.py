"""What the pages promise: links that lead somewhere, files that exist, commands that can be typed."""

import re
import shlex
import tomllib
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote

import pandas as pd
import pytest
from helpers.places import ROOT

from binaryvit import cli
from binaryvit.studies.notebooks import declared_parameters

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "notebooks/README.md", ROOT / "results/README.md"])
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def links(page: Path) -> list[tuple[Path, str]]:
    """What a page links to in this repository: file and heading."""
    targets = [target for target in re.findall(r"\]\(([^)\s]+)\)", text_of(page)) if "://" not in target]
    parts = [unquote(target).partition("#") for target in targets]
    return [((page.parent / file).resolve() if file else page, heading) for file, _, heading in parts]


def headings(page: Path) -> set[str]:
    """The anchors that GitHub gives a page's headings."""
    titles = re.findall(r"^#+ (.*)$", text_of(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def shell_lines(page: Path) -> list[str]:
    """The lines of a page's indented blocks, continued ones joined."""
    return re.findall(r"^ {4}(\S.*)$", text_of(page).replace("\\\n", " "), re.MULTILINE)


def commands(lines: list[str], name: str) -> list[list[str]]:
    """The arguments of each use of a command."""
    return [shlex.split(line.split(" > ")[0], comments=True)[1:] for line in lines if line.startswith(f"{name} ")]


@every_page
def test_links_lead_somewhere(page):
    found = links(page)
    assert [str(target) for target, _ in found if not target.exists()] == []
    assert [heading for target, heading in found if heading and heading not in headings(target)] == []


def test_every_page_can_be_reached_from_the_readme():
    reached, waiting = set(), [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        if page not in reached and page.suffix == ".md":
            reached.add(page)
            waiting += [target for target, _ in links(page)]
    assert set(PAGES) <= reached


# What a reader makes, and what lies in several folders under one name.
ELSEWHERE = {"run.yaml", "study.yaml", "runs/binaryvit.ipynb"}
ELSEWHERE |= {"capture.py", "measure.py", "figures.py", "findings.py"}


@every_page
def test_the_files_it_names_exist(page):
    named = re.findall(r"`([\w./<>]+\.(?:py|ipynb|cpp|yaml))`", text_of(page))
    places = (ROOT, ROOT / "binaryvit", ROOT / "notebooks", page.parent)
    missing = {name for name in named if "<" not in name and not any((place / name).exists() for place in places)}
    assert missing - ELSEWHERE == set()


def test_the_design_page_has_every_room():
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    rooms = re.findall(r"\w+", " ".join(contracts[0]["layers"]))
    table = re.findall(r"^\| `(.*)` \|", text_of(ROOT / "docs/design.md"), re.MULTILINE)
    assert "models" in rooms and not [room for room in rooms if not re.search(rf"\b{room}(/|\.py)", " ".join(table))]


@every_page
def test_the_commands_it_shows_are_understood(page, capsys):
    if page.name == "CHANGELOG.md":
        return  # it names commands that are gone
    lines = shell_lines(page)
    for arguments in commands(lines, "binaryvit"):
        cli._parser().parse_args(arguments)
    for arguments in commands(re.findall(r"`([^`\n]+)`", text_of(page)), "binaryvit"):
        with pytest.raises(SystemExit, match="0"):  # an unknown command has no help
            cli._parser().parse_args([*arguments, "--help"])
    for module in (arguments[1] for arguments in commands(lines, "python")):
        assert find_spec(module), module
    for target in (arguments[0] for arguments in commands(lines, "make")):
        assert re.search(rf"^{target}:", text_of(ROOT / "Makefile"), re.MULTILINE), target
    for notebook, _output, *options in commands(lines, "papermill"):
        given = {options[place + 1] for place, word in enumerate(options) if word == "-p"}
        assert given <= set(declared_parameters(ROOT / notebook)), notebook


def test_times_of_packed_inference_are_those_measured():
    """The table of whole models and that of products on the page on speed, and the README's two numbers."""
    page, readme = text_of(ROOT / "docs/speed.md"), text_of(ROOT / "README.md")
    models, products = (
        pd.concat(pd.read_csv(ROOT / f"results/benchmarks/infer-small-{part}-threads{n}.csv") for n in (1, 2))
        for part in ("models", "products")
    )
    models = models.set_index(["threads", "batch_size", "case"])
    columns = [(threads, batch) for threads in (2, 1) for batch in (1, 8)]
    for case in models.index.unique("case"):
        cells = []
        for threads, batch in columns:
            row = models.loc[(threads, batch, case)]
            time, *ratios = row[["ms/image", "packed is faster by", "at least", "at most"]]
            faster = "" if case == "packed" else ": {:.1f} ({:.1f} to {:.1f})".format(*ratios)
            cells.append(f"{time:.3g}{faster}")
        assert f"| {' | '.join(cells)} |" in page, case
    whole = products[products["rows"].isna()].set_index("threads")
    for row, of_row in {"1 thread": whole.loc[1], "2 threads": whole.loc[2]}.items():
        rates = of_row[["packed", "float32", "bfloat16", "int8", "OpenVINO BinaryConvolution"]]
        assert f"| {row} | {' | '.join(f'{rate:,.0f}' for rate in rates)} |" in page
    time, faster = (
        models.loc[(2, 1, "packed"), "ms/image"],
        models.loc[(2, 1, "DeiT, eager fp32")]["packed is faster by"],
    )
    assert f"takes {time:.1f} ms an image of 224x224 pixels, {faster:.1f} times less" in readme
    for case, words in {"DeiT, eager bf16": "in eager bf16", "DeiT, OpenVINO int8": "in int8"}.items():
        assert f"{models.loc[(2, 1, case)]['packed is faster by']:.1f} times less than {words}" in readme
