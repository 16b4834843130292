"""The machine is told by its name and threads; its limit is a matrix product whose FLOPs are known."""

from typing import Literal

import pytest
import torch

from vitlab.benchmarking import machine
from vitlab.benchmarking.timing import CPU


def test_threads_are_set_and_the_title_tells_them() -> None:
    before = torch.get_num_threads()
    try:
        clock = machine.clock(rounds=3, seconds=0.1, threads=2, accelerator="cpu")
        assert clock.device == CPU
        title = machine.described(clock)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert title.startswith(f"{machine.processor()}, 2 threads, torch {torch.__version__.partition('+')[0]}")
    assert "rounds" not in title, "parts have rounds of their own"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match="accelerator=gpu: torch sees no GPU here"):
        machine.clock(rounds=1, seconds=0, threads=None, accelerator="gpu")


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_the_limit_is_a_product_of_that_precision(precision: Literal["float32", "bf16"]) -> None:
    product = machine.Product(CPU, precision=precision)
    product()
    side = len(product.left)
    assert product.flops == 2 * side**3
    assert product.result.dtype == {"float32": torch.float32, "bf16": torch.bfloat16}[precision]
    row = product.left[0].double() @ product.right.double()
    assert torch.allclose(product.result[0].double(), row, rtol=0.02, atol=0.5)
    assert machine.datasheet(CPU, precision) is None
