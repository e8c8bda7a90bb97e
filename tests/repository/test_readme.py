"""The README shows what lies in results/, and points to files that exist."""

import re

from helpers.places import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_table_is_the_committed_one():
    assert (ROOT / "results/cifar10/tables/ablation.md").read_text(encoding="utf-8").strip() in README


def test_links_and_pictures_exist():
    targets = [target for target in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in target]
    assert "results/cifar10/figures/accuracy_against_operations.png" in targets
    assert not [target for target in targets if not (ROOT / target).exists()]


def test_the_files_it_names_in_the_library_exist():
    named = set(re.findall(r"`([a-z_]+\.py)`", README))
    assert named and not [name for name in named if not (ROOT / "binaryvit" / name).exists()]
