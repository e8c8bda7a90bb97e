"""Packed inference against the evaluation mode of the models: the same bits, for every variant, width and reduction."""

import copy
import logging
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import timm
import torch
from helpers.compilers import needs_compiler
from helpers.scattered import images_for, scattered
from hypothesis import given, settings
from hypothesis import strategies as st

from binaryvit.errors import BinaryViTError
from binaryvit.models.description import Description
from binaryvit.models.ladder import LADDER
from binaryvit.packed import library, load
from binaryvit.packed.engine import pack
from binaryvit.packed.file import save_packed

COLUMNAR, PYRAMID = "reactdeit_micro_patch4_32", "binaryvit_micro_patch2_32"
SHAPES = {
    "heads of 8 channels, a CLS token": (COLUMNAR, dict(img_size=16, embed_dims=24, depths=2, num_heads=3)),
    "an odd width": (
        f"{COLUMNAR}_avg_pool_multi_branch", dict(img_size=24, embed_dims=21, depths=2, num_heads=3, mlp_ratios=3)
    ),
    "heads of several words": (
        f"{COLUMNAR}_avg_pool", dict(img_size=32, embed_dims=130, depths=2, num_heads=1, mlp_ratios=1)
    ),
    "many narrow heads, a narrowing by 5": (
        f"{COLUMNAR}_avg_pool", dict(img_size=16, embed_dims=60, depths=2, num_heads=30, mlp_ratios=5)
    ),
    "no classifier, no pooling of tokens": (
        f"{COLUMNAR}_avg_pool", dict(img_size=16, embed_dims=32, depths=1, num_heads=2, num_classes=0, global_pool="")
    ),
    "reductions of 3 and 2": (
        PYRAMID,
        dict(img_size=24, embed_dims=(5, 15, 60), depths=(1, 2, 1), num_heads=(1, 3, 5), mlp_ratios=(4, 2, 1),
             reductions=(3, 2, 1)),
    ),
    "full-precision merges": (
        f"{PYRAMID}_some_fp", dict(img_size=16, embed_dims=(8, 24), depths=(1, 2), num_heads=(1, 2), mlp_ratios=2,
                                   reductions=(4, 1)),
    ),
}  # fmt: skip
BUILDS = {
    "AVX-512 VPOPCNTDQ": (), "NEON": (), "AVX2": ("-DBINARYVIT_AVX2",), "plain C++": ("-DBINARYVIT_PLAIN",)
}  # fmt: skip


def assert_same(model, packed, count=3, compiled=True) -> None:
    assert compiled == (packed.instructions != "PyTorch"), "otherwise the modules are compared with themselves"
    images = images_for(model, count)
    with torch.no_grad():
        features, logits = model.forward_features(images), model(images)
    assert torch.equal(packed.forward_features(images), features)
    assert torch.equal(packed(images), logits)


@needs_compiler
@pytest.mark.parametrize("variant", LADDER["micro"][1:])
def test_every_variant_gives_the_same_bits(variant: str) -> None:
    """For one image and several, with fewer and more threads than images."""
    model = scattered(variant)
    packed = pack(model)
    for packed.threads, count in ((1, 1), (3, 1), (2, 5)):
        assert_same(model, packed, count)


@needs_compiler
def test_fewer_threads_than_asked_for_give_the_same_bits() -> None:
    """OpenMP grants fewer under OMP_THREAD_LIMIT or inside another parallel region; here, one."""
    model = scattered(PYRAMID)
    packed, openmp = pack(model, threads=3), library.engine_library()
    levels = openmp.omp_get_max_active_levels()
    openmp.omp_set_max_active_levels(0)
    try:
        assert_same(model, packed, count=4)
    finally:
        openmp.omp_set_max_active_levels(levels)


@needs_compiler
@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_any_shape_and_any_instructions_give_the_same_bits(shape: str, build: str, monkeypatch) -> None:
    monkeypatch.setattr(library, "FLAGS", (*library.FLAGS, *BUILDS[build]))
    variant, arguments = SHAPES[shape]
    model = scattered(variant, **arguments)
    packed = pack(model, threads=2)
    if packed.instructions != build:
        pytest.skip(f"this processor has no {build}")
    assert_same(model, packed)


