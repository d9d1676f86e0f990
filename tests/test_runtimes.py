"""The runtimes: exporting, loading and running slices."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import scissionlite as sl
from scissionlite.errors import PrepareError, RuntimeUnavailableError
from scissionlite.runtimes import RUNTIMES, load_slice, runtime_module, torchscript
from scissionlite.runtimes.export import export_slices, load_exported

INPUT = (1, 3, 64, 64)
EVERY_RUNTIME = [
    pytest.param(name, marks=pytest.mark.long if name == "aotinductor" else ())  # it compiles
    for name in RUNTIMES
]


def network() -> nn.Module:
    """Convolutions, each followed by a batch norm, and other layers."""
    torch.manual_seed(0)
    layers = [
        *(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.ConvTranspose2d(8, 4, 2, stride=2), nn.BatchNorm2d(4), nn.Softplus()),
    ]
    for layer in layers:
        if isinstance(layer, nn.BatchNorm2d):  # as training leaves them
            layer.running_mean = torch.randn(layer.num_features)
            layer.running_var = 0.5 + torch.rand(layer.num_features)
    return nn.Sequential(*layers).eval()


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The network's file for a runtime, exported once because AOTInductor's compiler is slow."""
    folder = tmp_path_factory.mktemp("slices")

    def export(runtime: str) -> Path:
        exporter = runtime_module(runtime)
        path = folder / f"slice{exporter.SUFFIX}"
        if not path.exists():
            exporter.export(network(), (torch.zeros(INPUT),), path)
        return path

    return export


@pytest.mark.parametrize("runtime", EVERY_RUNTIME)
def test_an_exported_slice_answers_as_its_module(
    runtime: str, exported: Callable[[str], Path]
) -> None:
    x = np.random.default_rng(0).normal(size=INPUT).astype(np.float32)
    kept = x.copy()
    (y,) = load_slice(exported(runtime), runtime, threads=1)(x)
    with torch.inference_mode():
        expected = network()(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)
    assert y.dtype == np.float32
    assert y.flags.c_contiguous
    np.testing.assert_array_equal(x, kept)


def test_suffixes_differ() -> None:
    # A bundle's slices are named after role and suffix.
    assert len({runtime_module(runtime).SUFFIX for runtime in RUNTIMES}) == len(RUNTIMES)


@pytest.mark.long
def test_no_batch_norm_is_left_behind_a_convolution(exported: Callable[[str], Path]) -> None:
    frozen = runtime_module("torchscript").compile_module(network(), (torch.zeros(INPUT),))
    kinds = [node.kind() for node in frozen.graph.nodes()]
    assert kinds.count("aten::_convolution") == 2
    assert not [kind for kind in kinds if "batch_norm" in kind]

    nodes = [node.op_type for node in onnx.load(exported("onnx")).graph.node]
    assert nodes.count("Conv") + nodes.count("ConvTranspose") == 2
    assert "BatchNormalization" not in nodes

    # Inductor has no batch norm, but kernels that divide by the root of a variance.
    with zipfile.ZipFile(exported("aotinductor")) as package:
        sources = [name for name in package.namelist() if name.endswith(".kernel.cpp")]
        kernels = b"".join(package.read(name) for name in sources)
    assert b"exp" in kernels  # softplus is there
    assert b"sqrt" not in kernels


