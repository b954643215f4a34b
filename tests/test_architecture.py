"""docs/architecture.rst against the code: the tree, the imports, and where each promise is kept."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "gatewayd"
PAGE = (ROOT / "docs" / "architecture.rst").read_text()
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")

WITHOUT_TWISTED = {"wire", "http1", "exchange"}


def section(title: str) -> str:
    """The text of one section of the page."""
    found = re.search(rf"^{title}\n-+\n(.*?)(?=^[^\n]+\n---|\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert found, title
    return found[1]


def block(text: str, start: str) -> list[str]:
    """The lines of the indented block that begins with `start`."""
    lines = text[text.index(start) :].splitlines()
    end = next((n for n, line in enumerate(lines) if n and line[:1] not in ("", " ")), len(lines))
    return [line for line in lines[:end] if line.strip()]


def tree() -> Iterator[tuple[str, str]]:
    """Each module of the page's tree, as its path in gatewayd/, with what the page says of it."""
    folder = ""
    for line in block(section("The rooms"), "    gatewayd/")[1:]:
        indent = len(line) - len(line.lstrip())
        name, _, text = line.strip().partition(" ")
        if indent == 4:
            return
        if indent == 8:
            folder = ""
        if name.endswith("/"):
            folder = name
        else:
            yield folder + name, text.strip()


def test_the_tree_names_every_module_and_no_other() -> None:
    named = [path for path, _ in tree()]
    assert len(named) == len(set(named))
    assert sorted(named) == sorted(str(path.relative_to(PACKAGE)) for path in MODULES)


def test_the_tree_describes_each_module() -> None:
    assert [path for path, text in tree() if not text] == []


# -- imports -------------------------------------------------------------------------------------


def allowed() -> set[tuple[str, str]]:
    """The pairs (importing room, imported room) of the lines ``a, b -> c -> d``."""
    pairs: set[tuple[str, str]] = set()
    for line in block(section("Imports"), "    tap ->"):
        steps = [[room.strip() for room in step.split(",")] for step in line.split("->")]
        for position, rooms in enumerate(steps):
            later = [room for step in steps[position + 1 :] for room in step]
            pairs.update((room, other) for room in rooms for other in later)
    return pairs


def imported(path: Path) -> Iterator[list[str]]:
    """The dotted names that a module imports, under TYPE_CHECKING too; relative ones made whole."""
    package = list(path.relative_to(ROOT).parent.parts)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base += node.module.split(".") if node.module else []
            yield from ([*base, alias.name] for alias in node.names)


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def test_imports_between_rooms_run_as_the_page_says() -> None:
    rooms = {room_of(path) for path in MODULES}
    pairs, wrong = allowed(), set[tuple[str, str]]()
    for path in MODULES:
        room, module = room_of(path), str(path.relative_to(PACKAGE))
        for names in imported(path):
            if names[0] == "twisted" and room in WITHOUT_TWISTED:
                wrong.add((module, "twisted"))
            elif names[0] == "gatewayd" and len(names) > 1:
                other = names[1]
                if other in rooms - {room} and (room, other) not in pairs:
                    wrong.add((module, other))
    assert not wrong


def test_every_room_stands_in_the_lines_on_imports() -> None:
    assert {room for pair in allowed() for room in pair} == {room_of(path) for path in MODULES}


# -- promises ------------------------------------------------------------------------------------


def defined(path: Path) -> set[str]:
    """What a module defines: functions, classes and values; methods and attributes of classes."""
    found: set[str] = set()

    def add(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            match node:
                case ast.ClassDef():
                    found.add(prefix + node.name)
                    add(node.body, f"{prefix}{node.name}.")
                case ast.FunctionDef() | ast.AsyncFunctionDef():
                    found.add(prefix + node.name)
                case ast.AnnAssign(target=ast.Name(id=name)):
                    found.add(prefix + name)
                case ast.Assign():
                    found.update(prefix + t.id for t in node.targets if isinstance(t, ast.Name))
                case ast.If():
                    add(node.body + node.orelse, prefix)

    add(ast.parse(path.read_text()).body, "")
    return found


def promises() -> list[str]:
    """The items of the numbered list of promises."""
    return re.split(r"^\d+\. ", section("Where each promise is kept"), flags=re.MULTILINE)[1:]


def test_each_promise_names_files_and_functions_that_exist() -> None:
    items = promises()
    assert len(items) == 10
    for item in items:
        places = re.findall(r"((?:``[\w.]+``(?:,| and)?\s+)+)\(``([\w/]+\.py)``\)", item)
        assert places, item
        assert len(places) == item.count(".py``"), f"name the functions before each file: {item}"
        for names, file in places:
            path = PACKAGE / file
            assert path.exists(), file
            for name in re.findall(r"``([\w.]+)``", names):
                assert name in defined(path), f"{file} has no {name}"


def test_each_promise_has_tests_named_after_it() -> None:
    tests = "".join(path.read_text() for path in sorted((ROOT / "tests").rglob("test_*.py")))
    tested = {int(number) for number in re.findall(r"def test_promise_(\d+)_", tests)}
    assert tested == set(range(1, len(promises()) + 1))


# -- tests ---------------------------------------------------------------------------------------

#: Modules that only declare types.
WITHOUT_TESTS = {"relaying/client.py"}


def test_each_module_has_a_test_module() -> None:
    tests = {path.stem for path in (ROOT / "tests").glob("test_*.py")}
    for path in MODULES:
        name, room = path.stem.strip("_"), room_of(path)
        if str(path.relative_to(PACKAGE)) not in WITHOUT_TESTS:
            assert tests & {f"test_{name}", f"test_{room}_{name}"}, path.relative_to(PACKAGE)


def test_nothing_is_imported_from_a_test_module() -> None:
    for path in (ROOT / "tests").rglob("*.py"):
        for names in imported(path):
            assert not any(name.startswith("test_") for name in names[:-1]), path
