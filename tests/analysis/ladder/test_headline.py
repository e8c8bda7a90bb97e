"""The README's table and sentences follow the numbers, whichever way these go, and say what is not finished."""

import pytest
from helpers.ladder_study import MICRO, finish, write_study

from binaryvit.analysis.ladder.headline import headline, put_into
from binaryvit.errors import BinaryViTError
from binaryvit.studies.study import load_study


def headline_of(folder, *top1, **study):
    study = write_study(folder, **study)
    finish(study, dict(zip(MICRO, (80, *top1), strict=True)))
    return headline(load_study(folder))


def test_the_sentences_name_price_best_step_and_last_step(tmp_path):
    text = headline_of(tmp_path, 50, 60, 60.25, 61, 65, 64)
    assert "| + average pooling | 60.00 | +10.00 (+7.05 to +12.95) | 0.41 | 1.99 |" in text
    assert (
        "- The best binary model of the ladder, BinaryViT (+ pyramid), is below its full-precision teacher by 15.00 ("
        in text
    )
    assert "- The step that gains most is + average pooling, by +10.00 (+7.05 to +12.95) points; BinaryViT, fp" in text
    assert "fp patch embeddings loses, -1.00 (-1.98 to -0.02); not resolved: + pooling branches, +0.25 (-0.24" in text
    assert "to +0.74) and + affine, +0.75 (-0.10 to +1.60)." in text
    assert (
        "- The paper's last step, the pyramid, gains: +4.00 (+2.07 to +5.93) points, with 0.70 times the OPs (1.29"
        in text
    )
    assert "still being trained" not in text


def test_a_pyramid_that_loses_says_so(tmp_path):
    text = headline_of(tmp_path, 50, 55, 60, 85, 80, 70)
    assert "+ affine, is above its full-precision teacher, which is no ceiling here, by +5.00 (" in text
    assert "the pyramid, loses: -5.00 (" in text and "In the paper's sizes it has 0.54 times the OPs (" in text


@pytest.mark.parametrize(
    ("top1", "said"),
    [(70, "is ahead of BinaryViT (+ pyramid): +5.00 ("), (60, "is behind BinaryViT (+ pyramid): -5.00 (")],
)
def test_a_convolutional_network_is_compared_with_the_pyramid(top1, said, tmp_path):
    rival = "reactresnet_micro_patch2_32"
    study = write_study(tmp_path, controls=f"[{{id: rival, variant: {rival}, label: binary ResNet}}]")
    finish(study, dict(zip((*MICRO, rival), (80, 50, 60, 60.25, 61, 65, 64, top1), strict=True)))
    text = headline(load_study(tmp_path))
    assert f"- The binary ResNet {said}" in text
    assert ") points over one seed, with 0.43 times the bytes and 0.98 times the OPs (0.24 times with elem" in text


def test_the_step_that_gains_most_may_be_the_pyramid(tmp_path):
    assert "- The step that gains most is BinaryViT (+ pyramid), by +18.00 (" in headline_of(
        tmp_path, 50, 55, 56, 57, 75, 70
    )


def test_what_is_not_resolved_is_called_so(tmp_path):
    text = headline_of(tmp_path, 79, 79.25, 79.5, 79.75, 80.25, 70)
    assert "is as accurate as its full-precision teacher within what this study resolves, +0.25 (-0.24 to" in text
    assert "gains most is BinaryViT (+ pyramid), by +0.50 (-0.19 to +1.19) points, which is not resolved; " in text
    assert "also not resolved: + average pooling, +0.25 (-0.24 to +0.74) and + pooling branches, +0.25" in text


def test_seeds_are_paired_and_shown(tmp_path):
    text = headline_of(tmp_path, 50, 60, 60.25, 61, 65, 64, seeds=(0, 1, 2))
    assert "| + average pooling | 61.00 ± 1.00 (n = 3) | +10.00 (+7." in text


def test_an_unfinished_study_says_so(tmp_path):
    study = write_study(tmp_path)
    assert "**This study is still being trained:** 0 of its 7 runs are done." in headline(study)
    assert "\n- " not in headline(study)
    finish(study, skip=MICRO[4:])
    text = headline(load_study(tmp_path))
    assert "4 of its 7 runs" in text and "| + affine | not run | - |" in text
    assert "The step that gains most is + pooling branches, by +3.50" in text and "last step" not in text


def test_a_page_keeps_everything_outside_the_marks():
    page = "before <!-- made from results/ --> old <!-- until here --> after"
    assert put_into(page, r"new \1").split("\n\n")[1] == r"new \1"
    assert put_into(page, "new").startswith("before ") and put_into(page, "new").endswith(" after")
    with pytest.raises(BinaryViTError, match="lacks the lines"):
        put_into("a page without them", "new")
