"""Finding, reading, checking and fingerprinting data sets."""

import io
import shutil
from collections import Counter
from pathlib import Path

import datasets
import huggingface_hub
import numpy as np
import pytest
from PIL import Image, PngImagePlugin
from sklearn.datasets import load_digits

import binaryvit.data.images
from binaryvit.config import TrainingConfig
from binaryvit.data import sources
from binaryvit.data.data_set import load_data
from binaryvit.data.images import to_rgb
from binaryvit.errors import BinaryViTError

CLASSES = ("cat", "dog", "owl")


@pytest.fixture(autouse=True)
def no_shared_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def config(data: str | Path = "digits", **fields) -> TrainingConfig:
    return TrainingConfig(variant="vit_tiny_patch16_224", data=str(data), **fields)


def picture(index: int, size: tuple[int, int] = (12, 10)) -> Image.Image:
    pixels = np.random.default_rng(index).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, format="PNG")
    return file.getvalue()


def table(labels: list, classes=CLASSES, first: int = 0, image_column="image", label_column="label"):
    """A Hugging Face data set of random pictures numbered from `first`."""
    features = {image_column: datasets.Image()}
    features[label_column] = datasets.ClassLabel(names=list(classes)) if classes else datasets.Value("int64")
    if labels and isinstance(labels[0], str) and not classes:
        features[label_column] = datasets.Value("string")
    images = [{"bytes": png(picture(first + i)), "path": None} for i in range(len(labels))]
    return datasets.Dataset.from_dict(
        {image_column: images, label_column: labels}, features=datasets.Features(features)
    )


def parquet(folder: Path, **splits: datasets.Dataset) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, split in splits.items():
        split.to_parquet(folder / f"{name}.parquet")
    return folder


def class_folders(folder: Path, images: int = 3, **splits: tuple[str, ...]) -> Path:
    for number, (split, classes) in enumerate(splits.items()):
        for label, name in enumerate(classes):
            (folder / split / name).mkdir(parents=True)
            for i in range(images):
                picture(1000 * number + 100 * label + i).save(folder / split / name / f"{i}.png")
    return folder


# The embedded digits


def test_digits_are_the_originals_split_once_and_for_all():
    data = load_data(config())
    digits = load_digits()
    originals = Counter(
        (image.tobytes(), int(label)) for image, label in zip(digits.images, digits.target, strict=True)
    )
    found = Counter()
    for split in (data.train, data.eval):
        for image, label in zip(split.images(range(len(split))), split.labels, strict=True):
            assert image.mode == "RGB" and image.size == (8, 8)
            red, green, blue = np.moveaxis(np.asarray(image), -1, 0)
            assert (red == green).all() and (red == blue).all()
            found[np.rint(red * (16 / 255)).astype(float).tobytes(), int(label)] += 1
    assert found == originals
    assert data.splits == {"train": ("train", 1437), "eval": ("test", 360)}
    assert data.class_names == tuple("0123456789") and data.num_classes == 10
    shares = np.bincount(data.eval.labels) / np.bincount(digits.target)
    assert np.allclose(shares, 360 / 1797, atol=0.006)
    # Pins the content: it changes only when the data does, and then stored results are no longer comparable.
    assert data.fingerprint == "df068479654ef550fcf353b44d305adf998dd24d03adda1921c2ef21bfd5ae3f"


def test_digits_take_no_folder(tmp_path):
    with pytest.raises(BinaryViTError, match="leave data_dir out"):
        load_data(config(data_dir=str(tmp_path)))


# Folders


def test_parquet_folder(tmp_path):
    folder = parquet(tmp_path / "set", train=table([0, 1, 2, 1]), test=table([2, 0], first=50))
    data = load_data(config(folder, data_label="Three animals"))
    assert (data.name, data.label, data.source) == ("set", "Three animals", "local folder: set")
    assert data.class_names == CLASSES
    assert data.splits == {"train": ("train", 4), "eval": ("test", 2)}
    assert data.train.labels.tolist() == [0, 1, 2, 1]
    assert np.array_equal(data.eval.images([1])[0], picture(51))
    assert str(tmp_path) not in data.source + data.name + data.label


