"""Shim: everything is in setup.cfg, but for what lives elsewhere than it installs.

The samples of ``data/`` install as ``crystaldl.samples``; the plugin of py4D-browser goes where that program looks.
"""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["crystaldl", "crystaldl.*"]), "crystaldl.samples", "py4d_browser_plugin.crystaldl"],
    package_dir={"crystaldl.samples": "data", "py4d_browser_plugin.crystaldl": "crystaldl/stem/browser"},
)
