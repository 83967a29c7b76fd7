"""Builds the compiled kernels, and a wheel of the library alone; all else is in pyproject.toml.

`pip install -e .` installs every package of the repository, where it lies. A wheel (`pip wheel .`)
has agzo and baselines: the others need this folder around them.

The kernels are optional: without a C++ compiler the install succeeds, and the same numbers come,
slower, from the reference in torch. `python -m agzo.kernels` tells which is in use.
"""

import platform
import sys

from setuptools import Extension, setup
from setuptools.command.build_py import build_py

LINUX = sys.platform == "linux"
THREADS = ["-fopenmp"] if LINUX else []  # torch's own pool: it brings libgomp
WIDE = ["-mprefer-vector-width=512"] if LINUX and platform.machine() == "x86_64" else []

LIBRARY = ("agzo", "baselines")


class OfTheLibrary(build_py):
    """Leaves the other packages out, but of an editable install, which copies nothing."""

    def finalize_options(self):
        """Choose the packages."""
        super().finalize_options()
        if not self.editable_mode:
            self.packages = [each for each in self.packages if each.split(".")[0] in LIBRARY]


setup(
    cmdclass={"build_py": OfTheLibrary},
    ext_modules=[
        Extension(
            "agzo.kernels.native_normal",
            [f"agzo/kernels/{name}.cpp" for name in ("branch", "gram", "normal", "thin")],
            depends=["agzo/kernels/values.h", "agzo/kernels/wide.h"],
            extra_compile_args=[
                *("-O3", "-std=c++17", "-ffp-contract=off", "-fno-math-errno"),
                *WIDE,
                *THREADS,
            ],
            extra_link_args=THREADS,
            optional=True,
        )
    ],
)