@pytest.mark.parametrize(
    "place",
    [
        "{}.parquet",
        "{}-00000-of-00001.parquet",
        "{}-00000-of-00001-1359597a978bc4fa.parquet",
        "data/{}-00000-of-00001.parquet",
        "{}/0000.parquet",
    ],
)
@pytest.mark.parametrize("data_config", [None, "small"])
def test_where_parquet_files_may_lie(tmp_path, place, data_config):
    for split, labels in (("train", [0, 1, 2]), ("test", [2, 1])):
        file = tmp_path / (data_config or "") / place.format(split)
        file.parent.mkdir(parents=True, exist_ok=True)
        table(labels).to_parquet(file)
    data = load_data(config(tmp_path, data_config=data_config))
    assert data.splits == {"train": ("train", 3), "eval": ("test", 2)}


def test_configurations_side_by_side_are_not_joined(tmp_path):
    for name in ("large", "small"):
        parquet(tmp_path / name, train=table([0, 1]), test=table([1]))
    with pytest.raises(
        BinaryViTError, match=r"'test' lies in several folders of .* \(large, small\).* set data_config"
    ):
        load_data(config(tmp_path))
    assert load_data(config(tmp_path, data_config="small")).splits == {"train": ("train", 2), "eval": ("test", 1)}


def test_a_configuration_of_class_folders(tmp_path):
    for name, images in (("large", 3), ("small", 1)):
        class_folders(tmp_path / name, images, train=CLASSES, val=CLASSES)
    data = load_data(config(tmp_path, data_config="small"))
    assert data.splits == {"train": ("train", 3), "eval": ("val", 3)} and data.class_names == CLASSES
    assert len(data.train.images([2])) == 1 and data.source == f"local folder: {tmp_path.name}"


def test_shards_are_joined_in_their_order(tmp_path):
    for shard in range(3):
        table([shard], first=shard).to_parquet(tmp_path / f"train-0000{shard}-of-00003.parquet")
    parquet(tmp_path, test=table([0]))
    train = load_data(config(tmp_path)).train
    assert train.labels.tolist() == [0, 1, 2]
    assert np.array_equal(train.images([2])[0], picture(2))


def test_a_local_copy_of_a_named_data_set(tmp_path):
    folder = parquet(tmp_path / "copy", train=table([0, 1]), test=table([1]))
    data = load_data(config("someone/animals", data_dir=str(folder)))
    assert (data.name, data.label, data.source) == ("someone/animals", "someone/animals", "local folder: copy")


def test_class_folders(tmp_path):
    folder = class_folders(tmp_path / "set", train=CLASSES, val=("owl", "cat"), test=("unknown",))
    (folder / "train" / "cat" / "notes.txt").write_text("not an image")
    (folder / "train" / "cat" / "._0.png").write_text("a Mac's leftover")
    (folder / "train" / ".cache").mkdir()
    data = load_data(config(folder))
    assert data.class_names == CLASSES
    assert data.train.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    # Numbered by the training split's classes, though this split has other ones.
    assert data.eval.labels.tolist() == [0, 0, 0, 2, 2, 2]
    assert np.array_equal(data.train.images([4])[0], picture(101))
    assert np.array_equal(data.eval.images([5])[0], picture(1002))


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (("train", "test", "val"), "val"),
        (("train", "test", "val", "valid", "validation"), "validation"),
        (("train", "extra", "test"), "test"),
    ],
)
def test_the_evaluation_split_is_looked_for_in_a_fixed_order(tmp_path, names, chosen):
    data = load_data(config(class_folders(tmp_path, 1, **dict.fromkeys(names, CLASSES))))
    assert (data.train.name, data.eval.name) == ("train", chosen)


