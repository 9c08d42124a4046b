"""The pages: links lead somewhere, Python runs, every module has a place, and the site loads nothing from elsewhere."""

import os
import re
import subprocess
import sys
from collections import Counter
from importlib.util import find_spec

import pytest
from printed import ROOT, python_in

DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "benchmarks" / "README.md", *sorted(DOCS.rglob("*.md"))]
WITHOUT = {"jaxdfl", "jaxdfl.__main__", "jaxdfl.launchers.__main__"}  # nothing to look up; commands have their help


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_to_files_where_the_repository_is_browsed(path):
    """Within the site MkDocs looks after them, sections and all; it doesn't see README."""
    links = re.findall(r"\]\((?!\w+:|#)([^)#\s]+)", path.read_text(encoding="utf-8"))
    missing = [link for link in links if not (path.parent / link).exists()]
    assert not missing


@pytest.mark.parametrize("path", filter(python_in, PAGES), ids=lambda path: str(path.relative_to(ROOT)))
def test_python_in_a_page_runs(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(python_in(path), str(path), "exec"), {"__name__": "page"})


def test_every_module_stands_on_one_page_of_the_reference():
    lines = "\n".join(path.read_text(encoding="utf-8") for path in (DOCS / "api").glob("*.md"))
    shown = Counter(
        module
        for name, spread in re.findall(r"^::: ([\w.]+?)(\.\*)?$", lines, re.MULTILINE)
        for module in ([name, *(f"{name}.{each.stem}" for each in folder(name).glob("[!_]*.py"))] if spread else [name])
    )
    modules = {module(path) for path in (ROOT / "jaxdfl").rglob("*.py")} - WITHOUT
    assert {name for name in modules if not name.startswith("jaxdfl.commands.")} == set(shown)
    assert set(shown.values()) == {1}


def folder(package):
    return ROOT / package.replace(".", "/")


def module(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@pytest.mark.slow
@pytest.mark.skipif(find_spec("mkdocs") is None, reason="needs the extra `docs`")
def test_the_site_is_built_without_warnings_and_loads_nothing_from_elsewhere(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    )
    assert done.returncode == 0, done.stderr
    pages = {path: path.read_text(encoding="utf-8") for path in tmp_path.rglob("*.html")}
    loads = re.compile(r'<(?:script|img|iframe|link)[^>]*(?:src|href)="?(?:https?:)?//[^">]*')
    assert not [(path, found) for path, text in pages.items() for found in loads.findall(text)]
    assert "class PerBlock(NamedTuple)" in re.sub("<[^>]*>", "", pages[tmp_path / "api" / "protocol.html"])
    concepts = pages[tmp_path / "concepts.html"]
    assert concepts.count("<math") > 20
    assert "arithmatex" not in concepts
