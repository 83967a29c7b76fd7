"""Tell what makes the noise on this machine: python -m agzo.kernels."""

import torch

from agzo.kernels import kind

for name in ("cpu", *(["cuda"] if torch.cuda.is_available() else [])):
    print(f"{name}: {kind(torch.device(name))}")