@needs_compiler
@settings(max_examples=15)
@given(
    head=st.integers(1, 70), heads=st.integers(1, 3), ratio=st.sampled_from((1, 2, 3, 4, 6, 8, 16)),
    grid=st.integers(1, 6), seed=st.integers(0, 9), cls_token=st.booleans(),
)  # fmt: skip
def test_random_widths_give_the_same_bits(head, heads, ratio, grid, seed, cls_token) -> None:
    variant = COLUMNAR if cls_token else f"{COLUMNAR}_avg_pool_multi_branch_ls"
    shape = dict(img_size=4 * grid, embed_dims=head * heads, depths=1, num_heads=heads, mlp_ratios=ratio)
    model = scattered(variant, seed, **shape)
    assert_same(model, pack(model, threads=1), count=2)


@needs_compiler
@pytest.mark.parametrize("level", [0.0, -1.0, 1e-4, 0.9, 3.0])
def test_levels_that_switch_all_or_no_keys_on(level: float) -> None:
    model = scattered(PYRAMID)
    for name, parameter in model.named_parameters():
        if name.endswith("level"):
            parameter.data.fill_(level)
    assert_same(model, pack(model))


@needs_compiler
def test_an_exact_zero_is_a_plus() -> None:
    """Without shifts and with a black image, whole channels are exactly zero."""
    model = scattered(PYRAMID)
    for name, parameter in model.named_parameters():
        if name.endswith(("shift", "offset", "bias", "pos_embed", "shift_in", "shift_out", "beta")):
            parameter.data.zero_()
    images = torch.zeros(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(pack(model)(images), model(images))


def test_without_a_compiler_the_modules_give_the_same_bits(monkeypatch, caplog) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr(library, "FLAGS", (*library.FLAGS, "-DNOT_COMPILED_YET"))
    with caplog.at_level(logging.WARNING):
        packed = pack(scattered(PYRAMID))
    assert packed.instructions == "PyTorch"
    assert "could not be compiled" in caplog.text
    assert_same(scattered(PYRAMID), packed, compiled=False)


@needs_compiler
def test_a_packed_file_gives_the_same_bits(tmp_path) -> None:
    model = scattered(PYRAMID)
    description = Description(variant=PYRAMID, model_args={})
    save_packed(model, tmp_path / "model.bvit", description)
    assert_same(model, load(tmp_path / "model.bvit", threads=2))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda packed: pickle.loads(pickle.dumps(packed))])
def test_a_copy_gives_the_same_bits(copied) -> None:
    model = scattered(PYRAMID)
    packed, images = pack(model), images_for(model, 2)
    assert torch.equal(copied(packed)(images), packed(images))


@needs_compiler
def test_a_copy_for_another_processor_is_refused(monkeypatch) -> None:
    content = pickle.dumps(pack(scattered(PYRAMID)))
    monkeypatch.setattr("binaryvit.packed.engine.engine_library", lambda: None)
    with pytest.raises(BinaryViTError, match="load it here from its file"):
        pickle.loads(content)


def test_a_model_serves_several_threads_at_once() -> None:
    """They share the memory of its calls."""
    packed = pack(scattered(PYRAMID), threads=1)
    batches = images_for(scattered(PYRAMID), 40).split(2)
    expected = [packed(batch) for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        assert all(map(torch.equal, pool.map(packed, batches), expected))


def test_a_model_needs_a_thread() -> None:
    with pytest.raises(BinaryViTError, match="at least one thread, not with 0"):
        pack(scattered(PYRAMID), threads=0)


def test_later_changes_of_the_model_do_not_reach_it() -> None:
    model = scattered(PYRAMID)
    packed, images = pack(model), images_for(model, 1)
    before = packed(images)
    for parameter in model.parameters():
        parameter.data.zero_()
    assert torch.equal(packed(images), before)


def test_models_that_do_not_run_on_single_bits_are_refused() -> None:
    with pytest.raises(BinaryViTError, match="1-bit weights and 32-bit activations"):
        pack(scattered(PYRAMID, activation_bits=32))
    for variant in (LADDER["micro"][0], f"{PYRAMID}_shortcuts", "reactresnet_micro_patch2_32"):
        with pytest.raises(BinaryViTError, match="Only a vision transformer with binary layers"):
            pack(timm.create_model(variant))


@pytest.mark.parametrize(
    "images", [torch.zeros(3, 32, 32), torch.zeros(1, 3, 16, 16), torch.zeros(1, 3, 32, 32).byte()]
)
def test_other_images_are_refused(images: torch.Tensor) -> None:
    with pytest.raises(BinaryViTError, match=r"shape \(batch, 3, 32, 32\)"):
        pack(scattered(PYRAMID))(images)