class _UsedTwice(nn.Module):
    """A batch norm after a convolution whose own output is used too."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.norm = nn.ConvTranspose2d(4, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        convolved = self.convolution(x)
        answer: torch.Tensor = self.norm(convolved) + convolved
        return answer


@pytest.mark.parametrize(
    "module",
    [
        _UsedTwice(),
        nn.Sequential(nn.ConvTranspose2d(4, 4, 3, groups=2), nn.BatchNorm2d(4)),
        pytest.param(
            nn.Sequential(
                nn.ConvTranspose2d(4, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)
            ),
            marks=pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
        ),
        nn.Sequential(nn.Flatten(), nn.BatchNorm1d(100)),
    ],
    ids=["used twice", "grouped", "of this batch", "no convolution"],
)
def test_a_batch_norm_that_cannot_be_folded_stays(module: nn.Module, tmp_path: Path) -> None:
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d | nn.BatchNorm1d) and norm.track_running_stats:
            norm.running_mean = torch.linspace(-1, 1, norm.num_features)
    x = torch.randn(2, 4, 5, 5)
    runtime_module("torchscript").export(module.eval(), (x,), tmp_path / "slice.pt")
    (y,) = load_slice(tmp_path / "slice.pt", "torchscript")(x.numpy())
    with torch.inference_mode():
        np.testing.assert_allclose(y, module(x).numpy(), rtol=1e-4, atol=1e-5)


class _Skip(nn.Module):
    """Two tensors in, three out: one is passed through, and one input is not used."""

    def forward(
        self, x: torch.Tensor, y: torch.Tensor, unused: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        pooled = nn.functional.max_pool2d(x, 2)
        return pooled + y, y, pooled.flatten(1).sum(1, keepdim=True)


@pytest.mark.parametrize("runtime", EVERY_RUNTIME)
def test_a_slice_of_several_tensors_and_any_batch_answers_as_its_module(
    runtime: str, tmp_path: Path
) -> None:
    exporter = runtime_module(runtime)
    path = tmp_path / f"slice{exporter.SUFFIX}"
    shapes = [(2, 8, 8), (2, 4, 4), (5,)]
    example = tuple(torch.zeros(1, *shape) for shape in shapes)
    exporter.export(_Skip().eval(), example, path, dynamic_batch=True)
    loaded = load_slice(path, runtime, threads=1)
    rng = np.random.default_rng(0)
    for batch in (1, 3):
        inputs = [rng.normal(size=(batch, *shape)).astype(np.float32) for shape in shapes]
        answers = loaded(*inputs)
        with torch.inference_mode():
            expected = _Skip()(*map(torch.from_numpy, inputs))
        assert len(answers) == len(expected)
        for answer, wanted in zip(answers, expected, strict=True):
            np.testing.assert_allclose(answer, wanted.numpy(), rtol=1e-4, atol=1e-5)


class _AnswersWhatItHolds(nn.Module):
    """Writes to its input, and answers it, a view of it, another view, a constant and a weight."""

    anchors: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((1, 6), 0.25))
        self.register_buffer("anchors", torch.arange(6.0)[None])

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x = x.clamp_(0, 1)
        return (
            x + y,
            y,
            y.view(1, 3, 2),
            y.flatten(1),
            self.anchors + 1.0,
            self.anchors,
            self.weight,
        )


@pytest.mark.parametrize("runtime", EVERY_RUNTIME)
def test_a_slice_shares_no_memory_with_its_caller(runtime: str, tmp_path: Path) -> None:
    example = (torch.randn(1, 6), torch.randn(1, 6))
    module = sl.capture(_AnswersWhatItHolds(), example).module
    slices = export_slices({"network": (module, example)}, (runtime,), tmp_path)
    loaded = load_exported(slices, "network", runtime, tmp_path)
    source = np.random.default_rng(0).normal(size=(2, 12)).astype(np.float32)
    frozen = source[:1, :6].copy()
    frozen.flags.writeable = False
    for inputs in (
        (source[:1, :6], source[1:, :6]),
        (source[:1, ::-2], source[1:, ::2]),
        (frozen, frozen),
    ):
        kept = [x.copy() for x in inputs]
        with torch.no_grad():
            expected = [
                t.numpy().copy()
                for t in _AnswersWhatItHolds()(*map(torch.from_numpy, [x.copy() for x in kept]))
            ]
        for _ in range(2):  # the second time after the caller has written to what it was given
            answers = loaded(*inputs)
            for x, before in zip(inputs, kept, strict=True):
                np.testing.assert_array_equal(x, before)
            for i, (answer, correct) in enumerate(zip(answers, expected, strict=True)):
                np.testing.assert_allclose(answer, correct, rtol=1e-6)
                assert answer.flags.c_contiguous
                assert answer.flags.writeable
                assert not any(np.may_share_memory(answer, x) for x in inputs)
                assert not any(np.may_share_memory(answer, other) for other in answers[:i])
            for answer in answers:
                answer[...] = 7


class _BatchSize(nn.Module):
    """Reads the batch size in a branch on shapes, so that only torch.export captures it."""

    def __init__(self, use: Callable[[int, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.convolution, self.head, self.use = nn.Conv2d(3, 8, 3), nn.Linear(8, 8), use

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.convolution(x)
        if y.shape[2] < 2:
            raise ValueError("too small")
        answer: torch.Tensor = self.head(self.use(x.shape[0], y.mean((2, 3))))
        return answer


@pytest.mark.parametrize(
    "use",
    [
        lambda n, y: torch.cat([torch.ones(1, 8).expand(n, 8), y]).view(2, n, 8)[1],
        lambda n, y: torch.cat([torch.full((n, 1, 8), 2.0), y[:, None]], 1).softmax(1),
        lambda n, y: y * torch.arange(n)[:, None],
        lambda n, y: y + torch.arange(64.0).view(8, 8)[:n],
        lambda n, y: y.view(n * 2, 4).softmax(1).reshape(n, 8),
        lambda n, y: y.clone().mul_(2).view(n, 4, 2).transpose(1, 2).reshape(n, 8),
    ],
    ids=["expand", "full", "arange", "slice", "product", "functionalized"],
)
def test_a_batch_size_that_is_read_is_no_constant_of_the_example(
    use: Callable[[int, torch.Tensor], torch.Tensor], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = _BatchSize(use).eval()
    graph = sl.capture(model, torch.randn(1, 3, 6, 6))
    plan = sl.Plan(
        kind="split",
        slicing_point="convolution",
        spec=sl.TransferSpec(pool=1, dtype="float32"),
    )
    bundle = sl.prepare(graph, plan, out=tmp_path / "bundle", max_batch=4)
    device, edge, network = (
        load_slice(bundle.slice_path(role), "torchscript") for role in ("device", "edge", "network")
    )
    for batch in (1, 3, 4):
        x = torch.randn(batch, 3, 6, 6)
        expected = model(x).detach().numpy()
        for answers in (edge(*device(x.numpy())), network(x.numpy())):
            np.testing.assert_allclose(answers[0], expected, atol=1e-5)


def test_unknown_runtimes_are_told_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(
        RuntimeUnavailableError, match="unknown runtime 'tvm': this build knows aotinductor, onnx"
    ):
        load_slice(tmp_path, "tvm")


def test_compiled_code_is_given_only_what_it_was_compiled_for(
    exported: Callable[[str], Path],
) -> None:
    loaded = load_slice(exported("aotinductor"), "aotinductor", threads=1)
    shape = (1, 3, 32, 32)
    for wrong in (
        [np.zeros(shape, np.float32)],
        [np.zeros(INPUT)],
        [np.zeros(INPUT, "f4")] * 2,
        [],
    ):
        with pytest.raises(ValueError, match="was compiled for"):
            loaded(*wrong)
    x = np.random.default_rng(0).normal(size=INPUT).astype(np.float32)
    turned = np.ascontiguousarray(x.swapaxes(2, 3)).swapaxes(2, 3)  # the same, in another order
    np.testing.assert_array_equal(loaded(turned)[0], loaded(x)[0])


def _altered(package: Path, to: Path, suffix: str, change: Callable[[bytes], bytes]) -> Path:
    """Copy a package, with other content in its files of a suffix."""
    with zipfile.ZipFile(package) as source, zipfile.ZipFile(to, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            target.writestr(name, change(content) if name.endswith(suffix) else content)
    return to


@pytest.mark.parametrize(
    ("suffix", "change", "said"),
    [
        (
            "metadata.json",
            lambda told: told.replace(b"architecture", b"avx4096 of"),
            "was compiled for a processor with avx4096 of .*, which this one lacks: prepare",
        ),
        ("metadata.json", lambda _: b"{}", "was not written by this project"),
        (
            ".so",
            lambda library: library.replace(b"aoti_torch_get_data_ptr", b"aoti_torch_no_such_name"),
            r"was compiled with torch 2\..* and cannot be loaded by torch 2\..*undefined symbol",
        ),
    ],
    ids=["another processor", "foreign", "another torch"],
)
def test_packages_made_for_something_else_are_refused(
    suffix: str,
    change: Callable[[bytes], bytes],
    said: str,
    exported: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    other = _altered(exported("aotinductor"), tmp_path / "other.pt2", suffix, change)
    with pytest.raises(RuntimeUnavailableError, match=said):
        load_slice(other, "aotinductor")


def test_compiling_needs_a_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(RuntimeUnavailableError, match=r"no no-such-compiler: apt install g\+\+"):
        runtime_module("aotinductor").export(nn.ReLU(), (torch.zeros(1),), tmp_path / "slice.pt2")


def test_what_cannot_be_compiled_is_told(tmp_path: Path) -> None:
    class Undecided(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(PrepareError, match="AOTInductor cannot compile this network: "):
        runtime_module("aotinductor").export(
            Undecided(), (torch.zeros(1, 3),), tmp_path / "slice.pt2"
        )


_RUN_ELSEWHERE = """
import os, sys, tempfile, threading
import numpy as np
from pathlib import Path
from scissionlite.runtimes import load_slice

