"""An experiment from the command line: prepared and checked as a whole, then simulated and recorded.

`experiments/*.py` call `main` with their presets. A run is one method on one topology with one seed.
"""

from jaxdfl.startup import precision, programs_kept, split_cpu  # isort: skip (it comes before jax)

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

import jax

from jaxdfl import console
from jaxdfl.arguments import parse
from jaxdfl.doctor import check_numerics
from jaxdfl.execution import execute
from jaxdfl.exit_codes import FAILED, STOPPED
from jaxdfl.manifest import begin
from jaxdfl.planner import memory, show, work
from jaxdfl.prepare import prepare
from jaxdfl.processes import DISTRIBUTED, Elsewhere, is_first, join, of_another, require_alike, together
from jaxdfl.refusal import refuse
from jaxdfl.settings import Settings


def main(
    presets: Mapping[str, Settings],
    argv: Sequence[str] | None = None,
    study: Callable[[Path], str] | None = None,
    command: Sequence[str] | None = None,
) -> int:
    """Runs an experiment from the command line; returns its exit code.

    That of `jaxdfl.execution.execute`; or, with one line on stderr, `REFUSED` where it cannot start, and `FAILED` where
    it broke off.

    `study` reads the finished run folder, draws what it finds into its `figures/`, and says it in words (Markdown,
    which goes to `study.md` and to the screen). `command` is what the manifest says before `argv`: None, the script.
    """
    command = ("python", Path(sys.argv[0]).name) if command is None else command
    argv = sys.argv[1:] if argv is None else argv
    try:
        settings = parse(presets, [word for word in argv if word != DISTRIBUTED], " ".join(command))
        split_cpu(settings.cpu_devices if settings.sweep else 1)
        if DISTRIBUTED in argv:
            join()
            require_alike(asdict(settings))
    except (ValueError, Elsewhere) as error:
        return refuse(error)
    with programs_kept(settings.compilation_cache), precision(settings.dtype), ExitStack() as scratch:
        try:
            if not is_first():
                console.OUT.quiet = True
                settings = of_another(settings, scratch.enter_context(TemporaryDirectory(prefix="jaxdfl-")))
            with together():
                check_numerics()
                prepared = prepare(settings)
                needs = memory(prepared)
            if settings.dry_run:
                show(needs, work(prepared))
                return 0
            folder, manifest = begin(prepared, [*command, *argv])
        except (ValueError, OSError, RuntimeError) as error:  # RuntimeError: bad numerics, or jax without its device
            return refuse(error)
        try:
            console.show_setup(manifest)
            show(needs)
            done = execute(prepared, folder, manifest)
        except (OSError, jax.errors.JaxRuntimeError) as error:  # a full disk; no memory left
            return _broke_off(error)
        if study is not None and done != STOPPED and is_first():
            console.show_study(study(folder.path), folder.path)
    return done


def _broke_off(error: Exception) -> int:
    said = str(error)
    if "RESOURCE_EXHAUSTED" in said:
        said = f"out of memory: lower --client-chunk, --runs-at-once or --batch-size, or take --remat ({said[:200]})"
    elif isinstance(error, jax.errors.JaxRuntimeError) and jax.process_count() > 1:
        said = f"{said[:300]}. If another process has died, start all of them again, with --resume"
    return refuse(said, FAILED)
