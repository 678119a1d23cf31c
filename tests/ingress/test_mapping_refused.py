"""A mapping that cannot be used is refused at the start, with the line that is wrong."""

from pathlib import Path

import pytest

from ingress.mapping import FILE_SIZE_MAX_BYTES, Mapping, read_mapping
from ledger.config import InvalidSetting


def mapping_of(text: str, directory: Path, **environment: str) -> Mapping:
    file = directory / "mapping.toml"
    file.write_bytes(text.encode())
    return read_mapping({"INGRESS_MAPPING": str(file), **environment})


SAME_NAMES = """
[fields]
body = { constant = '''
[default_currency]
x = 1
general = 1
''' }
[default_currency.reward_type]
x = "%s"
[default_currency]
general = "%s"
[default_currency.campaign]
x = "%s"
"""

BAD = [
    ("amount_strings = 1\n", 1, "amount_strings must be true or false"),
    ('\namount_strings = "true"', 2, "amount_strings must be true or false"),
    ("# a\n\nfield = 1\n", 3, "field is not known; what is: amount_strings, default_currency"),
    ("[field]\n", 1, "field is not known"),
    ("fields = 5\n", 1, "fields must be a table"),
    ("[[fields]]\n", 1, "fields must be a table"),
    ("default_currency = 'USD'", 1, "default_currency must be a table"),
    ("[default_currency]\ncampaign = 'USD'", 2, "default_currency.campaign must be a table"),
    ('[fields]\n\nrewardId = "id"\n', 3, "fields.rewardId is not known; what is: reward_id,"),
    ('[fields]\ncode = "code"\nreward_id = 5\n', 3, "fields.reward_id must be a path, or { const"),
    ("[fields]\nreward_id = ''\n", 2, "fields.reward_id must be keys joined by dots"),
    ("[fields]\ncode = 'a..b'\n", 2, "fields.code must be keys joined by dots"),
    ("[fields]\ntnc = ['a']\n", 2, "fields.tnc must be a path"),
    ("[fields]\ntype = {}\n", 2, "fields.type must be a path, or { constant = … }"),
    ("[fields]\ntype = { constant = 'a', b = 1 }\n", 2, "fields.type must be a path"),
    ("[fields]\ntype = { constant = 5 }\n", 2, "fields.type must be a string"),
    ("[fields.type]\nconstant = 5\n", 1, "fields.type must be a string"),
    ("fields.currency.constant = 'usd'\n", 1, "fields.currency must be a currency's code"),
    ("[fields]\nreward_id = {constant='r'}", 2, "fields.reward_id must come from the body"),
    ("[fields]\nuser_id = {constant='u'}", 2, "fields.user_id must come from the body"),
    ("[fields]\nreward_amount = {constant=-1}", 2, "fields.reward_amount must be a number that"),
    ("[fields]\nreward_amount = {constant=nan}", 2, "fields.reward_amount must be a number that"),
    ("[fields]\nwebhook_type = {constant='nudge'}", 2, "fields.webhook_type must be a string, but"),
    ("[default_currency]\ngenera = 'USD'\n", 2, "default_currency.genera is not known"),
    ("[default_currency]\ngeneral = 'usd'\n", 2, "default_currency.general must be a currency"),
    ("[default_currency]\ngeneral = 'USD'\n", 2, "default_currency.general contradicts INGRESS_"),
    ("[default_currency.campaign]\nc.1 = 'USD'", 2, "default_currency.campaign.c must be a curr"),
    # Who may see the details and not the code would see it in them.
    ("[fields]\n\ncode = 'details.couponCode'\n", 3, "fields.code leads to a code in the details"),
    ("[fields]\ncode = 'details'\n", 2, "fields.code leads to a code in the details"),
    ("[fields]\ndetails = 'code'\n", 2, "fields.details leads to a code in the details"),
    (
        "[fields]\ndetails = 'event.won'\ntype = 'event.type'\ncode = 'event.won.it.code'\n",
        4,
        "fields.code leads to a code in the details",
    ),
    # The same name stands in several tables, and in a text.
    (SAME_NAMES % ("1", "COINS", "USD"), 9, "default_currency.reward_type.x must be a currency"),
    (SAME_NAMES % ("USD", "1", "USD"), 11, "default_currency.general must be a currency's code"),
    (SAME_NAMES % ("USD", "COINS", "1"), 13, "default_currency.campaign.x must be a currency's"),
    ("[fields]\ncode = \n", 2, "Invalid value"),
    ("[fields]\ncode = 'a'\ncode = 'b'\n", 3, "Cannot overwrite a value"),
    ("[fields]\ncode = 'a'\n\ntnc = { constant = [\n'a',\n", 4, "Invalid value"),
]


@pytest.mark.parametrize(("text", "line", "words"), BAD)
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_a_bad_mapping_is_refused_with_its_line_and_what_is_wrong(
    text, line, words, newline, tmp_path
):
    with pytest.raises(InvalidSetting) as refusal:
        mapping_of(text.replace("\n", newline), tmp_path, INGRESS_DEFAULT_CURRENCY="COINS")
    assert str(refusal.value).startswith(f"INGRESS_MAPPING line {line}: {words}")
    assert refusal.value.__context__ is None


@pytest.mark.parametrize(
    "fields",
    [
        "code = 'detailsCode'",
        "code = 'details2.code'",
        "code = 'event.code'\ndetails = 'event.codes'",
        "code = 'event'\ndetails = 'event.codes'",
        "code = 'details.code'\ndetails = 'event'",
        "code = { constant = 'SAME' }",
    ],
)
def test_a_code_beside_the_details_is_not_refused(fields, tmp_path):
    assert mapping_of(f"[fields]\n{fields}\n", tmp_path)


def test_a_file_that_cannot_be_read_is_refused(tmp_path):
    file = tmp_path / "mapping.toml"
    environment = {"INGRESS_MAPPING": str(file)}
    with pytest.raises(InvalidSetting, match="cannot be read: No such file or directory"):
        read_mapping(environment)
    file.write_bytes(b"[fields]\ncode = '\xff'\n")
    with pytest.raises(InvalidSetting, match="line 2: is not UTF-8"):
        read_mapping(environment)
    file.write_bytes(b"#" * FILE_SIZE_MAX_BYTES)
    assert read_mapping(environment) == Mapping()
    file.write_bytes(b"#" * (FILE_SIZE_MAX_BYTES + 1))
    with pytest.raises(InvalidSetting, match="is over 65536 bytes"):
        read_mapping(environment)
    with pytest.raises(InvalidSetting, match="cannot be read: Is a directory"):
        read_mapping({"INGRESS_MAPPING": str(tmp_path)})


def test_no_refusal_says_a_value(tmp_path):
    for text in ('[fields]\ncode = {constant = "SECRET\\u0000"}', "[fields]\ncode = 'SECRET.'"):
        with pytest.raises(InvalidSetting) as refusal:
            mapping_of(text, tmp_path)
        assert "SECRET" not in str(refusal.value)


@pytest.mark.parametrize("currency", ["usd", "US D", "A" * 21, "USD\n"])
def test_a_default_currency_that_is_no_code_is_refused(currency):
    with pytest.raises(InvalidSetting, match="INGRESS_DEFAULT_CURRENCY must be a currency's code"):
        read_mapping({"INGRESS_DEFAULT_CURRENCY": currency})
