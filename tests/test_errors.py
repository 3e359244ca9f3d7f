import pytest

from expunge import errors
from expunge.errors import ConfigError, ExpungeError, MissingExtra, did_you_mean


@pytest.mark.parametrize(
    ("path", "parent", "expected"),
    [
        ("lr", "optim", "optim.lr: bad"),
        ("", "optim", "optim: bad"),
        ("lr", "", "lr: bad"),
        ("", "", "bad"),
        ("optim.lr", "methods[0]", "methods[0].optim.lr: bad"),
    ],
)
def test_a_configuration_error_says_where_seen_from_above(path, parent, expected):
    assert str(ConfigError("bad", path).under(parent)) == expected


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("sallun", " Did you mean 'salun'?"),
        ("randomlabels", " Did you mean 'random_labels'?"),
        ("zzz", " Known: npo, random_labels, salun."),
    ],
)
def test_the_nearest_name_or_all_of_them(name, said):
    assert did_you_mean(name, ["salun", "npo", "random_labels"]) == said


def test_nothing_is_suggested_where_there_is_nothing():
    assert did_you_mean("x", []) == ""


def test_a_missing_extra_says_how_to_install_it():
    said = "The scope 'lora' needs packages that are not installed. Install them: pip install 'expunge[llm]'"
    assert str(MissingExtra("The scope 'lora'", "llm")) == said


def test_every_error_of_the_package_can_be_caught_as_one():
    classes = [
        value
        for value in vars(errors).values()
        if isinstance(value, type) and value.__module__ == errors.__name__
    ]
    assert len(classes) >= 8
    assert all(issubclass(cls, ExpungeError) for cls in classes)
