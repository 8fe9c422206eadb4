"""Make a small backbone: train it on labelled images, or distil the pooled layers of a larger one (no labels needed).

    python tools/pretrain_backbone.py IMAGES -o OUT.safetensors --model mobilenetv3_small_100 [--teacher MODEL
        --teacher-weights FILE ...] [--px 96] [--epochs 20] [--device auto]

IMAGES is a folder or tar file whose pictures lie in one folder per class (`n01443537/x.jpg`). With a teacher the loss
is the mean squared error between linear read-outs of the student's pooled stages 1..i and the teacher's pooled stage i,
standardised per channel, deeper stages weighing more (.3 .5 .7 1.5 2); plus .3 x cross-entropy where there are classes.
Without one it is cross-entropy with label smoothing. Random crop, flip, brightness, contrast and colour jitter; AdamW,
cosine, EMA. A checkpoint (OUT.checkpoint.pt) is written after every epoch, and an interrupted run goes on from it.
The result is the `features_only` state dict in half precision: `layerwatch fit --backbone MODEL --weights OUT`.
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from detectors.engines.device import choose_device
from detectors.images.decode import ImageError, Limits, decode
from detectors.images.prepare import resize
from detectors.images.reading import read_images
from detectors.images.tones import Tones
from detectors.profile.backbone import Backbone
from detectors.profile.network import lean
from detectors.profile.spec import BackboneSpec

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
STAGE_WEIGHTS = (0.3, 0.5, 0.7, 1.5, 2.0)
EMA = 0.998


@dataclass(frozen=True)
class Pictures:
    """pixels: (N, P, P, 3) uint8, P = 1.25 px, room to crop. labels: (N,) class numbers. classes: how many."""

    pixels: NDArray[np.uint8]
    labels: Tensor
    classes: int


def main(argv: list[str] | None = None) -> None:
    args = _parser().parse_args(argv)
    torch.manual_seed(args.seed)
    device = choose_device(args.device)
    pictures = load(args.images, args.px)
    print(f"{len(pictures.pixels)} images, {pictures.classes} classes")
    teacher = _teacher(args) if args.teacher else None
    run = Run(args, pictures, teacher, device)
    run.resume()
    while run.epoch < args.epochs:
        started = time.monotonic()
        loss = run.one_epoch()
        left = (args.epochs - run.epoch) * (time.monotonic() - started)
        print(f"epoch {run.epoch}/{args.epochs}: loss {loss:.4f}, {left / 60:.0f} min left", flush=True)
        run.save()
    run.export()


def load(path: str, px: int) -> Pictures:
    """All usable pictures of a folder or tar; the folder a picture lies in is its class."""
    side = round(px * 1.25)
    pixels, names = [], []
    for name, image in read_images([path]):
        try:
            pixels.append(resize(Tones().rgb(decode(image, Limits()).values)[0], side, "bilinear"))
        except ImageError as error:
            print(f"left out {name}: {error}")
            continue
        names.append(str(Path(name).parent))
    classes = sorted(set(names))
    number = {name: i for i, name in enumerate(classes)}
    return Pictures(np.stack(pixels), torch.tensor([number[name] for name in names]), len(classes))


class Run:
    """One training: student, read-outs, optimizer, average; saved and resumed as a whole."""

    def __init__(
        self, args: argparse.Namespace, pictures: Pictures, teacher: Backbone | None, device: torch.device
    ) -> None:
        self.args, self.pictures, self.teacher, self.device = args, pictures, teacher, device
        student: Any = lean.timm.create_model(args.model, features_only=True, pretrained=False).to(device)
        self.student, widths = student, student.feature_info.channels()
        self.head = nn.Linear(widths[-1], max(pictures.classes, 1)).to(device)
        self.readouts = nn.ModuleList()
        if teacher:
            seen = np.cumsum(widths)
            pairs = [(int(seen[min(i, len(seen) - 1)]), width) for i, width in enumerate(teacher.layers)]
            self.readouts = nn.ModuleList(nn.Linear(inputs, outputs) for inputs, outputs in pairs).to(device)
        parameters = [*self.student.parameters(), *self.head.parameters(), *self.readouts.parameters()]
        self.optimizer = torch.optim.AdamW(parameters, lr=args.lr, weight_decay=0.02)
        self.average = {k: v.detach().clone() for k, v in self.student.state_dict().items()}
        self.generator = torch.Generator().manual_seed(args.seed)
        self.epoch = 0
        self.checkpoint = Path(args.output).with_suffix(".checkpoint.pt")
        self.scale = self._teacher_scale()

    def one_epoch(self) -> float:
        """One pass; returns the mean loss."""
        losses, count = [], len(self.pictures.pixels)
        batches = torch.randperm(count, generator=self.generator).split(self.args.batch)
        batches = batches[: self.args.max_steps or len(batches)]
        total = self.args.epochs * len(batches)
        self.student.train()
        for i, rows in enumerate(batches):
            share = (self.epoch * len(batches) + i) / total
            for group in self.optimizer.param_groups:  # half a cosine after a short rise
                group["lr"] = self.args.lr * min(1.0, share * 20 + 0.01) * (1 + math.cos(math.pi * share)) / 2
            pixels = augment(self.pictures.pixels[rows.numpy()], self.args.px, self.generator)
            loss = self.loss(pixels.to(self.device), pixels, self.pictures.labels[rows].to(self.device))
            self.optimizer.zero_grad()
            torch.autograd.backward(loss)
            self.optimizer.step()
            losses.append(float(loss.detach()))
            self._follow()
        self.epoch += 1
        return float(np.mean(losses))

    def loss(self, images: Tensor, pixels: Tensor, labels: Tensor) -> Tensor:
        """images: (B, 3, P, P) in [0, 1] on the device; pixels: the same on the CPU, for the teacher."""
        mean, std = (torch.tensor(v, device=self.device).view(1, 3, 1, 1) for v in (MEAN, STD))
        pooled = [stage.mean(dim=(2, 3)) for stage in self.student((images - mean) / std)]
        entropy = functional.cross_entropy(self.head(pooled[-1]), labels, label_smoothing=0.1)
        if self.teacher is None:
            return entropy
        targets = torch.split(self._teach(pixels), list(self.teacher.layers), dim=1)
        loss = 0.3 * entropy if self.pictures.classes > 1 else 0.0 * entropy
        for i, (readout, target) in enumerate(zip(self.readouts, targets, strict=True)):
            seen = torch.cat(pooled[: min(i, len(pooled) - 1) + 1], dim=1)
            loss = loss + STAGE_WEIGHTS[min(i, 4)] * functional.mse_loss(readout(seen), target)
        return loss

    def resume(self) -> None:
        """Go on from the checkpoint where there is one."""
        if not self.checkpoint.exists():
            return
        state = torch.load(self.checkpoint, map_location=self.device, weights_only=True)
        self.student.load_state_dict(state["student"])
        self.head.load_state_dict(state["head"])
        self.readouts.load_state_dict(state["readouts"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.average, self.epoch = state["average"], state["epoch"]
        self.generator.set_state(state["generator"].cpu())
        print(f"going on after epoch {self.epoch}")

    def save(self) -> None:
        """Write the checkpoint; a crash while writing leaves the last one."""
        state = {
            "student": self.student.state_dict(),
            "head": self.head.state_dict(),
            "readouts": self.readouts.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average,
            "epoch": self.epoch,
            "generator": self.generator.get_state(),
        }
        partial = self.checkpoint.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(self.checkpoint)

    def export(self) -> None:
        """Write the averaged weights in half precision."""
        tensors = {k: v.half() if v.is_floating_point() else v for k, v in self.average.items()}
        save_file({k: v.cpu().contiguous() for k, v in tensors.items()}, self.args.output)
        print(f"{self.args.output}: {Path(self.args.output).stat().st_size / 1e6:.1f} MB")

    @torch.no_grad()
    def _follow(self) -> None:
        for name, tensor in self.student.state_dict().items():
            if tensor.is_floating_point():
                self.average[name].lerp_(tensor, 1 - EMA if self.epoch else 0.05)
            else:
                self.average[name].copy_(tensor)

    def _teacher_scale(self) -> tuple[Tensor, Tensor]:
        if self.teacher is None:
            return torch.zeros(1), torch.ones(1)
        sample = torch.arange(min(512, len(self.pictures.pixels)))
        pixels = augment(self.pictures.pixels[sample.numpy()], self.args.px, torch.Generator().manual_seed(0))
        features = self._teacher_features(pixels)
        return features.mean(0), features.std(0) + 1e-4

    def _teach(self, pixels: Tensor) -> Tensor:
        mean, std = self.scale
        return (self._teacher_features(pixels) - mean) / std

    def _teacher_features(self, pixels: Tensor) -> Tensor:
        assert self.teacher is not None
        whole = (pixels * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
        return self.teacher.features(whole).to(self.device).clone()


def augment(pixels: NDArray[np.uint8], px: int, generator: torch.Generator) -> Tensor:
    """(B, P, P, 3) uint8 -> (B, 3, px, px) in [0, 1]: a crop of area .3 to 1 per batch quarter, flip, jitter."""
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255.0
    parts = []
    for part in images.tensor_split(4):
        if not len(part):
            continue
        side = part.shape[-1]
        area, where = torch.rand(1, generator=generator), torch.rand(2, generator=generator)
        length = max(8, int(side * float(0.3 + 0.7 * area) ** 0.5))
        top, left = (int(float(w) * (side - length + 1)) for w in where)
        crop = part[:, :, top : top + length, left : left + length]
        parts.append(functional.interpolate(crop, (px, px), mode="bilinear", antialias=True, align_corners=False))
    images = torch.cat(parts)
    flip = torch.rand(len(images), generator=generator) < 0.5
    images[flip] = images[flip].flip(-1)
    brightness, contrast, colour = (0.6 + 0.8 * torch.rand(3, len(images), 1, 1, 1, generator=generator)).unbind(0)
    grey = images.mean(dim=1, keepdim=True)
    images = grey + colour * (images - grey)
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    return ((mean + contrast * (images - mean)) * brightness).clamp(0.0, 1.0)


def _teacher(args: argparse.Namespace) -> Backbone:
    arguments = dict(text.split("=", 1) for text in args.teacher_arg)
    mean = tuple(float(v) for v in args.teacher_mean.split(",")) if args.teacher_mean else None
    spec = BackboneSpec(
        args.teacher,
        args.teacher_weights,
        layers=tuple(int(i) for i in args.teacher_layers.split(",")) if args.teacher_layers else (),
        mean=mean,  # type: ignore[arg-type]
        std=mean if args.teacher_mean == ".5,.5,.5" else None,  # type: ignore[arg-type]
        input_px=args.px,
        args=arguments,
    )
    return Backbone(spec, args.device)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images")
    parser.add_argument("-o", "--output", required=True)
    parser.add_argument("--model", default="mobilenetv3_small_100")
    parser.add_argument("--teacher", help="timm model to distil from")
    parser.add_argument("--teacher-weights", default="hub")
    parser.add_argument("--teacher-layers", help="indices; all but stride 2 by default")
    parser.add_argument("--teacher-arg", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--teacher-mean", help="R,G,B; .5,.5,.5 also sets the deviation")
    parser.add_argument("--px", type=int, default=96)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--max-steps", type=int, help="steps per epoch, for a trial")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seed", type=int, default=0)
    return parser


if __name__ == "__main__":
    main()
