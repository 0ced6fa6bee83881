"""Personal data and secrets in a text: patterns, and checksums where a kind of number has one."""

import ipaddress
import re

MOST_CHARACTERS = 1_000_000  # of a row that the patterns read

DOMAINS = r"(?:[a-z]{2}|com|org|net|edu|gov|mil|int|info|biz|name|email|online|site|tech|dev|app|cloud|xyz)"

COUNTRIES = (  # the codes that telephone numbers begin with (ITU-T E.164)
    r"(?:1|7|2[07]|3[0-469]|4[013-9]|5[1-8]|6[0-6]|8[1246]|9[0-58]|(?:2[1-69]|3[578]|42|5[09]|6[7-9]|8[05]|9[679])[0-9])"
)

SECRETS = {
    "a private key": re.compile(r"-----BEGIN [A-Z ]{0,20}PRIVATE KEY-----"),
    "an access key": re.compile(
        r"\b(?:hf_[A-Za-z0-9]{30,}|sk-[A-Za-z0-9_-]{20,}|gh[pousr]_[A-Za-z0-9]{36,}|github_pat_\w{40,}|AIza[\w-]{35}"
        r"|AKIA[0-9A-Z]{16}|xox[abp]-[\w-]{20,})"
    ),
    "an e-mail address": re.compile(
        rf"(?<![\w.@/])(?!git@)[A-Za-z0-9][\w.+-]{{0,63}}@(?:[A-Za-z0-9-]{{1,63}}\.){{0,3}}[A-Za-z0-9-]{{2,63}}\.{DOMAINS}"
        r"(?![\w(=]|[.:/][\w(])",
        re.IGNORECASE,
    ),
    "an IBAN": re.compile(r"\b[A-Z]{2}[0-9]{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[0-9]{1,3}\b)?"),
    # By itself: neither in a table of numbers nor the result of a sum.
    "a card number": re.compile(
        r"(?<![\d.,-])(?<!\d )(?<!=)(?<!= )(?:[2-6][0-9]{3}([ -])[0-9]{4}\1[0-9]{4}\1[0-9]{4}"
        r"|3[47][0-9]{2}([ -])[0-9]{6}\2[0-9]{5}|[2-6][0-9]{15}|3[47][0-9]{13})(?![\d,.-]*\d| ?[0-9*+/=-])"
    ),
    "a telephone number": re.compile(
        rf"(?<![\w.+*/=-])(?<!\d )(?:\+{COUNTRIES}[ .-](?:\([0-9]{{1,4}}\)[ .-]?)?[0-9](?:[ .-]?[0-9]){{6,11}}"
        rf"|\+(?:1[0-9]{{10}}|(?!1){COUNTRIES}[0-9]{{8,11}})|\([0-9]{{3}}\) ?[0-9]{{3}}-[0-9]{{4}}"
        r"|[2-9][0-9]{2}([-.])[2-9][0-9]{2}\1[0-9]{4})(?![\w-]| ?[*+/=])"
    ),
    "an IP address": re.compile(
        r"(?<![\w.=/])(?<!ection )(?<!ersion )(?<!OID )(?:[0-9]{1,3}\.){3}[0-9]{1,3}(?!\w|\.[0-9])"
    ),
}

MARKS = {
    "a private key": ("-----BEGIN",), "an e-mail address": ("@",),
    "an access key": ("hf_", "sk-", "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_", "AIza", "AKIA", "xox"),
}  # fmt: skip
DIGITS = re.compile(r"[0-9][0-9A-Z .()-]{5}")  # in every number of the kinds above

PUBLIC = re.compile(r".*@(?:[\w-]+\.)*(?:example\.(?:com|org|net)|example|test|invalid|localhost)$", re.IGNORECASE)

# Letters and digits after the two check digits, by country (ISO 13616).
IBANS = {
    "AT": 16, "BE": 12, "CH": 17, "CZ": 20, "DE": 18, "DK": 14, "ES": 20, "FI": 14, "FR": 23, "GB": 18, "GR": 23,
    "HU": 24, "IE": 18, "IT": 23, "LU": 16, "NL": 14, "NO": 11, "PL": 24, "PT": 21, "RO": 20, "SE": 20, "TR": 22,
}  # fmt: skip


def find_personal_data(text: str) -> str | None:
    """The kind of personal data in a text, never the data itself: what is dropped must not leak into a report."""
    text = text[:MOST_CHARACTERS]
    digits = DIGITS.search(text)
    for kind, pattern in SECRETS.items():
        if not (any(mark in text for mark in MARKS[kind]) if kind in MARKS else digits):
            continue  # a pattern costs more than a search for what each of its matches contains
        for found in pattern.finditer(text):
            if VALIDATORS.get(kind, bool)(found[0]):
                return f"contains {kind}"
    return None


def is_card(number: str) -> bool:
    """Luhn's checksum: nine in ten other numbers fail it."""
    digits = [int(digit) for digit in number if digit.isdigit()][::-1]
    doubled = [sum(divmod(2 * digit, 10)) for digit in digits[1::2]]
    return (sum(digits[::2]) + sum(doubled)) % 10 == 0


def is_iban(number: str) -> bool:
    """The length of its country's, and the checksum of ISO 7064: 96 in 97 others fail it."""
    bare = number.replace(" ", "")
    bare = bare[: 4 + IBANS.get(bare[:2], 0)]
    return len(bare) > 14 and int("".join(str(int(character, 36)) for character in bare[4:] + bare[:4])) % 97 == 1


def is_public_address(number: str) -> bool:
    try:
        return ipaddress.ip_address(number).is_global and number not in ("8.8.8.8", "1.1.1.1")  # everybody's
    except ValueError:
        return False


VALIDATORS = {
    "a card number": is_card, "an IBAN": is_iban, "an IP address": is_public_address,
    "an e-mail address": lambda address: not PUBLIC.match(address),
}  # fmt: skip
