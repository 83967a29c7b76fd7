"""Builds the compiled kernels; all else is in pyproject.toml.

It is optional: without a C++ compiler the install succeeds, and the same numbers come, slower, from
the reference in torch. `python -m agzo.kernels` tells which is in use.
"""

import platform
import sys

from setuptools import Extension, setup

LINUX = sys.platform == "linux"
THREADS = ["-fopenmp"] if LINUX else []  # torch's own pool: it brings libgomp
WIDE = ["-mprefer-vector-width=512"] if LINUX and platform.machine() == "x86_64" else []

setup(
    ext_modules=[
        Extension(
            "agzo.kernels.native_normal",
            ["agzo/kernels/gram.cpp", "agzo/kernels/normal.cpp", "agzo/kernels/thin.cpp"],
            depends=["agzo/kernels/wide.h"],
            extra_compile_args=[
                *("-O3", "-std=c++17", "-ffp-contract=off", "-fno-math-errno"),
                *WIDE,
                *THREADS,
            ],
            extra_link_args=THREADS,
            optional=True,
        )
    ]
)
