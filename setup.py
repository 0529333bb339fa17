"""What pyproject.toml cannot say: `conf/` is the package data of `rambla_ray.conf`, where it travels in a wheel."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["rambla_ray", "rambla_ray.*"]), "rambla_ray.conf"],
    package_dir={"rambla_ray.conf": "conf"},
)
