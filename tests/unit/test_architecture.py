"""The rules of docs/architecture.md, read from the source: who may import whom, how large a file may be."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("registry", "trainers", "studio")
MAX_LINES = 400
HEAVY = ("torch", "diffusers", "transformers", "peft", "accelerate", "bitsandbytes", "torchvision")

# What each package may import from the others.
ALLOWED = {
    "registry": {"registry"},
    "trainers": {
        "trainers", "registry.files", "registry.hashing", "registry.errors", "registry.formats.checkpoints",
        "registry.formats.single_file",
    },
    "studio": {
        "studio", "registry", "trainers.captions", "trainers.families", "trainers.fitting",
        "trainers.focus", "trainers.held_out", "trainers.placing", "trainers.plan", "trainers.priors",
        "trainers.recipe", "trainers.recipe_adapter", "trainers.recipe_docs", "trainers.recipe_fields",
        "trainers.recipe_section", "trainers.recipe_text", "trainers.rundir",
    },
}  # fmt: skip
# Rooms of studio that may load what trains: inside functions, or in modules that only a child imports.
HEAVY_ROOMS = ("studio/sampling/", "studio/datasets/captioners/", "studio/compare/", "studio/pocket/build")
CHILD_ONLY = (
    "studio/sampling/",
    "studio/datasets/captioners/",
    "studio/compare/",
    "studio/pocket/build",
    "trainers/",
)
# Where a family may be asked for by name.
FAMILY_ROOMS = ("trainers/families/", "registry/formats/", "studio/sampling/")


@dataclass(frozen=True)
class Import:
    """One import statement's target."""

    where: str
    line: int
    module: str  # as far as it names a module: `from a.b import c` gives a.b and a.b.c
    names: tuple[str, ...]
    at_start: bool  # runs when the module is imported
    for_types: bool  # below `if TYPE_CHECKING`

    def __str__(self) -> str:
        return f"{self.where}:{self.line} imports {self.module}"


@cache
def sources() -> list[Path]:
    return sorted(
        path
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        if "__pycache__" not in path.parts and "model" not in path.parts
    )


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def tree(path: Path) -> ast.Module:
    """What a file says, read once for all tests."""
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def imports(path: Path) -> tuple[Import, ...]:
    """Every import of a file; relative ones are resolved."""

    def visit(node: ast.AST, at_start: bool, for_types: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(name(path), node.lineno, alias.name, (), at_start, for_types)
        elif isinstance(node, ast.ImportFrom):
            parents = list(path.relative_to(ROOT).with_suffix("").parts[: -node.level]) if node.level else []
            module = ".".join([*parents, *([node.module] if node.module else [])])
            names = tuple(alias.name for alias in node.names)
            yield Import(name(path), node.lineno, module, names, at_start, for_types)
        inner_start = at_start and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        typing_only = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for child in ast.iter_child_nodes(node):
            below = for_types or (typing_only and child in node.body)  # pyright: ignore[reportAttributeAccessIssue]
            yield from visit(child, inner_start, below)

    return tuple(visit(tree(path), True, False))


def allowed(package: str, module: str, names: tuple[str, ...]) -> bool:
    """Whether a package may import the module, or all the names (modules) from it."""
    if module.split(".")[0] not in PACKAGES:
        return True
    for permitted in ALLOWED[package]:
        whole = "." not in permitted  # a whole package
        if module == permitted or (whole and module.startswith(permitted + ".")):
            return True
    return bool(names) and all(f"{module}.{item}" in ALLOWED[package] for item in names)


def test_the_packages_are_read():
    assert len(sources()) > 50
    assert {name(path).split("/")[0] for path in sources()} == set(PACKAGES)


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_imports_only_what_it_may(package):
    wrong = [
        str(found)
        for path in sources()
        if name(path).startswith(package + "/")
        for found in imports(path)
        if not allowed(package, found.module, found.names)
        and not (package == "studio" and found.for_types)
        and not (package == "studio" and found.where.startswith(HEAVY_ROOMS))
    ]
    assert wrong == []


def test_heavy_libraries_are_loaded_only_where_a_child_runs():
    """torch costs 2 to 9 seconds and 400 MB: outside the rooms of children it may not be imported at all."""
    wrong = [
        str(found)
        for path in sources()
        if not name(path).startswith(CHILD_ONLY)
        for found in imports(path)
        if found.module.split(".")[0] in HEAVY and not found.for_types and found.at_start
    ]
    assert wrong == []


def test_the_catalog_has_one_door():
    """Sessions and engines are made in the registry's own modules; trainers know no database."""
    wrong = [
        str(found)
        for path in sources()
        if not name(path).startswith("registry/") or name(path).startswith("registry/formats/")
        for found in imports(path)
        if found.module.split(".")[0] in {"sqlalchemy", "alembic", "sqlite3"}
        and not name(path).startswith("studio/doctor")  # asks SQLite for its version
    ]
    assert wrong == []
    openers = [
        name(path)
        for path in sources()
        if not name(path).startswith("trainers/")  # its `Session` is one of training
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Session"
    ]
    assert set(openers) == {"registry/sessions.py"}


def test_nobody_asks_which_family_it_is():
    """`if family == "sd15"` belongs into the family's own file."""
    families = {"sd15", "sd21", "sdxl", "sd35", "flux1"}
    wrong: list[str] = []
    for path in sources():
        if name(path).startswith(FAMILY_ROOMS):
            continue
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Compare):
                texts = {n.value for n in ast.walk(node) if isinstance(n, ast.Constant)}
                if texts & families:
                    wrong.append(f"{name(path)}:{node.lineno} {ast.unparse(node)}")
    assert wrong == []


