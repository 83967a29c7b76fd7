"""Tell what makes the noise on this machine: python -m agzo.kernels."""

import torch

from agzo.kernels import kind

SLOW = (
    "; the same numbers at a thirtieth of the speed: no C++ compiler was found at install, or the "
    "compiled kernels are of other sources than these (with a compiler: pip install -e . again)"
)

for name in ("cpu", *(["cuda"] if torch.cuda.is_available() else [])):
    found = kind(torch.device(name))
    print(f"noise on {name}: {found}{SLOW if (name, found) == ('cpu', 'torch') else ''}")
