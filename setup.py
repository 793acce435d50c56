"""A wheel also carries the small models, which stand in data/ and not in the package; all else is in pyproject.toml."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class WithModels(build_py):
    def run(self):
        super().run()
        if not self.editable_mode:  # an editable installation finds data/ where it is
            for name in ("tiny", "smol"):
                inside = Path(self.build_lib, "logitmix_lite", "data", name)
                shutil.copytree(Path("data", name), inside, dirs_exist_ok=True)


setup(cmdclass={"build_py": WithModels})
