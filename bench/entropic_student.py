"""Entropic Student against our shallow encoder: bytes, accuracy, and the device's time.

    python -m pip install --no-deps -r bench/entropic_student.txt
    python -m bench.entropic_student run lite0_200 --beta 0.1 0.3
    python -m bench.entropic_student time lite0_200 --every 5

Entropic Student is of Matsubara, Yang, Levorato, Mandt (WACV 2022, arXiv 2108.11898), and the split
computing benchmark sc2bench has it. Three convolutions with generalized divisive normalization make
24 channels at a quarter of the frame's size; a decoder of the same kind restores the features that
the network has there. The density of the codes is CompressAI's ``EntropyBottleneck`` (Balle et al.,
2018), and its coder makes the bytes. Training has two stages of ``--epochs`` each:

1. Encoder, density and decoder learn the features of the uncut network, here and at three later
   slicing points: the sum of their squared errors, plus beta times the estimated bits.
2. The encoder stays as it is. Decoder and the rest of the network learn labels and the uncut
   network's answers, half of the loss each.

Widths and stages are as published; the decoder's widths follow the channels of the target, as in
sc2bench's configurations. Photographs, epochs and scoring are those of `bench.encoders`. CompressAI
asks for NumPy below 2 but runs with 2, hence ``--no-deps``.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from bench.accuracy.records import append
from bench.encoders import Bench, Point, Timing, common_options
from scissionlite.graph.analysis import flat
from scissionlite.models import import_torchvision
from scissionlite.preprocessor.teacher import Teacher
from scissionlite.runtimes import load_slice, runtime_module

CHANNELS = 24  # of the bottleneck, as published
CUT = "blocks.1"  # where a quarter of the frame's size is left
LEARNING_RATE = 1e-3  # of both stages, as published
BATCH = 16


class Student(nn.Module):
    """The encoder, the density of its codes, and the decoder.

    Parameters
    ----------
    channels
        Of the features that the decoder restores.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        import_torchvision()  # CompressAI does so, too, and does not know a build for CUDA
        from compressai.entropy_models import EntropyBottleneck
        from compressai.layers import GDN1

        c, t = CHANNELS, channels
        self.encoder = nn.Sequential(
            nn.Conv2d(3, 4 * c, 5, stride=2, padding=2, bias=False),
            GDN1(4 * c),
            nn.Conv2d(4 * c, 2 * c, 5, stride=2, padding=2, bias=False),
            GDN1(2 * c),
            nn.Conv2d(2 * c, c, 2, bias=False),
        )
        self.density = EntropyBottleneck(c)
        self.decoder = nn.Sequential(
            nn.Conv2d(c, 2 * t, 2, padding=1, bias=False),
            GDN1(2 * t, inverse=True),
            nn.Conv2d(2 * t, t, 2, bias=False),
            GDN1(t, inverse=True),
            nn.Conv2d(t, t, 2, padding=1, bias=False),
        )

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return features, N x C x h x w, and the batch's estimated bits, for N x 3 x H x W."""
        codes, likelihoods = self.density(self.encoder(x))
        return self.decoder(codes), -likelihoods.log2().sum()


