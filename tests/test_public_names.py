"""The public names: each resolves, and importing the package imports none of their modules."""

from __future__ import annotations

import subprocess
import sys

import pytest

import scissionlite as sl


@pytest.mark.parametrize("name", sl.__all__)
def test_every_public_name_resolves(name: str) -> None:
    assert getattr(sl, name) is not None
    assert name in dir(sl)


def test_the_public_names_are_in_order_and_each_has_one_home() -> None:
    assert list(sl.__all__) == sorted(sl._HOMES) == list(sl._HOMES)


def test_what_the_trainer_takes_is_public() -> None:
    from scissionlite.preprocessor import choosing, recipe, tasks

    assert sl.Recipe is recipe.Recipe
    assert sl.Task is tasks.Task
    assert sl.CLASSIFICATION is tasks.CLASSIFICATION
    assert sl.SEGMENTATION is tasks.SEGMENTATION
    assert sl.choose is choosing.choose


def test_importing_the_package_imports_no_torch() -> None:
    program = "import sys, scissionlite as sl; dir(sl); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
    # Recipes are values: the command line reads their defaults without torch.
    program = "import sys, scissionlite as sl; sl.Recipe(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = sl.nothing
