"""Device and precision: what is chosen by itself, and names that are refused."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import pytest
import torch

from spanbox.engine.device import choose_device, choose_precision
from spanbox.errors import ConfigError


class TestDeviceAndPrecision:
    @pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:one", "meta", "mps:0", "", "0"])
    def test_no_device(self, name: str) -> None:
        with pytest.raises(ConfigError, match=r"^train\.device: .* expected auto, cpu, cuda or cuda:N$"):
            choose_device(name)

    @pytest.mark.parametrize("name", ["cuda", "cuda:3"])
    def test_a_card_that_is_not_there(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
        with pytest.raises(ConfigError, match=rf"^train\.device: '{name}' is set, .* use train\.device=cpu"):
            choose_device(name)

    @pytest.mark.parametrize(("available", "expected"), [(True, "cuda:0"), (False, "cpu")])
    def test_auto(self, available: bool, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: int(available))
        assert choose_device("auto") == torch.device(expected)

    def test_more_processes_than_gpus(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        assert choose_device("auto", local_rank=1) == torch.device("cuda:1")
        with pytest.raises(ConfigError, match=r"process 2 of this machine has none: PyTorch finds 2; .*nproc-per-node"):
            choose_device("auto", local_rank=2)

    @pytest.mark.parametrize(
        ("name", "device", "capable", "expected"),
        [
            ("auto", "cpu", True, torch.float32),
            ("auto", "cuda", True, torch.bfloat16),
            ("auto", "cuda", False, torch.float32),
            ("float32", "cuda", True, torch.float32),
            ("bfloat16", "cpu", False, torch.bfloat16),
        ],
    )
    def test_precision(
        self, name: str, device: str, capable: bool, expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A GPU of which bfloat16 is emulated, such as a V100 or a T4, counts as one without it."""
        monkeypatch.setattr(
            torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or capable
        )
        monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
        assert choose_precision(name, torch.device(device)) == expected

    def test_precision_is_that_of_the_chosen_gpu(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A machine may have an old GPU beside a new one."""
        current = [torch.device("cuda", 0)]

        @contextmanager
        def on(device: torch.device) -> Iterator[None]:
            current.append(device)
            yield
            current.pop()

        monkeypatch.setattr(torch.cuda, "device", on)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: current[-1].index == 1)
        chosen = [choose_precision("auto", torch.device("cuda", number)) for number in range(2)]
        assert chosen == [torch.float32, torch.bfloat16]
