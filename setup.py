"""Map the repository root to the package `penstock`, and compile its kernels if there is a compiler.

Everything else is in pyproject.toml. The kernels are a plain shared library that no Python header goes into, so a
wheel that has them fits every Python on its platform; one without them fits every platform.
"""

from __future__ import annotations

import sys
from pathlib import Path

from setuptools import Distribution, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent


class PenstockDistribution(Distribution):  # type: ignore[misc]
    """Belongs to its platform once the kernels have been compiled."""

    has_kernels = False

    def has_ext_modules(self) -> bool:
        return self.has_kernels or super().has_ext_modules()


class BuildWithKernels(build_py):  # type: ignore[misc]
    """Copies the modules, then compiles; an installation that cannot compile is as good, only slower to start."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return  # sources change there: the kernels are compiled when they are first used
        sys.path.insert(0, str(ROOT))  # not the directory that the build front end may have left there
        try:
            from kernels.cpu.build import BuildError, build_prebuilt  # type: ignore[import-not-found]
        finally:
            sys.path.remove(str(ROOT))
        try:
            build_prebuilt(Path(self.build_lib, "penstock", "kernels", "cpu", "prebuilt"))
        except BuildError as error:
            self.warn(f"the CPU kernels are compiled when they are first used, not now: {error}")
        else:
            self.distribution.has_kernels = True


class WheelOfPlatform(bdist_wheel):  # type: ignore[misc]
    """Tagged for its platform if the kernels are in it."""

    def run(self) -> None:
        self.run_command("build")
        self.root_is_pure = not self.distribution.has_ext_modules()
        super().run()

    def get_tag(self) -> tuple[str, str, str]:
        python, abi, platform = super().get_tag()
        return (python, abi, platform) if self.root_is_pure else ("py3", "none", platform)


found = find_packages(".", exclude=["tests", "tests.*", "tools", "tools.*", "build", "build.*"])
setup(
    packages=["penstock", *(f"penstock.{name}" for name in found)],
    package_dir={"penstock": "."},
    package_data={
        "penstock": ["py.typed"],
        "penstock.server": ["demo_model/*"],
        "penstock.kernels.cpu": ["*.cpp", "*.h"],
    },
    distclass=PenstockDistribution,
    cmdclass={"build_py": BuildWithKernels, "bdist_wheel": WheelOfPlatform},
)
