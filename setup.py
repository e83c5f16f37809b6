"""Shim: everything is in setup.cfg, but for the samples, which live in ``data/`` and install as ``crystaldl.samples``."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["crystaldl", "crystaldl.*"]), "crystaldl.samples"],
    package_dir={"crystaldl.samples": "data"},
)
