"""Attention in bfloat16 on a CPU: it is the formula, forwards and backwards, and keeps little."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from vitlab.models import attention
from vitlab.models.vit import VisionTransformer


def tokens(images: int, queries: int = 17, dtype: torch.dtype = torch.bfloat16) -> tuple[Tensor, Tensor, Tensor]:
    """Views as the network makes them: B h M d, B h N d twice."""
    chance = torch.Generator().manual_seed(images)
    q, k, v = torch.randn(images, 17, 3 * 24, generator=chance).to(dtype).view(images, 17, 3, 2, 12).unbind(2)
    return q[:, :queries].transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)


@pytest.mark.parametrize("queries", [17, 1])
@pytest.mark.parametrize(
    "images", [1, 37, 50, 80]
)  # less than are taken at a time, all of these, one or two and a rest
def test_it_is_the_formula_and_so_are_its_gradients(images: int, queries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "CHUNK_WEIGHTS", 37 * 2 * queries * 17)
    found = []
    for how in (torch.bfloat16, torch.float64):
        qkv = [x.to(how).requires_grad_() for x in tokens(images, queries)]
        q, k, v = qkv
        exactly = how is torch.float64
        mixed = F.scaled_dot_product_attention(q, k, v) if exactly else attention.cpu_attention(q, k, v)
        weights = torch.linspace(-1, 1, mixed.numel(), dtype=torch.float64).view_as(mixed)
        torch.autograd.backward(mixed, weights.to(how))
        found.append([mixed, *(x.grad for x in qkv)])
    for ours, exact in zip(*found, strict=True):
        assert ours is not None
        assert exact is not None
        assert ours.shape == exact.shape
        assert (ours.double() - exact).norm() < 0.02 * exact.norm()


def test_with_and_without_gradients_it_computes_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "CHUNK_WEIGHTS", 7 * 2 * 17 * 17)
    q, k, v = tokens(19)
    with torch.inference_mode():
        alone = attention.cpu_attention(q, k, v)
    assert torch.equal(alone, attention.cpu_attention(q.requires_grad_(), k, v))
    compiled = torch.compile(attention.cpu_attention, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(q, k, v), alone)


def test_a_network_keeps_none_of_its_weights_for_backward() -> None:
    kept: dict[bool, list[torch.Size]] = {True: [], False: []}
    for fused, shapes in kept.items():

        def note(x: Tensor, shapes: list[torch.Size] = shapes) -> Tensor:
            shapes.append(x.shape)
            return x

        model = VisionTransformer(image_size=16, patch_size=4, dim=24, depth=3, heads=2, fused_attention=fused)
        hooks = torch.autograd.graph.saved_tensors_hooks(note, lambda x: x)
        with hooks, torch.autocast("cpu", dtype=torch.bfloat16):
            model(torch.zeros(3, 3, 16, 16))
    assert any(shape[-2:] == (17, 17) for shape in kept[False])
    assert not any(shape[-2:] == (17, 17) for shape in kept[True])


@pytest.mark.parametrize(
    ("served", "dtype", "count", "dropout", "trained"),
    [
        (True, torch.bfloat16, 256, 0.0, False),
        (False, torch.bfloat16, 257, 0.0, False),
        (False, torch.bfloat16, 256, 0.1, True),
        (False, torch.float32, 256, 0.0, True),
        (True, torch.bfloat16, 16, 0.0, True),
        (False, torch.bfloat16, 16, 0.0, False),
    ],
)
def test_it_is_for_few_tokens_in_bfloat16_without_dropout(
    served: bool, dtype: torch.dtype, count: int, dropout: float, trained: bool
) -> None:
    q = torch.zeros(1, 2, count, 32, dtype=dtype, requires_grad=trained)
    assert attention.has_cpu_kernel(q, q, dropout) is served


def test_compiled_it_is_for_training_alone_and_never_for_torch_func() -> None:
    large = torch.zeros(1, 2, 256, 32, dtype=torch.bfloat16)
    found = list[bool]()

    def note(q: Tensor) -> Tensor:
        found.append(attention.has_cpu_kernel(q, q, 0.0))
        return q.float().sum()

    torch.func.grad(note)(large)
    torch.func.vmap(note)(large.expand(3, 1, 2, 256, 32))
    assert found == [False, False]
    compiled = torch.compile(lambda q: q + attention.has_cpu_kernel(q, q, 0.0), backend="eager", fullgraph=True)
    assert not compiled(large).any()
    assert compiled(large.requires_grad_()).all()


class Weights(torch.nn.Dropout):
    """Counts the calls."""

    calls = 0

    def forward(self, input: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(input)


@pytest.mark.parametrize("kind", ["forward_hook", "forward_pre_hook", "full_backward_hook", "full_backward_pre_hook"])
def test_a_hook_sees_the_weights_also_of_fused_attention(kind: str) -> None:
    q, k, v = (x.requires_grad_() for x in tokens(3, 5, torch.float64))
    drop, seen = Weights(0.0), list[int]()
    attention.attention(q, k, v, drop)
    assert drop.calls == 0
    attention.attention(q, k, v, drop, fused=False)
    assert drop.calls == 1
    getattr(drop, f"register_{kind}")(lambda *_: seen.append(1))
    attention.attention(q, k, v, drop).sum().backward()  # type: ignore[no-untyped-call]
    assert (drop.calls, seen) == (2, [1])


def test_outside_of_bfloat16_it_has_second_derivatives() -> None:
    q, k, v = (x[:, :, :3].clone().requires_grad_() for x in tokens(1, 3, torch.float64))
    with sdpa_kernel(SDPBackend.MATH):  # the other kernels have none
        assert torch.autograd.gradgradcheck(attention.attention, (q, k, v))


@pytest.mark.parametrize("fused", [True, False])
def test_fused_or_step_by_step_it_is_the_formula(fused: bool) -> None:
    q, k, v = tokens(3, 5, torch.float64)
    weights = (q @ k.mT / 12**0.5).softmax(dim=-1)
    torch.testing.assert_close(attention.attention_weights(q, k), weights)
    torch.testing.assert_close(attention.attention(q, k, v, fused=fused), weights @ v)
    assert torch.equal(attention.attention(q, k, v), attention.attention(q, k, v, fused=True))


@pytest.mark.parametrize("fused", [True, False])
def test_dropout_drops_weights_and_keeps_the_expectation(fused: bool) -> None:
    torch.manual_seed(0)
    q, v = torch.zeros(500, 2, 16, 12), torch.ones(500, 2, 16, 12)
    mixed = attention.attention(q, q, v, torch.nn.Dropout(0.25), fused=fused)[..., 0]
    kept = mixed * 0.75 * 16  # of 16 equal weights
    torch.testing.assert_close(kept, kept.round())
    assert float(kept.mean()) == pytest.approx(12, abs=0.1)  # the standard error is 0.014
    assert float(kept.var()) == pytest.approx(3, abs=0.1)
    drop = torch.nn.Dropout(0.25).eval()
    torch.testing.assert_close(attention.attention(q, q, v, drop, fused=fused), v)


def test_heads_are_split_alike_with_and_without_gradients() -> None:
    x = torch.randn(2, 5, 3 * 24, requires_grad=True)
    expected = [x[..., part * 24 :][..., :24].reshape(2, 5, 2, 12).transpose(1, 2) for part in range(3)]
    for enabled in (True, False):
        with torch.set_grad_enabled(enabled):
            parts = attention.split_heads(x, 3, 2)
        for part, exact in zip(parts, expected, strict=True):
            assert torch.equal(part, exact)
        if enabled:
            functions = {str(part.grad_fn and part.grad_fn.name()) for part in parts}
            assert functions == {"TransposeBackward0"}, "not of one view: its backward would stack the gradients"


def test_as_many_images_are_mixed_at_a_time_as_the_weights_have_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = tokens(7, 5)
    for room, images in ((3 * 2 * 5 * 17, [3, 3, 1]), (3 * 2 * 5 * 17 - 1, [2, 2, 2, 1]), (1, [1] * 7)):
        monkeypatch.setattr(attention, "CHUNK_WEIGHTS", room)
        assert [len(part[0]) for part in attention.chunks(q, k, v)] == images


def test_compiled_it_has_the_same_gradients() -> None:
    gradients = []
    for mix in (attention.cpu_attention, torch.compile(attention.cpu_attention, backend="eager", fullgraph=True)):
        q, k, v = (x.requires_grad_() for x in tokens(3))
        mix(q, k, v).square().sum().backward()  # type: ignore[no-untyped-call]
        gradients.append([q.grad, k.grad, v.grad])
    for compiled, plain in zip(*gradients, strict=True):
        torch.testing.assert_close(compiled, plain, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("hooked", [False, True])
def test_the_queries_are_those_of_the_first_tokens(hooked: bool, bias: bool) -> None:
    layer, x = torch.nn.Linear(24, 72, bias=bias), torch.randn(2, 17, 24)
    if hooked:  # then the layer is called for all tokens
        layer.register_forward_hook(lambda *_: None)
    complete = attention.project_heads(layer, x, 2, None)
    assert [part.shape[2] for part in complete] == [17, 17, 17]
    few = attention.project_heads(layer, x, 2, 3)
    for got, expected in zip(few, (complete[0][:, :, :3], *complete[1:]), strict=True):
        torch.testing.assert_close(got, expected)