loaded = load_slice(Path(sys.argv[1]), "aotinductor", threads=1)
x = np.ones((1, 3, 64, 64), np.float32)
before = len(os.listdir("/proc/self/task"))
after = []
def run():
    loaded(x)
    after.append(len(os.listdir("/proc/self/task")))
thread = threading.Thread(target=run)
thread.start()
thread.join()
print(float(loaded(x)[0].sum()), after[0] - before, os.listdir(tempfile.gettempdir()))
"""


def test_a_compiled_slice_runs_elsewhere(exported: Callable[[str], Path], tmp_path: Path) -> None:
    package = exported("aotinductor")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", _RUN_ELSEWHERE, str(package)],
        # Without a compiler, and with a folder for what is temporary.
        env={"PATH": "", "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    total, threads, left = done.stdout.split(maxsplit=2)
    (expected,) = load_slice(package, "aotinductor")(np.ones(INPUT, np.float32))
    assert float(total) == pytest.approx(float(expected.sum()), rel=1e-4)
    assert int(threads) == 1  # the one that was started: threads=1 holds for every thread
    assert left.strip() == "[]"  # nothing that a killed daemon could leave


_RUN_IN_A_THREAD = """
import os, sys, threading
import numpy as np
from pathlib import Path
from scissionlite.runtimes import load_slice

