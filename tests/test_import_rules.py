"""Rules of the source tree: which part may import which, and what no file may contain.

`docs/architecture.md` states the order; change it and this test together.
"""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# A part may import the parts of the lines above its own.
ORDER: tuple[tuple[str, ...], ...] = (
    ("utils", "untrusted", "jobs"),
    ("setting",),
    ("config",),
    ("models",),
    ("interventions",),
    ("var_patch", "records"),
    ("capture",),
    ("attention_processor",),
    ("methods",),
    ("attention_extractor",),
    ("drawing",),
    ("visualization", "sinks"),
    ("experiments",),
    ("evaluation",),
    ("web",),
    ("cli",),
    ("app",),
    ("__main__",),
)
LEVEL = {part: level for level, parts in enumerate(ORDER) for part in parts}
# `demo` makes the bundled model and is separate: it imports only these, and only these import it.
DEMO_SEES, SEES_DEMO = {"config", "utils", "models"}, {"evaluation", "web", "cli", "app"}

PAGE_ONLY = {"gradio", "gradio_client", "fastapi", "starlette", "uvicorn"}
SHADOWING = {"datasets", "evaluate", "inspect", "types", "trace"}
FAMILY_WORDS = (
    "image_token_id",
    "video_token_id",
    "vision_start_token_id",
    "vision_end_token_id",
    "<|image_pad|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|im_start|>",
    "<|im_end|>",
    "spatial_merge_size",
    "language_model.layers",
)


def tracked(*patterns: str) -> list[Path]:
    """Files tracked by git, so that build output and environments are not checked."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", *patterns],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode == 0:
        names = [Path(name) for name in listed.stdout.split("\0") if name]
        return [n for n in names if (ROOT / n).is_file() and not (ROOT / n).is_symlink()]
    # A copy without git: everything except hidden folders and output of runs.
    found = [path.relative_to(ROOT) for path in ROOT.rglob("*") if path.is_file()]
    kept = [path for path in found if not path.parts[0].startswith(".")]
    wanted = patterns or ("*",)
    return [p for p in kept if any(p.match(w) for w in wanted) and p.parts[0] != "cache"]


def part_of(path: Path) -> str:
    """The part that a project file belongs to; src/ contains the package's own two modules."""
    if path.parts[0] == "src":
        return path.stem
    return path.parts[0] if len(path.parts) > 1 else path.stem


def part_in(module: str) -> str | None:
    """The part that an imported module belongs to; None for a library, or the public API."""
    package, _, rest = module.partition(".")
    return rest.partition(".")[0] or None if package == "sinkscope" else None


def tree_of(path: Path) -> ast.Module:
    return ast.parse((ROOT / path).read_text(encoding="utf-8"), filename=str(path))


