"""Damaged and forged files end in a sentence, never in a crash or in memory that the file does not have.

BINARYVIT_FUZZ=10000 reads that many variations instead of the usual 300; BINARYVIT_FUZZ_SEED chooses others.
"""

import json
import os
import subprocess
import sys

import pytest
from helpers.places import TESTS
from helpers.small_models import PYRAMID, model_of

from binaryvit.models.description import Description, Preprocessing
from binaryvit.models.weights_file import save_inference_weights
from binaryvit.packed.file import save_packed

COUNT = int(os.environ.get("BINARYVIT_FUZZ", 300))
SEED = os.environ.get("BINARYVIT_FUZZ_SEED", "0")
VARIANT = "binaryvit_micro_patch2_32"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="bounds memory as Linux does")
def test_damaged_files_are_refused_in_a_sentence(tmp_path):
    model, files = model_of(), [tmp_path / "model.bvit", tmp_path / "weights.safetensors"]
    arguments = json.loads(json.dumps(PYRAMID))
    use = {"class_names": tuple("abcd"), "preprocessing": Preprocessing.of(model)}
    save_packed(model, files[0], Description(variant=VARIANT, model_args=arguments, **use))
    save_inference_weights(model, files[1], VARIANT, arguments, **use)
    command = [sys.executable, str(TESTS / "helpers" / "fuzzed_files.py"), str(COUNT), SEED, *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout)
    outcomes = result["outcomes"]
    assert outcomes["refused"] + outcomes["opened"] == COUNT
    # What is left: changed weights that are as good as others, and changes of text that means the same.
    assert outcomes["refused"] > 0.75 * COUNT
    assert len(result["examples"]) == 10, result["examples"]
    print(result)
