"""Networks with the weights of an inputs file, and the training step on them."""

# pyright: reportMissingImports=false
import json

import numpy as np
import torch
from torch import nn

from .deeplabv3 import DeepLabV3
from .efficientnet_lite import EfficientNetLite
from .layers import BatchNorm, DropPath, Fusion
from .losses import terms
from .resnet import ResNet
from .swin import Swin

BODIES = {"resnet": ResNet, "swin": Swin, "efficientnet": EfficientNetLite}
# mean and standard deviation of rgb in 0 .. 255
IMAGENET = ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
NORMALISATIONS = {"efficientnet": ((127.0,) * 3, (128.0,) * 3)}


class Segmenter(nn.Module):
    """Body, head and a 1x1 classifier per task; what the losses read is float32."""

    def __init__(self, about, seen):
        super().__init__()
        self.family = next(name for name in BODIES if about["backbone"]["name"].startswith(name))
        self.body = BODIES[self.family](about["backbone"])
        self.head = DeepLabV3(about["decoder"], self.body.channels, about["output_stride"])
        counts = [after - before for before, after in zip([0, *seen[:-1]], seen, strict=True)]
        self.cls = nn.ModuleList(nn.Conv2d(about["decoder"]["channels"], count, 1) for count in counts)

    def forward(self, images):
        body, maps = self.body(images)
        pre_logits = self.head(body)
        logits = torch.cat([one(pre_logits) for one in self.cls], 1)
        return {"pre_logits": pre_logits.float(), "maps": [x.float() for x in maps], "logits": logits.float()}


def loaded(inputs, part, about, seen, device):
    """The network with its weights; every name must fit."""
    state = {key.removeprefix(part): torch.from_numpy(inputs[key]) for key in inputs if key.startswith(part)}
    network = Segmenter(about, seen)
    network.load_state_dict(state)
    return network.to(device, memory_format=torch.channels_last)


def training(student, fixed, deterministic):
    """Train mode, but for parameters that stay fixed with the statistics beside them, and for draws where there shall be none."""
    student.train()
    for name, module in student.named_modules():
        if isinstance(module, BatchNorm) and f"{name}.weight" in fixed:
            module.eval()
        if deterministic and isinstance(module, Fusion | DropPath):
            module.eval()
    for name, parameter in student.named_parameters():
        parameter.requires_grad_(name not in fixed)


def make(path, *, compiled):
    """`step() -> terms` (on the device) with the student's network, and the device."""
    with np.load(path) as file:
        inputs = {key: file[key] for key in file.files}
    about = json.loads(str(inputs["about"]))
    device = torch.device(about["device"])
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = False  # float32 means float32
    student = loaded(inputs, "student/", about, about["seen"], device)
    teacher = loaded(inputs, "teacher/", about, about["seen"][:-1], device).eval().requires_grad_(False)
    training(student, set(about["fixed"]), about["deterministic"])
    images = torch.from_numpy(inputs["image"]).to(device).permute(0, 3, 1, 2)
    labels = torch.from_numpy(inputs["label"]).long().to(device)
    thresholds = torch.from_numpy(inputs["prepared"]).to(device) if "prepared" in inputs else None
    scale = NORMALISATIONS.get(student.family, IMAGENET)
    mean, deviation = (torch.tensor(values, device=device).view(1, 3, 1, 1) for values in scale)
    trained = [parameter for parameter in student.parameters() if parameter.requires_grad]
    optimiser = torch.optim.SGD(
        trained,
        about["learning_rate"],
        momentum=about["momentum"],
        weight_decay=about["weight_decay"],
        nesterov=about["nesterov"],
    )
    schedule = torch.optim.lr_scheduler.PolynomialLR(optimiser, about["steps"], about["poly_power"])
    half = torch.autocast(device.type, torch.bfloat16, enabled=about["dtype"] == "bfloat16")

    def loss(images, labels):
        with half:
            normalised = (images.float() - mean) / deviation
            with torch.no_grad():
                old = teacher(normalised)
            new = student(normalised)
        return terms(about["method"], new, old, labels, thresholds)

    if compiled:
        loss = torch.compile(loss)

    def step():
        optimiser.zero_grad(set_to_none=True)
        found = loss(images, labels)
        total = torch.stack(list(found.values())).sum()
        total.backward()
        optimiser.step()
        schedule.step()
        return {"loss": total.detach(), **{name: value.detach() for name, value in found.items()}}

    return step, student, device
