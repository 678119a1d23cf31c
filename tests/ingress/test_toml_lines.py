"""The line that is named is the line on which it stands."""

import pytest

from ingress.toml_lines import InvalidToml, line_of, load

TEXT = '''# a comment

name = "root"
list = [
    "[table]",  # not a header
    "name = 1",
]

[table]
name = "one"
"quoted.key" = 1
text = """
name = "not a key"
[not.a.table]
"""
  [table.below]  # indented, with a comment
name = "two"
dotted.name = 1

[ other . "one" ]
name = { name = "three" }
'''


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        (["name"], 3),
        (["list"], 4),
        (["table"], 9),
        (["table", "name"], 10),
        (["table", "quoted.key"], 11),
        (["table", "text"], 12),
        (["table", "below"], 16),
        (["table", "below", "name"], 17),
        (["table", "below", "dotted"], 18),
        (["table", "below", "dotted", "name"], 18),
        (["other"], 20),
        (["other", "one", "name"], 21),
        (["other", "one", "name", "name"], 21),
    ],
)
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_each_key_stands_on_the_first_line_of_its_statement(keys, line, newline):
    text = TEXT.replace("\n", newline)
    assert load(text)
    assert line_of(text, keys) == line


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a = 1\nb =\n", 2),
        ("a = 1\nb", 2),
        ("[a]\nb = 1\n[a]\n", 3),
        ("a = 1\n\na = 2", 3),
        ("a = 1\nb = [\n1,\n2,\n", 2),
        ('a = 1\nb = """\n[c]\n', 2),
        ('a = 1\nb = "c\nd = 1', 2),
        ("a = 1\n\n# c\n[b\nc = 1\n", 4),
        ("a = 1\nb = 2026-13-01\n", 2),
        (f"a = 1\nb = {'1' * 5000}\nc = 1\n", 2),
        (f"a = 1\n[b]\nc = {'[' * 5000}{']' * 5000}\n", 3),
        ("a = 1\nb = 1e99999999999999999999\n", 2),
        ("a = 1\n\0\n", 2),
        ("\ufeffa = 1\n", 1),
    ],
)
def test_what_is_not_toml_is_refused_with_the_line_on_which_it_goes_wrong(text, line):
    with pytest.raises(InvalidToml) as refusal:
        load(text)
    assert refusal.value.line == line
    assert refusal.value.__context__ is None


def test_a_refusal_does_not_say_what_stands_in_the_text():
    with pytest.raises(InvalidToml) as refusal:
        load('[fields]\ncode = { constant = "SECRET" SECRET }\n')
    assert refusal.value.line == 2
    assert "SECRET" not in str(refusal.value)