def imports_of(tree: ast.AST) -> Iterator[tuple[str, int, ast.AST]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno, node
        elif isinstance(node, ast.ImportFrom):
            if node.module == "sinkscope":
                for alias in node.names:
                    yield f"sinkscope.{alias.name}", node.lineno, node
            else:
                yield node.module or "." * node.level, node.lineno, node


def allowed(importer: str, imported: str) -> bool:
    """Whether one part of the project may import another."""
    if importer == imported or importer == "__init__":  # the public API names parts, lazily
        return True
    if importer == "demo":
        return imported in DEMO_SEES
    if imported == "demo":
        return importer in SEES_DEMO
    return LEVEL[imported] < LEVEL[importer]


def sources() -> list[Path]:
    found = [path for path in tracked("*.py") if path.parts[0] not in ("tests", "benchmarks")]
    assert len(found) > 10, "the list of files is suspiciously short"
    return found


def test_every_part_has_its_place() -> None:
    parts = {part_of(path) for path in sources()}
    assert parts <= set(LEVEL) | {"demo", "__init__"}, "a new part needs its line in ORDER"


def test_imports_point_downward() -> None:
    wrong = []
    for path in sources():
        for module, line, _ in imports_of(tree_of(path)):
            part = part_in(module)
            if part is not None and not allowed(part_of(path), part):
                wrong.append(f"{path}:{line} imports {module}")
    assert not wrong, wrong


ROOMS = {
    "web": (
        ("server",),
        ("components",),
        ("runs",),
        ("explore",),
        ("sinks",),
        ("evaluate", "experiments"),
        ("api",),
        ("",),  # what lies in the folder itself: the page, its start and its end
    ),
    "sinks": (("",), ("finding",), ("validating",), ("figures",)),
}


def test_rooms_of_a_part_import_downward() -> None:
    """docs/architecture.md, "Rooms": a folder of `web` imports only those before it, and itself."""
    wrong = []
    for part, order in ROOMS.items():
        level = {room: depth for depth, rooms in enumerate(order) for room in rooms}
        inside = [path for path in sources() if path.parts[0] == part]
        assert {path.parts[1] if len(path.parts) > 2 else "" for path in inside} == set(level)
        for path in inside:
            own = path.parts[1] if len(path.parts) > 2 else ""
            for module, line, _ in imports_of(tree_of(path)):
                _, top, *rest = [*module.split("."), ""]
                if top != part or not module.startswith("sinkscope."):
                    continue
                room = rest[0] if rest[0] in level else ""
                if room != own and level[room] >= level[own]:
                    wrong.append(f"{path}:{line} imports {module}")
    assert not wrong, wrong


def test_nobody_hands_many_values_over_by_place() -> None:
    """Settings are passed as classes, or by name (docs/architecture.md, "A setting")."""
    many = []
    for path in sources():
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                count = len(node.args.posonlyargs + node.args.args)
                most = 10 if path.parts[0] in ("cli", "web") else 12
                if count > most:
                    many.append(f"{path}:{node.lineno} {node.name} takes {count}")
    assert not many, many


def test_the_project_imports_itself_by_one_name() -> None:
    """`from sinkscope.x import y` everywhere: under a second name a file would be loaded twice."""
    parts = {part_of(path) for path in sources()} | {"benchmarks"}
    wrong = []
    for path in tracked("*.py"):
        for module, line, _ in imports_of(tree_of(path)):
            if module.partition(".")[0] in parts or module.startswith("sinkscope.tests"):
                wrong.append(f"{path}:{line} imports {module}")
    assert not wrong, wrong


def test_every_part_is_linked_into_the_package() -> None:
    linked = {path.name.removesuffix(".py") for path in (ROOT / "src" / "sinkscope").iterdir()}
    parts = {part_of(path) for path in sources()} | {"benchmarks", "docs"}
    assert linked - {"__pycache__"} == parts
    for path in (ROOT / "src" / "sinkscope").iterdir():
        if path.is_symlink():
            assert path.resolve() == ROOT / path.name, f"{path.name} leads elsewhere"


def test_the_order_itself() -> None:
    assert allowed("app", "web") and allowed("web", "config") and allowed("cli", "demo")
    assert not allowed("models", "capture") and not allowed("config", "models")
    assert not allowed("web", "cli") and not allowed("visualization", "sinks")
    assert not allowed("demo", "attention_extractor") and not allowed("models", "demo")


def test_only_the_page_knows_gradio_and_only_the_command_line_typer() -> None:
    wrong = []
    for path in sources():
        for module, line, _ in imports_of(tree_of(path)):
            top = module.partition(".")[0]
            if top in PAGE_ONLY and part_of(path) not in ("web", "app"):
                wrong.append(f"{path}:{line} imports {module}")
            if top in ("typer", "click") and part_of(path) not in ("cli", "app", "__main__"):
                wrong.append(f"{path}:{line} imports {module}")
    assert not wrong, wrong


def test_cv2_is_never_imported_at_the_top_of_a_module() -> None:
    """Its wheel needs system libraries that a bare machine lacks; see requirements.txt."""
    for path in tracked("*.py"):
        for node in tree_of(path).body:
            for module, line, _ in imports_of(node):
                assert module.partition(".")[0] != "cv2", f"{path}:{line}"


def test_imports_are_absolute() -> None:
    for path in tracked("*.py"):
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path}:{node.lineno}"


