"""Which modules lie on the device: some stay, the others visit it one at a time and leave no copy to bring back.

Weights do not change, so a visitor's host copy is kept and its leaving costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

import torch
from torch import nn

from uso_core.memory.pinned import HostMemory


class Offloader:
    """Brings modules to `device` when they are used.

    `modules` are named; those in `visitors` are there only while they are used, at most one of them at a time, all
    others always. `held` are parts that never move: who uses them brings their weights along (adaLN layers, streamed
    blocks). Visitors wait in `host`, without one where they are. `events` logs every arrival and departure, ("arrive"
    or "leave", name).
    """

    def __init__(
        self,
        device: torch.device,
        modules: Mapping[str, nn.Module],
        visitors: Collection[str] = (),
        held: Iterable[torch.Tensor] = (),
        on_leave: Callable[[str], None] | None = None,
        host: HostMemory | None = None,
    ) -> None:
        unknown = set(visitors) - set(modules)
        if unknown:
            raise ValueError(f"no module is named {sorted(unknown)}")
        self.device = device
        self.modules = dict(modules)
        self.visitors = frozenset(visitors)
        self.events: list[tuple[str, str]] = []
        self._held = {id(tensor) for tensor in held}
        self._on_leave, self._host = on_leave, host
        self._hosts: dict[int, torch.Tensor] = {}  # by id of the parameter or buffer: its data on the host
        self._visiting: str | None = None
        for name, module in self.modules.items():
            if name in self.visitors:
                self._keep_on_host(module)
            else:
                self._bring(module)

    def use(self, name: str) -> nn.Module:
        """The module of that name, on the device; a visitor that it is not leaves, whether it needs the room or not."""
        module = self.modules[name]
        if self._visiting != name:
            self.leave()
        if name in self.visitors and self._visiting != name:
            self._bring(module)
            self._visiting = name
            self.events.append(("arrive", name))
        return module

    def leave(self) -> None:
        """Sends the visitor home, if there is one."""
        if self._visiting is None:
            return
        for tensor in self._movable(self.modules[self._visiting]):
            tensor.data = self._hosts[id(tensor)]
        if self._on_leave is not None:
            self._on_leave(self._visiting)
        self.events.append(("leave", self._visiting))
        self._visiting = None

    def bytes_on_device(self, name: str) -> int:
        """Bytes of the module's weights that lie on the device now."""
        return sum(each.nbytes for each in tensors_of(self.modules[name]) if each.device.type == self.device.type)

    def _movable(self, module: nn.Module) -> Iterator[torch.Tensor]:
        return (tensor for tensor in tensors_of(module) if id(tensor) not in self._held)

    def _bring(self, module: nn.Module) -> None:
        for tensor in self._movable(module):
            visits = id(tensor) in self._hosts
            tensor.data = tensor.data.to(self.device, non_blocking=True, copy=visits)

    def _keep_on_host(self, module: nn.Module) -> None:
        for tensor in self._movable(module):
            data = tensor.data
            tensor.data = self._hosts[id(tensor)] = data if self._host is None else self._host.keep(data)


def tensors_of(module: nn.Module) -> Iterator[torch.Tensor]:
    """A module's parameters and buffers, shared ones once."""
    yield from module.parameters()
    yield from module.buffers()