def test_splits_and_columns_can_be_given(tmp_path):
    columns = {"image_column": "photo", "label_column": "fine"}
    two = table([0, 1], **columns).add_column("coarse", [0, 0], feature=datasets.ClassLabel(names=["a", "b"]))
    folder = parquet(tmp_path, train=two, test=two)
    data = load_data(config(folder, label_column="fine", train_split="test", eval_split="train"))
    assert data.splits == {"train": ("test", 2), "eval": ("train", 2)}
    assert data.train.image_column == "photo"
    with pytest.raises(BinaryViTError, match=r"set label_column to one of photo, fine, coarse"):
        load_data(config(folder))
    with pytest.raises(BinaryViTError, match=r"'fine' of split 'train' does not hold images"):
        load_data(config(folder, image_column="fine", label_column="fine"))


@pytest.mark.parametrize(
    ("train", "test", "names"), [(["owl", "cat"], ["cat"], ("cat", "owl")), ([1, 0, 2], [0], ("0", "1", "2"))]
)
def test_labels_without_class_names(tmp_path, train, test, names):
    data = load_data(config(parquet(tmp_path, train=table(train, None), test=table(test, None))))
    assert data.class_names == names
    assert data.train.labels.tolist() == ([1, 0] if isinstance(train[0], str) else train)


def test_classes_numbered_differently_in_the_evaluation_split_go_by_their_names(tmp_path):
    folder = parquet(tmp_path, train=table([0, 1, 2]), test=table([0, 2], CLASSES[::-1]))
    assert load_data(config(folder)).eval.labels.tolist() == [2, 0]


# What cannot be used


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"eval_split": "test"}, r"no split 'test': set eval_split to one of those it has: .*extra.*train"),
        ({"train_split": "all", "eval_split": "extra"}, r"no split 'all': set train_split"),
        ({}, r"no split named validation, valid, val or test to evaluate on: set eval_split .*: extra, train"),
        ({"eval_split": "train"}, r"'train' is trained on, so it cannot be evaluated on"),
        ({"eval_split": "extra", "label_column": "colour"}, r"set label_column to one of image, label"),
    ],
)
def test_splits_and_columns_that_are_not_there(tmp_path, fields, message):
    folder = class_folders(tmp_path, 1, train=CLASSES, extra=CLASSES)
    with pytest.raises(BinaryViTError, match=message):
        load_data(config(folder, **fields))


@pytest.mark.parametrize("label", [-1, 3, None])
def test_labels_outside_of_the_classes(tmp_path, label):
    folder = parquet(tmp_path, train=table([0, 1, 2], None), test=table([0, label], None))
    with pytest.raises(BinaryViTError, match=rf"Image 1 of split 'test' has the label {label}, .* 3 classes"):
        load_data(config(folder))


def test_class_that_the_training_split_does_not_have(tmp_path):
    folder = class_folders(tmp_path, 1, train=CLASSES, val=("cat", "fox"))
    with pytest.raises(BinaryViTError, match="Image 1 of split 'val' has the label 'fox'"):
        load_data(config(folder))


def test_absurd_label_is_not_counted_up_to(tmp_path):
    folder = parquet(tmp_path, train=table([0, 10**15], None), test=table([0], None))
    with pytest.raises(BinaryViTError, match="neither class names nor class indices"):
        load_data(config(folder))


def test_one_class(tmp_path):
    with pytest.raises(BinaryViTError, match=r"only one class \(cat\)"):
        load_data(config(class_folders(tmp_path, train=("cat",), val=("cat",))))


def test_folders_that_are_none(tmp_path):
    with pytest.raises(BinaryViTError, match=r"nowhere does not exist"):
        load_data(config(tmp_path / "nowhere"))
    with pytest.raises(BinaryViTError, match=r"neither parquet files nor class folders"):
        load_data(config(tmp_path))
    class_folders(tmp_path, train=CLASSES, val=CLASSES)
    (tmp_path / "train" / "owlet").mkdir()
    with pytest.raises(BinaryViTError, match=r"hold no images \(owlet\)"):
        load_data(config(tmp_path))


def test_truncated_parquet(tmp_path):
    folder = parquet(tmp_path / "set", train=table([0, 1, 2]), test=table([0]))
    file = folder / "train.parquet"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(BinaryViTError, match=r"parquet files of split 'train' in .*set cannot be read"):
        load_data(config(folder))


