"""``sdxl_core`` as a notebook sees it, and the page that describes it."""

import ast
import importlib
import inspect
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import sdxl_core
from sdxl_core.nets.presets import TINY
from sdxl_core.nets.weights_source import EMBEDDED_MODELS

ROOT = Path(__file__).parents[2]
API = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")


def test_the_page_lists_every_public_name_once():
    listed = re.findall(r"^\| `(\w+)` \|", API, flags=re.MULTILINE)

    assert sorted(listed) == sorted(sdxl_core.__all__)


@pytest.mark.parametrize("name", sdxl_core.__all__)
def test_every_public_name_can_be_imported_and_has_a_docstring(name):
    thing = getattr(sdxl_core, name)

    assert inspect.getdoc(thing)
    assert name in dir(sdxl_core)


def test_names_for_type_checkers_are_those_that_are_imported():
    tree = ast.parse(Path(sdxl_core.__file__).read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    found = {
        alias.name: getattr(importlib.import_module(str(node.module)), alias.name)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }

    assert set(found) == set(sdxl_core.__all__)
    assert all(getattr(sdxl_core, name) is thing for name, thing in found.items())


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'generat'"):
        sdxl_core.generat  # noqa: B018


def test_importing_the_package_imports_nothing_else():
    code = (
        "import sys, sdxl_core; print({'torch', 'numpy', 'diffusers', 'pyarrow'} & {*sys.modules})"
    )

    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )

    assert done.stdout.strip() == "set()"


def test_the_example_on_the_page_runs_as_it_is(tmp_path, monkeypatch):
    """With the embedded model's sizes; what its weights paint is tested elsewhere."""
    (example,) = re.findall(r"```python\n(.*?)```", API, flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    sdxl_core.export_model(sdxl_core.random_model(TINY), tmp_path / "tiny-weights")
    assert 'load_model("tiny")' in example

    exec(compile(example.replace('"tiny"', '"tiny-weights"'), "docs/api.md", "exec"), {})

    pictures = sorted(tmp_path.glob("circle-*.png"))
    assert [picture.name for picture in pictures] == ["circle-0.png", "circle-1.png"]
    for seed, picture in enumerate(pictures):
        data = picture.read_bytes()
        assert sdxl_core.decode_image(data).shape == (128, 128, 3)
        assert sdxl_core.read_parameters(data)["seed"] == seed


def test_the_example_program_makes_a_picture_or_says_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["one_image.py", "a circle", "out.png"])
    program = str(ROOT / "examples" / "one_image.py")

    if (ROOT / "sdxl_core" / "assets" / EMBEDDED_MODELS[0] / "model_index.json").exists():
        runpy.run_path(program, run_name="__main__")
        data = (tmp_path / "out.png").read_bytes()
        assert sdxl_core.read_parameters(data)["prompt"] == "a circle"
    else:
        with pytest.raises(SystemExit, match=r"no picture: .* found no model_index\.json"):
            runpy.run_path(program, run_name="__main__")
