"""What MkDocs does not do by itself: pages and figures that lie outside docs/, and links to them.

A page is written so that its links work where the repository is browsed: `../experiments/LOG.md`, `../jaxdfl/lora.py`.
On the site the first is a page of its own, and the second is that module's place in the reference. There,
`::: jaxdfl.mixing.*` stands for the package and all its modules. Equations become MathML, which needs no script.
"""

import html
import posixpath
import re
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
BESIDE = (
    "CHANGELOG.md", "CONTRIBUTING.md", "benchmarks/README.md", "experiments/LOG.md", "experiments/figures/*.png",
    "notebooks/*.ipynb",
)  # fmt: skip
MATH = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)
LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)#\s]+)(#[^)\s]*)?(?=\))")


def on_files(files, config):
    """Adds what lies beside docs/, at the place that it has in the repository."""
    for path in sorted(path for pattern in BESIDE for path in ROOT.glob(pattern)):
        files.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown, page, config, files):
    """Links as they are in the repository become links as they are on the site."""
    inside = Path(config.docs_dir, page.file.src_uri).is_file()
    folder = posixpath.dirname(page.file.src_uri)

    def moved(link):
        target = posixpath.normpath(posixpath.join("docs" if inside else "", folder, link[1]))
        if target.startswith("jaxdfl/") and target.endswith(".py"):  # [text](file.py) -> [text][module]
            return "\0" + target.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        target = target.removeprefix("docs/")
        return posixpath.relpath(target, folder or ".") + (link[2] or "")

    def spread(package):
        folder = ROOT / package[1].replace(".", "/")
        modules = [f"::: {package[1]}.{path.stem}" for path in sorted(folder.glob("[!_]*.py"))]
        own = f"::: {package[1]}\n    options:\n      members: false"  # what it hands on has a place of its own
        return "\n\n".join([own, *modules])

    markdown = re.sub(r"^::: ([\w.]+)\.\*$", spread, markdown, flags=re.MULTILINE)
    return re.sub(r"\(\0([\w.]+)\)", r"[\1]", LINK.sub(moved, markdown))


def on_page_content(html_, page, config, files):
    """Equations, which arithmatex has marked, as MathML."""
    display = {"span": "inline", "div": "block"}
    return MATH.sub(lambda found: convert(html.unescape(found[2]), display=display[found[1]]), html_)