loaded = load_slice(Path(sys.argv[1]), sys.argv[2], threads=1)
before = len(os.listdir("/proc/self/task"))
after = []
def run():
    loaded(np.ones((1, 3, 64, 64), np.float32))
    after.append(len(os.listdir("/proc/self/task")))
thread = threading.Thread(target=run)
thread.start()
thread.join()
print(after[0] - before)
"""


@pytest.mark.parametrize("runtime", ["torchscript", "onnx"])  # AOTInductor: the test above
def test_one_thread_is_one_in_every_thread(runtime: str, tmp_path: Path) -> None:
    module = nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3))
    path = tmp_path / "slice"
    runtime_module(runtime).export(module, (torch.zeros(1, 3, 64, 64),), path)
    done = subprocess.run(
        [sys.executable, "-c", _RUN_IN_A_THREAD, str(path), runtime],
        env={name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout) == 1  # the one that was started


_ANSWER_WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None  # as where it is not installed

import numpy as np
import scissionlite as sl
from scissionlite.errors import RuntimeUnavailableError
from scissionlite.offloader import Device

x = np.ones((1, 3, 8, 8), np.float32)
with Device(sys.argv[1]) as device:
    print(float(device.infer(x).sum()))
for bundle, runtime in ((sys.argv[1], "torchscript"), (sys.argv[2], None)):
    try:
        Device(bundle, runtime=runtime)
    except RuntimeUnavailableError as error:
        print(error)
"""


