"""Decides which components lie on the device: some stay, others come on demand, one at a time, never copied back.

Weights do not change, so the host's copy of a component stays valid and removing it from the device is free.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

import torch
from torch import nn

from uso_core.memory.pinned import PinnedMemory


class Offloader:
    """Brings modules to `device` when they are used.

    `modules` are named; those `on_demand` are on the device only while used, at most one at a time; all others stay.
    `held` are parts that never move: their users bring the weights along (adaLN layers, streamed blocks). Modules on
    demand rest in `host`, or in place without one. `events` logs every arrival and departure ("arrive" or "leave",
    name).
    """

    def __init__(
        self,
        device: torch.device,
        modules: Mapping[str, nn.Module],
        on_demand: Collection[str] = (),
        held: Iterable[torch.Tensor] = (),
        on_leave: Callable[[str], None] | None = None,
        host: PinnedMemory | None = None,
    ) -> None:
        unknown = set(on_demand) - set(modules)
        if unknown:
            raise ValueError(f"no module is named {sorted(unknown)}")
        self.device = device
        self.modules = dict(modules)
        self.on_demand = frozenset(on_demand)
        self.events: list[tuple[str, str]] = []
        self._held = {id(tensor) for tensor in held}
        self._on_leave, self._host = on_leave, host
        self._hosts: dict[int, torch.Tensor] = {}  # by id of the parameter or buffer: its data on the host
        self._arrived: str | None = None
        for name, module in self.modules.items():
            if name in self.on_demand:
                self._keep_on_host(module)
            else:
                self._bring(module)

    def use(self, name: str) -> nn.Module:
        """Returns the module of this name, on the device.

        Any other module that came on demand leaves, whether or not its room is needed.
        """
        module = self.modules[name]
        if self._arrived != name:
            self.leave()
        if name in self.on_demand and self._arrived != name:
            self._bring(module)
            self._arrived = name
            self.events.append(("arrive", name))
        return module

    def leave(self) -> None:
        """Removes from the device what came on demand, if anything."""
        if self._arrived is None:
            return
        for tensor in self._movable(self.modules[self._arrived]):
            tensor.data = self._hosts[id(tensor)]
        if self._on_leave is not None:
            self._on_leave(self._arrived)
        self.events.append(("leave", self._arrived))
        self._arrived = None

    def bytes_on_device(self, name: str) -> int:
        """Bytes of the module's weights that are on the device now."""
        return sum(each.nbytes for each in tensors_of(self.modules[name]) if each.device.type == self.device.type)

    def _movable(self, module: nn.Module) -> Iterator[torch.Tensor]:
        return (tensor for tensor in tensors_of(module) if id(tensor) not in self._held)

    def _bring(self, module: nn.Module) -> None:
        for tensor in self._movable(module):
            on_demand = id(tensor) in self._hosts
            tensor.data = tensor.data.to(self.device, non_blocking=True, copy=on_demand)

    def _keep_on_host(self, module: nn.Module) -> None:
        for tensor in self._movable(module):
            data = tensor.data
            tensor.data = self._hosts[id(tensor)] = data if self._host is None else self._host.keep(data)


def tensors_of(module: nn.Module) -> Iterator[torch.Tensor]:
    """A module's parameters and buffers, each shared one once."""
    yield from module.parameters()
    yield from module.buffers()