class PlainEncoder(nn.Module):
    """The encoder with its normalizations as plain operations, as a runtime exports them."""

    def __init__(self, encoder: nn.Sequential) -> None:
        super().__init__()
        layers: list[nn.Conv2d] = []
        for layer in encoder:
            if not isinstance(layer, nn.Conv2d):
                gdn: Any = layer
                gamma, beta = gdn.gamma_reparam(gdn.gamma), gdn.beta_reparam(gdn.beta)
                norm = nn.Conv2d(len(beta), len(beta), 1)
                norm.weight.data, norm.bias = gamma.detach()[:, :, None, None], nn.Parameter(beta)
                layer = norm
            layers.append(layer)
        self.layers = nn.ModuleList(layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return what the bottleneck quantizes."""
        for place, layer in enumerate(self.layers):
            x = x / layer(x.abs()) if place % 2 else layer(x)
        return x


class EntropicStudent:
    """The trained network: a student, and the rest of the uncut network."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.teacher = Teacher(bench.graph, CUT).eval()
        self.rest = copy.deepcopy(self.teacher.edge_slice)  # a cut shares the graph's weights
        self.teacher.requires_grad_(False)
        with torch.inference_mode():
            (features,) = self.teacher.features(bench.calibration[:1])
        self.student = Student(features.shape[1])

    def train(self, beta: float, epochs: int, seed: int) -> None:
        """Both stages."""
        torch.manual_seed(seed)
        order = torch.Generator().manual_seed(seed)
        batches = DataLoader(self.bench.train, BATCH, shuffle=True, drop_last=True, generator=order)
        self._distill(batches, beta, epochs)
        self.student.density.update(force=True)
        self._tune(batches, epochs)

    def _distill(self, batches: Any, beta: float, epochs: int) -> None:
        student = self.student.train()
        quantiles = [w for name, w in student.named_parameters() if name.endswith("quantiles")]
        others = [w for name, w in student.named_parameters() if not name.endswith("quantiles")]
        optimizer = torch.optim.Adam(others, LEARNING_RATE)
        tails = torch.optim.Adam(quantiles, LEARNING_RATE)
        for epoch in range(epochs):
            bits = 0.0
            for x, _ in batches:
                with torch.no_grad():
                    wanted = self.teacher.features(x)
                    wanted = [*wanted, *self.teacher.answer(wanted).hints]
                features, estimated = student(x)
                answer = self.teacher.answer([features]).hints
                errors = [
                    F.mse_loss(own, other, reduction="sum")
                    for own, other in zip([features, *answer], wanted, strict=True)
                ]
                loss = (torch.stack(errors).sum() + beta * estimated) / len(x)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                tails.zero_grad(set_to_none=True)
                student.density.loss().backward()
                tails.step()
                bits += float(estimated.detach()) / len(x) / len(batches)
            print(f"stage 1, epoch {epoch + 1}: {bits / 8:.0f} bytes", flush=True)

    def _tune(self, batches: Any, epochs: int) -> None:
        student = self.student.eval()
        weights = [*student.decoder.parameters(), *self.rest.parameters()]
        optimizer = torch.optim.SGD(weights, LEARNING_RATE, momentum=0.9)
        for epoch in range(epochs):
            total = 0.0
            for x, labels in batches:
                with torch.no_grad():
                    expected = self.teacher.answer(self.teacher.features(x)).outputs[0]
                    codes, _ = student.density(student.encoder(x))
                answer = flat(self.rest(student.decoder(codes)))[0]
                soft = F.kl_div(
                    answer.log_softmax(1),
                    expected.log_softmax(1),
                    log_target=True,
                    reduction="batchmean",
                )
                loss = (F.cross_entropy(answer, labels) + soft) / 2
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                total += float(loss.detach()) / len(batches)
            print(f"stage 2, epoch {epoch + 1}: loss {total:.4f}", flush=True)

    def score(self) -> tuple[float, float]:
        """Accuracy on the test photographs, and mean bytes."""
        right, nbytes = 0, 0
        density = self.student.density
        with torch.inference_mode():
            for x, label in zip(self.bench.x, self.bench.labels, strict=True):
                codes = self.student.encoder(x[None])
                payloads = density.compress(codes)
                nbytes += len(payloads[0])
                features = self.student.decoder(density.decompress(payloads, codes.shape[2:]))
                right += int(flat(self.rest(features))[0].argmax()) == int(label)
        return right / len(self.bench.x), nbytes / len(self.bench.x)


def run(bench: Bench, beta: float, epochs: int, seed: int) -> Point:
    """Train and score."""
    started = time.perf_counter()
    network = EntropicStudent(bench)
    network.train(beta, epochs, seed)
    accuracy, nbytes = network.score()
    return Point(
        network=bench.name,
        coder=f"Entropic Student, beta {beta:g}",
        epochs=2 * epochs,
        photographs=len(bench.train),
        seed=seed,
        edge_trained=True,
        samples=len(bench.x),
        uncut=bench.uncut,
        accuracy=accuracy,
        sent_bytes=round(nbytes, 1),
        seconds=round(time.perf_counter() - started, 1),
    )


def time_encoder(bench: Bench, runtime: str) -> Timing:
    """From frames to payloads, beside Pillow's JPEG of quality 75, on one thread.

    The weights are random: only the number of bytes, and so a part of the coder's time, depends on
    them. They are scaled to codes of about one.
    """
    torch.manual_seed(0)
    student = Student(CHANNELS).eval()
    encoder, density = PlainEncoder(student.encoder).eval(), student.density
    with torch.no_grad():
        expected = student.encoder(bench.x[:1])
        torch.testing.assert_close(encoder(bench.x[:1]), expected)
        scale = 1 / expected.std()
        encoder.layers[-1].weight *= scale
    density.update(force=True)
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / f"device{runtime_module(runtime).SUFFIX}"
        runtime_module(runtime).export(encoder, bench.graph.example, path)

        def pack(codes: npt.NDArray[np.float32]) -> None:
            with torch.inference_mode():
                density.compress(torch.from_numpy(codes))

        return bench.timed(
            load_slice(path, runtime, threads=1),
            pack,
            Timing(network=bench.name, coder="Entropic Student", levels=None, runtime=runtime),
            frames=200,
        )


def parser() -> argparse.ArgumentParser:
    """Build the parser of the command line."""
    options = argparse.ArgumentParser(
        prog="python -m bench.entropic_student", parents=[common_options()]
    )
    options.add_argument("what", choices=["run", "time"])
    options.add_argument("name", choices=["lite0_200"])
    options.add_argument("--beta", type=float, nargs="*", default=[0.1])
    options.add_argument("--epochs", type=int, default=3, help="of each stage")
    return options


def main() -> None:
    given = parser().parse_args()
    torch.set_num_threads(1)
    bench = Bench(given)
    if given.what == "time":
        timing = time_encoder(bench, given.runtime)
        append(given.out, timing)
        print(timing, flush=True)
        return
    for seed in given.seeds:
        for beta in given.beta:
            point = run(bench, beta, given.epochs, seed)
            append(given.out, point)
            print(point, flush=True)


if __name__ == "__main__":
    main()
