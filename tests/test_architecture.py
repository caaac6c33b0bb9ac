"""The house keeps its plan: imports point down only, nothing foreign runs, and everything has the size of one idea."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import woodshed

PACKAGE = Path(woodshed.__file__).parent
LEVELS = (
    ("__main__", "cli", "commands"),
    ("wizard", "monitor", "demo", "doctor", "toy", "console", "interrupt", "keyboard"),
    ("training", "sampling", "analysis"),
    ("adapters", "data"),
    ("models",),
    ("settings",),
    ("storage", "errors", "woodshed"),
)
"""Rooms from the top of the house to its bottom; `woodshed` is the package's own file."""
MAY_IMPORT_TOY = ("demo", "toy")
WITHOUT_TORCH = ("cli", "commands", "console", "interrupt", "keyboard", "settings", "errors", "woodshed")
LONGEST_FILE, LONGEST_FUNCTION = 350, 80
MAY_BE_LONGER = ("settings/schema.py",)
MAY_CATCH_ALL = {"models/encoders.py": 1}
"""Files with how many borders where a library raises nothing more specific than Exception."""
NEVER_CALLED = ("eval", "exec", "compile", "__import__", "breakpoint")
EXECUTING_FORMATS = ("marshal", "shelve", "dill", "cloudpickle", "joblib", "yaml", "runpy", "code")
NAMES_PICKLE_ERRORS = ("storage.py", "training/checkpoint.py")
MAY_USE_SUBPROCESS = {
    "models/machine.py": ("run", "TimeoutExpired"),  # the graphics driver's own program, by its full path
    "wizard/command_line.py": ("list2cmdline",),
}
PLAYERS = ("toy/players.py",)  # adapters of our own making, given to the library that others load them with
NAMED_BY_FILES = ("from_pretrained", "AutoModel", "AutoConfig", "AutoTokenizer", "get_class_from_dynamic_module")
NOT_STRICT_ABOUT_TENSORS = ("zip", "Field")  # their `strict` has nothing to do with missing weights

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Import:
    """One imported module, with what a reader needs to find it."""

    importer: "Module"
    name: str
    line: int
    runs_at_import: bool  # not inside a function, and not only for type checkers

    def __str__(self) -> str:
        return f"{self.importer.path.name}:{self.line} {self.importer.name} imports {self.name}"