def test_empty_split(tmp_path):
    with pytest.raises(BinaryViTError, match=r"split 'test' .*no data"):
        load_data(config(parquet(tmp_path, train=table([0, 1]), test=table([]))))


@pytest.mark.parametrize("damage", [lambda data: data[:-60], lambda data: b"no image", lambda data: b""])
def test_a_corrupt_image_is_named(tmp_path, damage):
    folder = class_folders(tmp_path, train=CLASSES, val=CLASSES)
    file = folder / "train" / "dog" / "1.png"
    file.write_bytes(damage(file.read_bytes()))
    data = load_data(config(folder))
    with pytest.raises(
        BinaryViTError, match=r"^Image 4 of split 'train' \(train/dog/1.png\).*: replace or remove it.$"
    ):
        data.train.images([0])
    assert data.eval.images([4])
    file.unlink()
    with pytest.raises(BinaryViTError, match=r"Image 4 of split 'train' \(train/dog/1.png\) cannot be read"):
        data.train.images([0])


def test_a_table_cannot_make_us_read_other_files(tmp_path):
    picture(0).save(tmp_path / "secret.png")
    images = [{"bytes": None, "path": str(tmp_path / "secret.png")}, {"bytes": png(picture(1)), "path": None}]
    feature = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
    features = datasets.Features(image=feature, label=datasets.ClassLabel(names=["a", "b"]))
    split = datasets.Dataset.from_dict({"image": images, "label": [0, 1]}, features=features)
    folder = parquet(tmp_path / "set", train=split, test=split)
    with pytest.raises(BinaryViTError, match="Image 0 of split 'train' is empty"):
        load_data(config(folder)).train.images([0])


def test_oversized_images(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    image = picture(0, (11, 10))
    with pytest.raises(ValueError, match="11x10 pixels are more than the 100"):
        to_rgb(image)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("size", [(11, 11), (20, 20)])  # beyond twice the limit PIL raises by itself
def test_oversized_images_are_named(tmp_path, monkeypatch, size):
    folder = class_folders(tmp_path, train=CLASSES, val=CLASSES)
    picture(0, size).save(folder / "val" / "cat" / "2.png")
    data = load_data(config(folder))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 120)
    with pytest.raises(
        BinaryViTError, match=r"Image 2 of split 'val' \(val/cat/2.png\) .*(exceeds limit|more than the 120)"
    ):
        data.eval.images([0])


# The hub


def test_hub_without_network(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(BinaryViTError, match=r"'uoft-cs/cifar10' is not on this machine .* as data_dir"):
        load_data(config("uoft-cs/cifar10"))


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (datasets.exceptions.DatasetNotFoundError("Dataset 'a/b' is a gated dataset on the Hub."), "gated.*HF_TOKEN"),
        (datasets.exceptions.DatasetNotFoundError("Dataset 'a/b' doesn't exist"), "There is no data set 'a/b'"),
        (ValueError("BuilderConfig 'x' not found. Available: ['y']\nmore"), r"\(BuilderConfig .*'y'\]\).*data_config"),
    ],
)
def test_what_the_hub_refuses(monkeypatch, error, message):
    def refuse(*args):
        raise error

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(BinaryViTError, match=message):
        load_data(config("a/b"))


def test_hub_data(monkeypatch):
    asked = []

    def load(*args):
        asked.append(args)
        return datasets.DatasetDict(train=table([0, 1]), validation=table([1]), test=table([-1], None))

    monkeypatch.setattr(datasets, "load_dataset", load)
    data = load_data(config("a/b", data_config="small"))
    assert asked == [("a/b", "small")]
    assert (data.name, data.source) == ("a/b", "Hugging Face hub: a/b")
    assert data.splits == {"train": ("train", 2), "eval": ("validation", 1)}
    with pytest.raises(BinaryViTError, match=r"label -1.*kept secret"):
        load_data(config("a/b", eval_split="test"))


