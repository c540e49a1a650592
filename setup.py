"""Computes the package list: a static list in pyproject.toml would silently drop new subpackages."""

from setuptools import find_packages, setup

FOLDERS = ("configs", "data", "model", "train", "evaluate", "scripts")

packages: list[str] = []
for folder in FOLDERS:
    packages.append(f"prismcap.{folder}")
    packages.extend(f"prismcap.{folder}.{name}" for name in find_packages(folder))

setup(
    packages=packages,
    package_dir={f"prismcap.{folder}": folder for folder in FOLDERS},
    package_data={
        "prismcap.configs": ["**/*.yaml"],
        "prismcap.data": ["**/*.yaml", "**/*.txt", "**/*.html.j2"],
        "prismcap.evaluate": ["**/*.html.j2"],
    },
)
