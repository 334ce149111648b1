"""The state of the random generators: drawn from again, and left as it was, on the CPU and on every GPU."""

import pytest
import torch
from torch import Tensor

from spanbox.engine.random_state import RandomState


def test_a_random_state_is_drawn_from_again_and_then_left_as_it_was() -> None:
    torch.manual_seed(3)
    state = RandomState.capture()
    first, second = torch.rand(2), torch.rand(2)
    with state.replayed():
        assert torch.equal(torch.rand(2), first)
    torch.manual_seed(3)
    torch.rand(2), torch.rand(2)
    after = torch.rand(2)
    torch.manual_seed(3)
    state = RandomState.capture()
    torch.rand(2)
    with state.replayed():
        torch.rand(2)
    assert torch.equal(torch.rand(2), second)
    assert torch.equal(torch.rand(2), after)


class TestRandomState:
    def fake_gpus(self, monkeypatch: pytest.MonkeyPatch) -> list[torch.Generator]:
        """Generators of two GPUs, the first of which is the current device."""
        gpus = [torch.Generator().manual_seed(number) for number in range(2)]

        def restore(states: list[Tensor]) -> None:
            for gpu, state in zip(gpus, states, strict=True):
                gpu.set_state(state)

        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device=0: gpus[device].get_state())
        monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device=0: gpus[device].set_state(state))
        monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: [gpu.get_state() for gpu in gpus])
        monkeypatch.setattr(torch.cuda, "set_rng_state_all", restore)
        return gpus

    @pytest.mark.parametrize("used", [0, 1])
    def test_every_gpu_is_replayed(self, used: int, monkeypatch: pytest.MonkeyPatch) -> None:
        gpu = self.fake_gpus(monkeypatch)[used]
        state = RandomState.capture()
        first = torch.rand(3, generator=gpu)
        second = torch.rand(3, generator=gpu)
        after = gpu.get_state()
        with state.replayed():
            assert torch.equal(torch.rand(3, generator=gpu), first)
            assert torch.equal(torch.rand(3, generator=gpu), second)
        assert torch.equal(gpu.get_state(), after)

    def test_cuda_that_is_not_used_is_not_initialised(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.fake_gpus(monkeypatch)
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
        assert RandomState.capture().cuda == []