def strings_and_names(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Names, attributes and strings in code, except docstrings."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, documented) and node.body and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            if id(node) not in docstrings:
                yield node.value, node.lineno
        elif isinstance(node, ast.Attribute):
            yield ast.unparse(node), node.lineno
        elif isinstance(node, ast.Name):
            yield node.id, node.lineno


def test_only_models_knows_a_familys_tokens_and_modules() -> None:
    wrong = []
    for path in sources():
        if part_of(path) in ("models", "demo"):
            continue
        for text, line in strings_and_names(tree_of(path)):
            wrong += [f"{path}:{line} says {word}" for word in FAMILY_WORDS if word in text]
    assert not wrong, wrong


def test_nothing_unsafe() -> None:
    wrong = []
    for path in tracked("*.py"):
        tree = tree_of(path)
        for module, line, _ in imports_of(tree):
            if module.partition(".")[0] in ("pickle", "dill", "cloudpickle", "shelve", "marshal"):
                wrong.append(f"{path}:{line} imports {module}")
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call):
                continue
            name = ast.unparse(node.func)
            flags = {
                k.arg: k.value.value for k in node.keywords if isinstance(k.value, ast.Constant)
            }
            if (
                name in ("eval", "exec", "torch.load", "os.system")
                or name.startswith("sys.path.")
                or flags.get("weights_only") is False
                or flags.get("trust_remote_code") is True
                or flags.get("allow_pickle") is True
                or flags.get("shell") is True
            ):
                wrong.append(f"{path}:{node.lineno} calls {ast.unparse(node)[:60]}")
    assert not wrong, wrong


def test_nothing_happens_at_import_but_definitions() -> None:
    """No bare call at the top level of a module, and no loop or `with`."""
    wrong = []
    for path in sources():
        for node in tree_of(path).body:
            registers = path == Path("cli/main.py")  # a table of verbs, in typer's way
            bare_call = isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
            if isinstance(node, ast.For | ast.While | ast.With) or (bare_call and not registers):
                wrong.append(f"{path}:{node.lineno}")
    assert not wrong, wrong


def test_every_ignored_type_error_has_its_reason() -> None:
    """After the pragma, or in a comment on the line above."""
    bare = []
    for path in sources():
        above = ""
        for number, line in enumerate((ROOT / path).read_text(encoding="utf-8").splitlines(), 1):
            _, pragma, rest = line.partition("# type: ignore")
            reason = rest.startswith("[") and "  # " in rest
            if pragma and not (reason or (rest.endswith("]") and above.startswith("# "))):
                bare.append(f"{path}:{number}")
            above = line.strip()
    assert not bare, bare


def test_no_folder_or_file_shadows_an_import() -> None:
    for path in tracked():
        top = path.parts[0].removesuffix(".py")
        assert top not in SHADOWING, f"{path} would hide the module {top} from the root"


def test_the_rules_see_a_breach() -> None:
    """The checks above can fail: each finds its own violation in a line of source."""
    words = [text for text, _ in strings_and_names(ast.parse("x = config.image_token_id"))]
    assert any("image_token_id" in word for word in words)
    said = list(strings_and_names(ast.parse('"""<|im_end|>"""\nx = "<|im_end|>"')))
    assert ("<|im_end|>", 2) in said and ("<|im_end|>", 1) not in said
    assert [m for m, _, _ in imports_of(ast.parse("def f():\n    import cv2.dnn"))] == ["cv2.dnn"]
    by_name = imports_of(ast.parse("from sinkscope import web, load_model"))
    assert [part_in(m) for m, _, _ in by_name] == ["web", "load_model"]
