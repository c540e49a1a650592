"""Computes the package list: a static list in pyproject.toml would silently drop new subpackages."""

from setuptools import find_namespace_packages, setup

FOLDERS = ("configs", "data", "model", "train", "evaluate", "scripts")

packages: list[str] = []
for folder in FOLDERS:
    packages.append(f"prismcap.{folder}")
    # folders of YAML alone count too: setuptools ships data of packages only, and warns of any other
    below = find_namespace_packages(folder, exclude=["*__pycache__*"])
    packages.extend(f"prismcap.{folder}.{name}" for name in below)

setup(
    packages=packages,
    package_dir={f"prismcap.{folder}": folder for folder in FOLDERS},
    package_data={
        "": ["*.yaml", "*.json", "*.html.j2"],
    },
)