@pytest.mark.parametrize("cache", ["HF_DATASETS_CACHE", "EXTRACTED_DATASETS_PATH", "HF_HUB_CACHE"])
def test_hub_data_of_image_files_are_read_from_each_cache_wherever_it_is(cache, monkeypatch, tmp_path):
    """And from nowhere else: the paths in a table are those of whoever made it."""
    monkeypatch.setattr(sources if cache == "HF_HUB_CACHE" else datasets.config, cache, tmp_path / "moved")
    (tmp_path / "moved").mkdir()

    def load(folder):
        picture(3).save(folder / "1.png")
        paths = [{"bytes": None, "path": str(folder / "1.png")}] * 2
        features = datasets.Features(image=datasets.Image(decode=False), label=datasets.ClassLabel(names=["a", "b"]))
        split = datasets.Dataset.from_dict({"image": paths, "label": [0, 1]}, features=features)
        monkeypatch.setattr(datasets, "load_dataset", lambda *_: {"train": split, "test": split})
        return load_data(config("a/b")).train

    [image, _] = load(tmp_path / "moved").images([0, 1])
    assert image.tobytes() == picture(3).tobytes()
    with pytest.raises(BinaryViTError, match="outside the data set"):
        load(tmp_path).images([0])


# Conversion to RGB


def reopened(image: Image.Image, **save) -> Image.Image:
    file = io.BytesIO()
    image.save(file, format="PNG", **save)
    return Image.open(io.BytesIO(file.getvalue()))


def test_conversions_to_rgb():
    rgb = picture(3)
    grey = rgb.convert("L")
    three = Image.merge("RGB", [grey] * 3)
    rgba = Image.merge("RGBA", [*rgb.split(), grey])
    palette = rgb.quantize(16)
    sixteen = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    info = PngImagePlugin.PngInfo()
    for given, expected in [
        (reopened(rgb), rgb),
        (reopened(grey), three),
        (reopened(rgba), rgb),
        (reopened(Image.merge("LA", [grey, grey])), three),
        (reopened(palette), palette.convert("RGB")),
        (reopened(palette, transparency=bytes(range(16))), palette.convert("RGB")),
        (reopened(sixteen, pnginfo=info), three),
        (sixteen.convert("I"), three),
        (rgb.convert("1"), rgb.convert("1").convert("RGB")),
        (rgb.convert("CMYK"), rgb.convert("CMYK").convert("RGB")),
    ]:
        converted = to_rgb(given)
        assert converted.mode == "RGB"
        assert np.array_equal(converted, expected), given.mode


def test_pixels_of_unknown_range_are_refused():
    with pytest.raises(ValueError, match="floating-point"):
        to_rgb(Image.new("F", (2, 2)))
    with pytest.raises(ValueError, match="16-bit range"):
        to_rgb(Image.new("I", (2, 2), 70000))


# Parts, fingerprint, memory


def test_a_part_is_fixed_and_keeps_the_classes_proportions():
    data = load_data(config(max_train_images=143, max_eval_images=5))
    again = load_data(config(max_train_images=143, max_eval_images=5))
    whole = load_data(config())
    assert data.splits == {"train": ("train", 143), "eval": ("test", 5)}
    assert np.array_equal(data.train.rows, again.train.rows) and len(set(data.train.rows)) == 143
    expected = np.bincount(whole.train.labels) * 143 / 1437
    assert np.abs(np.bincount(data.train.labels) - expected).max() <= 1
    assert len(set(data.eval.labels)) == 5
    for index in (0, 70, 142):
        row = data.train.rows[index]
        assert data.train.labels[index] == whole.train.labels[row]
        assert np.array_equal(data.train.images([index])[0], whole.train.images([row])[0])
    assert len(load_data(config(max_train_images=10**6)).train) == 1437