def test_packages_import_nothing_by_themselves():
    """A package's `__init__` stays empty of imports; only the table of families holds something."""
    wrong = [
        str(found)
        for path in sources()
        if path.name == "__init__.py" and name(path) != "trainers/families/__init__.py"
        for found in imports(path)
    ]
    assert wrong == []


def test_files_stay_small():
    large = {
        name(path): count
        for path in sources()
        if (count := len(path.read_text(encoding="utf-8").splitlines())) > MAX_LINES
    }
    assert large == {}


LIGHT = """
import importlib, sys
importlib.import_module(sys.argv[1])
heavy = sorted(set(sys.argv[2].split(",")) & set(sys.modules))
print(",".join(heavy))
"""


def light_modules() -> list[str]:
    """Entry points and pages that a person waits for, and the modules below them."""
    pages = sorted((ROOT / "studio" / "app").rglob("*.py"))
    commands = sorted((ROOT / "studio" / "commands").glob("*.py"))
    fixed = [ROOT / file for file in ("studio/cli.py", "studio/workspace.py", "registry/catalog.py")]
    light = [*fixed, ROOT / "trainers/families/__init__.py", ROOT / "trainers/rundir.py", *commands, *pages]
    return [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in light
    ]


def test_what_a_person_waits_for_is_light():
    """Importing the command line, the catalog or any page leaves torch out; one process imports them all."""
    script = LIGHT.replace(
        "importlib.import_module(sys.argv[1])", "[importlib.import_module(m) for m in sys.argv[1].split(',')]"
    )
    # streamlit_app runs the app when it is imported, as Streamlit scripts do
    modules = [m for m in light_modules() if m != "studio.app.streamlit_app"]
    modules += ["studio.datasets.captioners.run"]  # and its table: what the child loads stays in the child
    command = [sys.executable, "-c", script, ",".join(modules), ",".join(HEAVY)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == ""


@pytest.mark.parametrize("module", ["studio.cli", "registry.catalog"])
def test_the_start_leaves_out_what_it_does_not_need(module):
    unwanted = [*HEAVY, "streamlit", "alembic", "numpy", "PIL"]
    if module == "studio.cli":
        unwanted.append("sqlalchemy")
    command = [sys.executable, "-c", LIGHT, module, ",".join(unwanted)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == ""