class Module:
    """One source file, parsed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.text = path.read_text(encoding="utf-8")
        self.tree = ast.parse(self.text)
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        self.name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    @property
    def room(self) -> str:
        return room_of(self.name)

    @property
    def place(self) -> str:
        return self.path.relative_to(PACKAGE).as_posix()

    def calls(self) -> Iterator[ast.Call]:
        return (node for node in ast.walk(self.tree) if isinstance(node, ast.Call))

    def functions(self) -> Iterator[Function]:
        return (node for node in ast.walk(self.tree) if isinstance(node, Function))

    @cached_property
    def imports(self) -> list[Import]:
        return [
            Import(self, name, node.lineno, runs_at_import)
            for node, runs_at_import in _import_nodes(self.tree, runs_at_import=True)
            for name in self._imported(node)
        ]

    def _imported(self, node: ast.Import | ast.ImportFrom) -> list[str]:
        """Full names; `from woodshed.data import audio` imports the module, `from woodshed.data.audio import f` too."""
        if isinstance(node, ast.Import):
            return [alias.name for alias in node.names]
        base = node.module or ""
        if node.level:
            is_package = self.path.name == "__init__.py"
            parents = self.name.split(".")[: None if is_package and node.level == 1 else is_package - node.level]
            base = ".".join([*parents, *([base] if base else [])])
        return [f"{base}.{alias.name}" if is_ours(f"{base}.{alias.name}") else base for alias in node.names]


def _import_nodes(tree: ast.AST, *, runs_at_import: bool) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node, runs_at_import
        else:
            is_guard = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
            yield from _import_nodes(node, runs_at_import=runs_at_import and not is_guard | isinstance(node, Function))


def is_ours(name: str) -> bool:
    path = PACKAGE.parent.joinpath(*name.split("."))
    return name.split(".")[0] == "woodshed" and (path.is_dir() or path.with_suffix(".py").is_file())


def room_of(name: str) -> str:
    parts = name.split(".")
    return parts[1] if len(parts) > 1 else parts[0]


MODULES = [Module(path) for path in sorted(PACKAGE.rglob("*.py"))]
OURS = [
    item for module in MODULES for item in module.imports if room_of(item.name) and item.name.startswith("woodshed")
]
EVERY_MODULE = pytest.mark.parametrize("module", MODULES, ids=lambda module: module.place)


def level_of(room: str) -> int:
    return next(number for number, rooms in enumerate(LEVELS) if room in rooms)


def circle_in(graph: dict[str, set[str]]) -> list[str]:
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def test_the_reader_of_imports_sees_all_of_them():
    """What follows proves nothing if imports inside functions, under guards or of many kinds went unseen."""
    seen = {(item.importer.room, item.name) for item in OURS}
    assert ("commands", "woodshed.training.loop") in seen  # inside a function
    assert ("commands", "woodshed.settings.flags") in seen  # for type checkers only
    assert ("cli", "woodshed.commands.demo") in seen  # a module out of its package
    assert ("cli", "woodshed") in seen
    (inside,) = (
        item for item in OURS if item.importer.name == "woodshed.commands.demo" and item.name == "woodshed.demo"
    )
    assert not inside.runs_at_import
    assert {"torch"} < {item.name for module in MODULES for item in module.imports if item.runs_at_import}


def test_every_room_has_its_place():
    known = {room for rooms in LEVELS for room in rooms}
    homeless = {module.room for module in MODULES} - known
    assert not homeless, f"give {homeless} a level in LEVELS, and in the plan of the house"


def test_imports_point_down_only():
    up = [str(item) for item in OURS if level_of(item.importer.room) > level_of(room_of(item.name))]
    assert not up


def test_no_circle_between_modules_or_rooms():
    modules: dict[str, set[str]] = {}
    rooms: dict[str, set[str]] = {}
    for item in OURS:
        modules.setdefault(item.importer.name, set()).add(item.name)
        if item.importer.room != room_of(item.name):
            rooms.setdefault(item.importer.room, set()).add(room_of(item.name))
    assert not circle_in(modules)
    assert not circle_in(rooms)


def test_only_the_demo_plays_with_toys():
    players = [str(item) for item in OURS if room_of(item.name) == "toy" and item.importer.room not in MAY_IMPORT_TOY]
    assert not players


def test_what_must_answer_at_once_imports_no_torch():
    """Statically, so that the line is named; the next test asks the interpreter."""
    for module in MODULES:
        heavy = [item for item in module.imports if item.runs_at_import and item.name.split(".")[0] == "torch"]
        assert module.room not in WITHOUT_TORCH or not heavy, str(heavy[0])
    anywhere = [item for module in MODULES if module.room == "settings" for item in module.imports]
    assert not [str(item) for item in anywhere if item.name.split(".")[0] == "torch"]


def test_no_help_page_loads_torch():
    program = (
        "import sys, json, woodshed.cli as cli\n"
        "heavy = lambda: sorted({'torch', 'transformers', 'diffusers', 'tensorboard'} & set(sys.modules))\n"
        "found = {'import woodshed.cli': heavy()}\n"
        "for words in [['--help'], ['--version'], *([n, f] for n in cli.COMMANDS for f in ('--help', '--help-all'))]:\n"
        "    assert cli.main(words) == 0, words\n"
        "    found[' '.join(words)] = heavy()\n"
        "print(json.dumps(found), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stderr)
    assert len(found) > 10
    assert not {words: modules for words, modules in found.items() if modules}


@EVERY_MODULE
def test_only_the_console_prints_only_the_wizard_asks_and_nobody_runs_what_is_foreign(module):
    for call in module.calls():
        where = f"{module.place}:{call.lineno} {ast.unparse(call)}"
        if isinstance(call.func, ast.Name):
            assert call.func.id != "print" or module.name == "woodshed.console", where
            assert call.func.id != "input" or module.room == "wizard", where
            assert call.func.id not in NEVER_CALLED, where
        name = ast.unparse(call.func)
        words = {word.arg: ast.unparse(word.value) for word in call.keywords}
        assert words.get("trust_remote_code", "False") == "False", where
        assert words.get("shell", "False") == "False", where
        assert words.get("strict") != "False" or name in NOT_STRICT_ABOUT_TENSORS, where
        assert words.get("weights_only", "True") == "True", where
        assert name != "torch.load" or "weights_only" in words, where
        assert name not in ("pickle.load", "pickle.loads", "pickle.Unpickler", "os.system"), where


@EVERY_MODULE
def test_code_comes_from_this_package_and_its_dependencies_only(module):
    """No serialisation that can call functions, no program but the driver's, no class that a file names."""
    for item in module.imports:
        top = item.name.split(".")[0]
        assert top not in EXECUTING_FORMATS, str(item)
        assert top != "pickle" or module.place in NAMES_PICKLE_ERRORS, str(item)
        assert top != "subprocess" or module.place in MAY_USE_SUBPROCESS, str(item)
    for node in ast.walk(module.tree):
        where = f"{module.place}:{getattr(node, 'lineno', '?')} {ast.unparse(node)[:100]}"
        if isinstance(node, ast.Attribute):
            owner = ast.unparse(node.value)
            assert owner != "pickle" or node.attr == "UnpicklingError", where
            assert owner != "subprocess" or node.attr in MAY_USE_SUBPROCESS[module.place], where
            assert node.attr not in NAMED_BY_FILES or module.place in PLAYERS, where
        if isinstance(node, ast.Name):
            assert node.id not in NAMED_BY_FILES, where
        if isinstance(node, ast.keyword):
            assert node.arg != "allow_pickle" or ast.unparse(node.value) == "False", where
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            assert isinstance(node.args[0], ast.Constant), where