def test_training_images_can_be_held_out_to_evaluate_on():
    whole = load_data(config(max_train_images=200, max_eval_images=None))
    data = load_data(config(max_train_images=200, max_eval_images=None, holdout_images=50))
    assert (len(data.train), len(data.eval), data.eval.name) == (150, 50, "train (held out)")
    assert sorted([*data.train.rows, *data.eval.rows]) == whole.train.rows.tolist()
    assert max(Counter(data.eval.labels.tolist()).values()) <= 6 and len(set(data.eval.labels.tolist())) == 10
    for split in (data.train, data.eval):
        place = np.searchsorted(whole.train.rows, split.rows)
        assert split.labels.tolist() == whole.train.labels[place].tolist()
        assert split.encoded([0, 7]) == whole.train.encoded(place[[0, 7]])
    assert data.fingerprint != whole.fingerprint
    with pytest.raises(BinaryViTError, match="holdout_images=200 leaves nothing of the 200"):
        load_data(config(max_train_images=200, max_eval_images=None, holdout_images=200))


def test_held_out_images_need_no_evaluation_split(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / "train" / name).mkdir(parents=True)
        for i in range(4):
            Image.new("RGB", (9, 9), (i, 0, 0)).save(tmp_path / "train" / name / f"{i}.png")
    data = load_data(TrainingConfig(variant="vit_tiny_patch16_224", data=str(tmp_path), holdout_images=2))
    assert sorted(data.eval.labels.tolist()) == [0, 1] and len(data.train) == 6


def test_fingerprint_covers_content_and_not_place(tmp_path):
    def fingerprint(name, train=None, test=None, **fields):
        folder = parquet(tmp_path / name, train=train or table([0, 1, 2, 0]), test=test or table([2, 1], first=9))
        return load_data(config(folder, **fields)).fingerprint

    reference = fingerprint("one")
    assert reference == fingerprint("two") and len(reference) == 64
    columns = {"image_column": "x", "label_column": "y"}
    assert reference == fingerprint("columns", table([0, 1, 2, 0], **columns), table([2, 1], first=9, **columns))
    others = {
        "label": fingerprint("label", train=table([0, 1, 2, 1])),
        "names": fingerprint("names", table([0, 1, 2, 0], "abc"), table([2, 1], "abc", 9)),
        "image": fingerprint("image", test=table([2, 1], first=10)),
        "size": fingerprint("size", train=table([0, 1, 2, 0, 0])),
        "part": fingerprint("part", max_train_images=3),
        "swapped": fingerprint("swapped", train_split="test", eval_split="train"),
        "reference": reference,
    }
    assert len(set(others.values())) == len(others), others


def test_fingerprint_of_a_moved_class_folder(tmp_path):
    first = class_folders(tmp_path / "first", train=CLASSES, val=CLASSES)
    fingerprint = load_data(config(first)).fingerprint
    shutil.move(first, tmp_path / "elsewhere")
    assert load_data(config(tmp_path / "elsewhere")).fingerprint == fingerprint
    picture(7).save(tmp_path / "elsewhere" / "val" / "owl" / "2.png")
    assert load_data(config(tmp_path / "elsewhere")).fingerprint != fingerprint


def test_large_splits_stay_encoded(tmp_path, monkeypatch):
    folder = class_folders(tmp_path, train=CLASSES, val=CLASSES)
    bytes_taken = 9 * 12 * 10 * 3
    monkeypatch.setattr(binaryvit.data.images, "PIXEL_CACHE_BYTES", bytes_taken)
    cached = load_data(config(folder)).train
    assert len(cached.pixels) == 9
    monkeypatch.setattr(binaryvit.data.images, "PIXEL_CACHE_BYTES", bytes_taken - 1)
    encoded = load_data(config(folder)).train
    assert encoded.pixels is None
    monkeypatch.setattr(binaryvit.data.images, "PIXEL_CACHE_BYTES", bytes_taken // 3)
    with monkeypatch.context() as patch:
        opened = []
        patch.setattr(binaryvit.data.images, "to_rgb", lambda image: opened.append(image) or to_rgb(image))
        assert load_data(config(folder)).train.pixels is None and len(opened) == 4, "it ends where the limit is passed"
    for one, other in zip(cached.images(range(9)), encoded.images(range(9)), strict=True):
        assert np.array_equal(one, other)
