"""A look at a flag on a device that comes late instead of waiting for the device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class LateLook:
    """Copies a 0-dim bool to the host beside what the device does, and tells when it is there.

    `read` answers None until then. A flag on the CPU is there at once; one on CUDA when what was
    computed before the copy is done; on another kind of device reading waits for it.
    """

    def __init__(self) -> None:
        self._flag: Tensor | None = None  # on the host, but for devices without a copy beside work
        self._sent: Any = None  # CUDA event: the copy is done

    def send(self, flag: Tensor) -> None:
        """Begin to copy a flag; one that was sent before need not have arrived.

        It must not change before it is read, but to what may be read as well.
        """
        if flag.device.type != "cuda":
            self._flag = None if flag.is_meta else flag
            return
        if self._flag is None:
            self._flag = torch.empty((), dtype=torch.bool, device="cpu", pin_memory=True)
            self._sent = torch.cuda.Event()
        self._flag.copy_(flag, non_blocking=True)
        self._sent.record(torch.cuda.current_stream(flag.device))

    def read(self) -> bool | None:
        """Return the flag, None where it has not arrived or none was sent."""
        if self._flag is None or (self._sent is not None and not self._sent.query()):
            return None
        return bool(self._flag)
