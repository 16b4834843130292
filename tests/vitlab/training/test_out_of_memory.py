"""Where memory is not enough, the message names what fits."""

import gc
import re
import resource
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer

from conftest import SRC, Configure
from vitlab.data.decode import is_out_of_memory
from vitlab.training import build, out_of_memory
from vitlab.training.classifier import Classifier

Parts = tuple[Trainer, Classifier, Any]
QUIET = ["trainer.accelerator=cpu", "trainer.enable_progress_bar=false", "logger=csv", "schedule.warmup_steps=0"]
LARGE = ["data=fake", "data.source.size=64", "image_size=64", "model.patch_size=4", "data.source.samples=600"]
LARGE += ["model.dim=32", "model.depth=2", "model.heads=4", "batch_size=512", "trainer.max_steps=1"]
LARGE += ["model.fused_attention=false", "data.source.test_samples=20", "data.eval_batch_size=16"]
LIMIT = (
    4_400_000 * 1024
)  # bytes of address space; imports alone take about 3.9 GB of it where transformers is installed
CUDA = "CUDA out of memory. Tried to allocate 2.00 GiB"
CPU = "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate"


# ------------------------------------------------------------------------------------------------- what is recognised


@pytest.mark.parametrize(
    ("error", "of_device"),
    [
        (torch.OutOfMemoryError(CUDA), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError(CPU), False),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."), False),
        (RuntimeError("std::bad_alloc"), False),
        (RuntimeError("could not create a primitive"), False),
        (MemoryError(), False),
    ],
)
def test_an_allocator_s_refusal_is_recognised(error: BaseException, of_device: bool) -> None:
    assert is_out_of_memory(error)
    assert out_of_memory.is_device_memory(error) == of_device


@pytest.mark.parametrize(
    "error",
    [RuntimeError("CUDA error: device-side assert triggered"), ValueError(CPU), KeyboardInterrupt(), OSError(CUDA)],
)
def test_another_error_is_not(error: BaseException) -> None:
    assert not is_out_of_memory(error)


@pytest.mark.parametrize(
    ("batch_size", "world_size", "accumulate", "expected"),
    [
        (64, 1, 1, [2, 4, 8, 16, 32, 64]),
        (64, 4, 2, [4, 8, 16]),
        (10, 1, 1, [2, 4, 8, 10]),
        (10, 3, 1, [2, 3]),
        (1, 1, 1, []),
        (64, 1, 64, []),
        (64, 1, 48, [64]),
    ],
)
def test_parts_are_halved_until_they_are_single_images(
    batch_size: int, world_size: int, accumulate: int, expected: list[int]
) -> None:
    assert out_of_memory.accumulation_candidates(batch_size, world_size, accumulate) == expected


# -------------------------------------------------------------------------------------------------- what fits is tried


@pytest.fixture
def failing(configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Parts]:
    """Parts of a training in which more than `most` images at once raise what an allocator raises."""

    def make(most: int, *overrides: str, error: BaseException | None = None, evaluating: bool = False) -> Parts:
        config = configure("model.dim=16", "model.depth=1", "trainer.max_epochs=1", *QUIET, *overrides)
        data = build.build_data(config["data"])
        module = build.build_classifier(
            config["model"], data, config["classifier"], optimizer=config["optimizer"], schedule=config["schedule"]
        )
        run = build.build_trainer(config["trainer"], run_dir=tmp_path, callbacks=config["callbacks"])
        forward = module.network.forward

        def limited(images: torch.Tensor) -> torch.Tensor:
            if len(images) > most and module.network.training != evaluating:
                raise error or RuntimeError(CPU)
            output: torch.Tensor = forward(images)
            return output

        monkeypatch.setattr(module.network, "forward", limited)
        return run, module, data

    return make


def fitted(parts: Parts, batch_size: int = 64) -> None:
    run, module, data = parts
    with out_of_memory.explain_out_of_memory(run, module, data, batch_size=batch_size):
        run.fit(module, data)


@pytest.mark.parametrize(
    ("most", "overrides", "words"),
    [
        (
            16,
            [],
            "out of memory: 64 images on each device at once are too many; 16 fit: add "
            "trainer.accumulate_grad_batches=4 (same batch_size=64, same training), or lower batch_size to 16",
        ),
        (
            9,
            ["trainer.accumulate_grad_batches=2"],
            "out of memory: 32 images on each device at once are too many; 8 fit: add "
            "trainer.accumulate_grad_batches=8 (same batch_size=64, same training), or lower batch_size to 16",
        ),
        *(
            pytest.param(1, overrides, "1 fit: add trainer.accumulate_grad_batches=64", marks=pytest.mark.long)
            for overrides in (["optimizer=muon"], ["optimizer=sgd", "callbacks=ema"])
        ),
        (0, [], "out of memory: not even one image on cpu at once fits; take a smaller model or image_size"),
    ],
)
def test_the_message_names_the_largest_part_that_fits(
    failing: Callable[..., Parts], most: int, overrides: list[str], words: str
) -> None:
    with pytest.raises(out_of_memory.OutOfMemory) as found:
        fitted(failing(most, *overrides))
    assert str(found.value).startswith(words) or words in str(found.value)


