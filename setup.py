"""Map the repository root to the package `penstock`; everything else is in pyproject.toml."""

from setuptools import find_packages, setup

found = find_packages(".", exclude=["tests", "tests.*", "tools", "tools.*", "build", "build.*"])
setup(
    packages=["penstock", *(f"penstock.{name}" for name in found)],
    package_dir={"penstock": "."},
    package_data={
        "penstock": ["py.typed"],
        "penstock.server": ["demo_model/*"],
        "penstock.kernels.cpu": ["*.cpp", "*.h"],
    },
)