def test_a_device_without_torch_takes_the_slices_that_it_can_run(tmp_path: Path) -> None:
    model = torch.nn.Conv2d(3, 2, 3).eval()
    graph = sl.capture(model, torch.zeros(1, 3, 8, 8))
    for runtimes in (("torchscript", "onnx"), ("torchscript",)):
        sl.prepare(
            graph, sl.Plan(kind="local"), out=tmp_path / str(len(runtimes)), runtimes=runtimes
        )
    done = subprocess.run(
        [sys.executable, "-c", _ANSWER_WITHOUT_TORCH, str(tmp_path / "2"), str(tmp_path / "1")],
        capture_output=True,
        text=True,
        check=True,
    )
    answer, asked, only = done.stdout.splitlines()
    with torch.inference_mode():
        assert float(answer) == pytest.approx(float(model(torch.ones(1, 3, 8, 8)).sum()), rel=1e-4)
    for said in (asked, only):
        assert said == (
            "the network slice cannot run here: the torchscript runtime needs torch, which is not "
            "installed: pip install 'scissionlite[torch]'"
        )


_COUNT_FAULTS = """
import resource, sys, threading
import numpy as np
from pathlib import Path
from scissionlite.runtimes import load_slice, warm_up

path, size, where = sys.argv[1:]
shape = (1, 3, int(size), int(size))
loaded = load_slice(Path(path), "torchscript", threads=1)

def work():
    warm_up(loaded, [(shape, "float32")], runs=5)
    x = np.zeros(shape, np.float32)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        loaded(x)
    print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 20)

if where == "main":
    work()
else:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
"""


@pytest.mark.parametrize("where", ["main", "worker"])
@pytest.mark.parametrize("size", [128, 640])  # the largest maps have 2.6 and 66 MB
def test_an_inference_does_not_map_its_memory_again(size: int, where: str, tmp_path: Path) -> None:
    # Small maps, then large ones, then small ones again, as in an inverted residual.
    module = nn.Sequential(
        *(nn.Conv2d(3, 32, 3, 2, 1), nn.ReLU6(), nn.Conv2d(32, 160, 1), nn.ReLU6()),
        nn.Conv2d(160, 24, 1, 2),
    )
    path = tmp_path / "slice.pt"
    runtime_module("torchscript").export(module, (torch.zeros(1, 3, size, size),), path)
    done = subprocess.run(
        [sys.executable, "-c", _COUNT_FAULTS, str(path), str(size), where],
        env={name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")},
        capture_output=True,
        text=True,
        check=True,
    )
    # Without keep_memory() it is more than 1,000 pages an inference.
    assert float(done.stdout) < 100


def test_onnx_runtime_tells_nobody_what_it_runs(tmp_path: Path) -> None:
    """Its wheels have telemetry, which leaves an identifier of the machine in the user's cache."""
    program = "import scissionlite.runtimes.onnx, time; time.sleep(0.2)"
    environment = {name: value for name, value in os.environ.items() if name[:4] != "ORT_"}
    subprocess.run(
        [sys.executable, "-c", program],
        env={**environment, "HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)},
        check=True,
    )
    assert list(tmp_path.iterdir()) == []


class _Activated(torch.nn.Module):
    """A convolution, and something behind it."""

    def __init__(self, after: torch.nn.Module) -> None:
        super().__init__()
        self.first, self.after = torch.nn.Conv2d(3, 8, 3, padding=1), after

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        answer: torch.Tensor = self.after(self.first(x))
        return answer


@pytest.mark.parametrize(
    ("after", "optimized"),
    [
        (torch.nn.ReLU6(), platform.machine() == "x86_64"),
        (torch.nn.Hardswish(), False),
        (torch.nn.AdaptiveAvgPool2d(5), False),  # oneDNN's fails for 16 by 5
    ],
)
def test_a_slice_is_loaded_in_onednns_layout_only_where_it_stays_there(
    after: torch.nn.Module, optimized: bool, tmp_path: Path
) -> None:
    module = _Activated(after).eval()
    torchscript.export(module, (torch.zeros(1, 3, 16, 16),), tmp_path / "slice.pt")
    loaded = torchscript.load(tmp_path / "slice.pt")
    kinds = {node.kind() for node in loaded._module.graph.nodes()}
    assert ("aten::to_mkldnn" in kinds) == optimized
    for batch in (1, 3):
        x = torch.randn(batch, 3, 16, 16)
        with torch.inference_mode():
            expected = module(x).numpy()
        for given in (x.numpy(), x.numpy()[:, ::-1, ::-1][:, ::-1, ::-1]):
            np.testing.assert_allclose(loaded(given)[0], expected, rtol=1e-5, atol=1e-6)