def test_images_that_are_evaluated_have_a_knob_of_their_own(failing: Callable[..., Parts]) -> None:
    parts = failing(16, "data.eval_batch_size=100", evaluating=True)
    with pytest.raises(
        out_of_memory.OutOfMemory, match=r"100 images .* to evaluate; set data.eval_batch_size=50, or less"
    ):
        fitted(parts)


def test_another_error_is_left_as_it_is(failing: Callable[..., Parts]) -> None:
    with pytest.raises(RuntimeError, match=r"^something else$"):
        fitted(failing(16, error=RuntimeError("something else")))


def test_what_fails_for_another_reason_when_tried_out_leaves_the_rest_of_the_message(
    failing: Callable[..., Parts], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(out_of_memory, "dry_run", broken)
    with pytest.raises(out_of_memory.OutOfMemory, match=r"64 images .* raise trainer.accumulate_grad_batches above 1"):
        fitted(failing(16))


def test_what_is_tried_out_are_two_parts_beside_the_state_of_the_optimizer(
    failing: Callable[..., Parts], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, module, data = failing(100)
    run.fit(module, data)
    seen: list[tuple[int, int, bool]] = []
    forward, states = module.network.forward, 3 * len(list(module.parameters()))
    made: list[Any] = []
    maker = module.make_optimizer
    assert maker is not None
    module.make_optimizer = lambda groups: made.append(maker(groups)) or made[-1]  # type: ignore[func-returns-value]

    def watched(images: torch.Tensor) -> torch.Tensor:
        gradients = any(p.grad is not None for p in module.parameters())
        seen.append((len(images), sum(len(s) for s in made[-1].state.values()), gradients))
        return forward(images)  # type: ignore[no-any-return]

    monkeypatch.setattr(module.network, "forward", watched)
    out_of_memory.dry_run(run, module, data, 7)
    assert seen == [(1, 0, False), (7, states, False), (7, states, True)]


def test_the_hooks_of_another_framework_stay_with_the_old_parameters() -> None:
    network = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    first, second = network[0], network[1]
    assert isinstance(first, torch.nn.Linear)
    assert isinstance(second, torch.nn.Linear)
    second.weight = first.weight
    called: list[int] = []
    first.weight.register_hook(lambda gradient: called.append(1))  # type: ignore[no-untyped-call]
    before = first.weight.data_ptr()
    out_of_memory.detach_hooks(network)
    network(torch.ones(1, 2)).sum().backward()
    assert called == []
    assert first.weight is second.weight
    assert first.weight.data_ptr() == before
    assert first.weight.grad is not None


@pytest.mark.parametrize("cause", ["none", "explicit", "implicit"])
def test_nothing_of_the_failed_step_is_held_while_parts_are_tried(cause: str) -> None:
    alive: list[Any] = []

    class Held:
        def __init__(self) -> None:
            self.own = self  # lives until the next collection of cycles

    def fail() -> None:
        held = Held()
        alive.append(weakref.ref(held))
        raise RuntimeError(CPU)

    def explain() -> None:
        try:
            fail()
        except RuntimeError as error:
            if cause == "explicit":
                raise RuntimeError("of a framework") from error
            if cause == "implicit":
                raise RuntimeError("while it is handled")  # noqa: B904
            raise

    gc.disable()
    try:
        explain()
    except RuntimeError as error:
        assert alive[0]() is not None
        out_of_memory.release_memory(error)
        assert alive[0]() is None
    finally:
        gc.enable()


@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory are Linux's")
@pytest.mark.long
def test_what_a_run_with_too_little_memory_says_fits_fits(tmp_path: Path) -> None:
    """A real allocator, a real limit: the address space of the process."""

    def run(*overrides: str) -> "subprocess.CompletedProcess[str]":
        line = [sys.executable, str(SRC / "train.py"), *LARGE, *QUIET, *overrides]
        limit = partial(resource.setrlimit, resource.RLIMIT_AS, (LIMIT, LIMIT))
        return subprocess.run(line, cwd=tmp_path, preexec_fn=limit, capture_output=True, text=True, timeout=400)

    failed = run("hydra.run.dir=one")
    assert failed.returncode == 1
    (knob,) = re.findall(r"512 images on each device at once are too many; \d+ fit: add (\S+=\d+) ", failed.stderr)
    done = run("hydra.run.dir=two", knob)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("batch", "ranks", "each", "half"), [(100, 3, 34, 51), (7, 2, 4, 4), (1, 1, 1, 1)])
def test_the_images_to_evaluate_are_halved_on_each_device(
    failing: Callable[..., Parts], monkeypatch: pytest.MonkeyPatch, batch: int, ranks: int, each: int, half: int
) -> None:
    run, module, data = failing(0, f"data.eval_batch_size={batch}", evaluating=True)

    @contextmanager
    def on_several_devices() -> Iterator[None]:
        try:
            yield
        finally:
            monkeypatch.setattr(Trainer, "world_size", ranks)

    explained = out_of_memory.explain_out_of_memory(run, module, data, batch_size=64)
    with pytest.raises(out_of_memory.OutOfMemory) as found, explained, on_several_devices():
        run.validate(module, data)
    words = f"{each} images on each device at once are too many to evaluate; set data.eval_batch_size={half}, or less"
    assert str(found.value) == f"out of memory: {words}"


def test_several_devices_share_the_images_of_a_step(
    failing: Callable[..., Parts], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, module, data = failing(9)
    run.datamodule, module.trainer, data.trainer, module.monitored = data, run, run, True  # type: ignore[attr-defined]
    monkeypatch.setattr(Trainer, "world_size", 2)
    expected = "32 images on each device at once are too many; 8 fit: add trainer.accumulate_grad_batches=4 "
    expected += "(same batch_size=64, same training), or lower batch_size to 16"
    assert out_of_memory.explain_training(run, module, data, batch_size=64) == expected
    module.make_optimizer = None  # nothing is trained: there is no step to try
    reason = out_of_memory.explain_training(run, module, data, batch_size=64)
    assert reason.endswith("too many; raise trainer.accumulate_grad_batches above 1, or lower batch_size")


@pytest.mark.parametrize(("error", "host"), [(MemoryError(), True), (torch.OutOfMemoryError(CUDA), False)])
def test_the_memory_of_the_host_is_told_from_the_device_s(
    failing: Callable[..., Parts], monkeypatch: pytest.MonkeyPatch, error: BaseException, host: bool
) -> None:
    run, module, data = failing(64)
    module.make_optimizer = None
    monkeypatch.setattr(type(run.strategy), "root_device", torch.device("cuda"))
    with (
        pytest.raises(out_of_memory.OutOfMemory) as found,
        out_of_memory.explain_out_of_memory(run, module, data, batch_size=64),
    ):
        raise error
    assert ("the host's memory, not the device's, is used up; lower data.num_workers" in str(found.value)) == host
    assert ("64 images on each device at once are too many" in str(found.value)) != host


def test_what_failed_has_released_its_memory_before_less_is_tried(
    failing: Callable[..., Parts], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, module, data = failing(64)
    run.datamodule, module.trainer, data.trainer, module.monitored = data, run, run, True  # type: ignore[attr-defined]
    alive: list[weakref.ref[torch.Tensor]] = []
    held: list[bool] = []
    maker: Any = module.make_optimizer
    forward, hooked = module.network.forward, list[int]()
    next(module.parameters()).register_hook(lambda gradient: hooked.append(1))  # type: ignore[no-untyped-call]

    def fail() -> None:
        activations, error = torch.zeros(3), RuntimeError(CPU)  # whose frame refers to it, and it to the frame
        alive.append(weakref.ref(activations))
        raise error

    def make(groups: Any) -> Any:
        held.extend([alive[-1]() is not None, any(p.grad is not None for p in module.parameters())])
        return maker(groups)

    def limited(images: torch.Tensor) -> Any:
        if len(images) > 9 and any(p.grad is not None for p in module.parameters()):
            fail()
        return forward(images)

    module.make_optimizer = make
    monkeypatch.setattr(module.network, "forward", limited)
    explained = out_of_memory.explain_out_of_memory(run, module, data, batch_size=64)
    gc.disable()
    try:
        with pytest.raises(out_of_memory.OutOfMemory, match="8 fit"), explained:
            fail()
    finally:
        gc.enable()
    assert held == [False] * 6, "as 32, 16 and 8 images are tried"
    assert len(alive) == 3
    assert hooked == [], "DDP's wait for other ranks"


def test_a_compiled_network_is_tried_without_the_compiler() -> None:
    compiled: list[int] = []
    network = torch.nn.Sequential(torch.nn.Linear(2, 2))
    network.compile(backend=lambda graph, inputs: compiled.append(1) or graph.forward)  # type: ignore[func-returns-value]
    out_of_memory.detach_hooks(network)
    assert network(torch.ones(1, 2)).shape == (1, 2)
    assert compiled == []