@EVERY_MODULE
def test_no_error_is_caught_blindly_or_dropped(module):
    borders = MAY_CATCH_ALL.get(module.place, 0)
    for node in ast.walk(module.tree):
        if isinstance(node, ast.ExceptHandler):
            where = f"{module.place}:{node.lineno}"
            assert node.type is not None, where
            caught = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
            names = set(map(ast.unparse, caught))
            assert "BaseException" not in names, where
            borders -= "Exception" in names
            assert borders >= 0, where
            assert not all(isinstance(line, ast.Pass) or ast.unparse(line) == "..." for line in node.body), where
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("suppress"):
            assert not {"Exception", "BaseException"} & set(map(ast.unparse, node.args)), (
                f"{module.place}:{node.lineno}"
            )


@EVERY_MODULE
def test_a_file_is_one_idea_and_a_function_fits_on_a_screen(module):
    lines = len(module.text.splitlines())
    assert lines <= LONGEST_FILE or module.place in MAY_BE_LONGER, f"{module.place} has {lines} lines"
    for function in module.functions():
        length = (function.end_lineno or 0) - function.lineno + 1
        assert length <= LONGEST_FUNCTION, f"{module.place}: {function.name} has {length} lines"


@EVERY_MODULE
def test_what_is_public_says_what_it_does_in_sentences(module):
    assert _is_sentence(ast.get_docstring(module.tree)), f"{module.place} opens with what it is for"
    for owner, node in _public(module.tree):
        name = f"{module.place}: {owner}{node.name}"
        assert _is_sentence(ast.get_docstring(node)), (
            f"{name} needs a docstring whose first paragraph ends in a full stop"
        )


def _public(tree: ast.AST, owner: str = "") -> Iterator[tuple[str, Function | ast.ClassDef]]:
    """Public functions, classes and methods; what sits inside a function or a private class is private."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, Function | ast.ClassDef) and not node.name.startswith("_"):
            yield owner, node
            if isinstance(node, ast.ClassDef):
                yield from _public(node, f"{node.name}.")


def _is_sentence(docstring: str | None) -> bool:
    return docstring is not None and docstring.split("\n\n")[0].rstrip().endswith(".")
