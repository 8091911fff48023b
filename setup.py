"""The package list: `conf/` and `kernels/` of the repository root are shipped inside edgempi."""

from setuptools import find_packages, setup

setup(
    packages=[
        *find_packages(include=["edgempi", "edgempi.*"]),
        *(f"edgempi.{name}" for name in find_packages(include=["conf", "kernels", "kernels.*"])),
    ],
    package_dir={"edgempi.conf": "conf", "edgempi.kernels": "kernels"},
)
