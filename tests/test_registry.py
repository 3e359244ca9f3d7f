import sys
from dataclasses import dataclass
from types import SimpleNamespace

import pytest

from expunge import registry
from expunge.errors import ConfigError
from expunge.methods import Method, methods
from expunge.registry import Registry, registry_of


class Fruit:
    """Something to eat."""


@pytest.fixture
def fruits(tmp_path, monkeypatch):
    """A registry over a package with two modules; ``add`` writes another."""
    package = tmp_path / "orchard"
    package.mkdir()

    def add(name, body):
        (package / f"{name}.py").write_text(body, encoding="utf-8")

    (package / "__init__.py").write_text("REGISTRY = None\n", encoding="utf-8")
    for name in ("apple", "plum"):
        add(
            name,
            f"import orchard\n@orchard.REGISTRY.register('{name}')\n"
            f"class {name.title()}(orchard.REGISTRY.base):\n    '''A {name}.\n\n    More.'''\n",
        )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(registry, "entry_points", lambda group: [])
    found = Registry("fruit", Fruit, ("orchard",))
    import orchard

    orchard.REGISTRY = found
    yield SimpleNamespace(registry=found, add=add)
    for name in [name for name in sys.modules if name.split(".")[0] == "orchard"]:
        del sys.modules[name]


def test_a_file_in_the_package_is_an_entry_and_nothing_else_is_needed(fruits):
    assert fruits.registry.names() == ["apple", "plum"]
    assert list(fruits.registry) == ["apple", "plum"]
    assert "plum" in fruits.registry
    assert "pear" not in fruits.registry


def test_modules_are_imported_only_when_the_registry_is_asked(fruits):
    assert "orchard.apple" not in sys.modules
    assert fruits.registry.get("apple").__name__ == "Apple"
    assert "orchard.plum" in sys.modules


def test_an_unknown_name_names_the_nearest(fruits):
    with pytest.raises(ConfigError, match=r"^Unknown fruit 'aple'\. Did you mean 'apple'\?$"):
        fruits.registry.get("aple")


def test_an_unknown_name_far_from_all_lists_them(fruits):
    with pytest.raises(ConfigError, match=r"^Unknown fruit 'x'\. Known: apple, plum\.$"):
        fruits.registry.get("x")


def test_names_of_classes_and_objects_lead_back(fruits):
    apple = fruits.registry.get("apple")
    assert fruits.registry.name_of(apple) == fruits.registry.name_of(apple()) == "apple"
    with pytest.raises(ConfigError, match="Fruit is not a registered fruit"):
        fruits.registry.name_of(Fruit())


def test_descriptions_are_first_lines(fruits):
    assert fruits.registry.describe() == {"apple": "A apple.", "plum": "A plum."}


def test_a_taken_name_is_refused_even_by_a_class_of_the_same_name_elsewhere(fruits):
    fruits.registry.names()
    other = type("Apple", (Fruit,), {"__module__": "elsewhere"})
    with pytest.raises(ConfigError, match=r"fruit 'apple' is already registered by orchard\.apple"):
        fruits.registry.register("apple")(other)


def test_a_module_that_is_loaded_again_may_register_again(fruits):
    again = type("Apple", (Fruit,), {"__module__": "orchard.apple"})
    fruits.registry.names()
    assert fruits.registry.register("apple")(again) is again
    assert fruits.registry.get("apple") is again


def test_a_module_that_cannot_be_imported_is_reported_every_time(fruits):
    fruits.add("rotten", "import no_such_module_anywhere\n")
    for _ in range(2):
        with pytest.raises(ModuleNotFoundError, match="no_such_module_anywhere"):
            fruits.registry.names()


def test_plugins_join_when_a_name_is_not_found(fruits, monkeypatch):
    loaded = []

    def load():
        loaded.append(True)
        fruits.registry.register("mango")(type("Mango", (Fruit,), {}))

    monkeypatch.setattr(registry, "entry_points", lambda group: [SimpleNamespace(load=load)])
    fruits.registry.get("apple")
    assert loaded == []
    assert fruits.registry.get("mango").__name__ == "Mango"
    assert fruits.registry.names() == ["apple", "mango", "plum"]
    assert loaded == [True]


def test_a_registry_is_found_by_exactly_its_base_class():
    assert registry_of(Method) is methods
    assert registry_of(methods.get("npo")) is None
    assert registry_of(["unhashable"]) is None


def test_the_nine_methods_are_there():
    expected = {
        "finetune",
        "grad_ascent",
        "grad_diff",
        "npo",
        "random_labels",
        "retrain",
        "salun",
        "scrub",
        "ssd",
    }
    assert expected <= set(methods.names())


def test_a_field_that_would_hide_the_name_is_refused() -> None:
    @dataclass(frozen=True)
    class Kindly(Method):
        kind: str = "x"

    with pytest.raises(TypeError, match="Kindly has a field 'kind', which names the method"):
        methods.register("kindly")(Kindly)
    assert "kindly" not in methods.names()
