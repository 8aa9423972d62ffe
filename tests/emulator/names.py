"""How the service turns names into legal ones."""
import re
import unicodedata

# What decomposition does not take apart.
_LETTERS = {
    "đ": "d", "Đ": "D", "ð": "d", "Ð": "D", "ł": "l", "Ł": "L", "ø": "o", "Ø": "O", "ß": "ss", "ẞ": "SS", "æ": "ae", "Æ": "AE",
    "œ": "oe", "Œ": "OE", "þ": "th", "Þ": "TH", "ı": "i", "ħ": "h", "Ħ": "H", "ŧ": "t", "Ŧ": "T", "ŋ": "n", "Ŋ": "N",
}
SYSTEM_COLUMNS = {"oid", "tableoid", "xmin", "cmin", "xmax", "cmax", "ctid"}
MAX_COLUMN_NAME = 64
NAME = re.compile(r"[A-Za-z0-9_-]+\Z")
COLUMN_NAME = re.compile(r"[A-Za-z0-9_-]+\Z")


def to_ascii(text):
    """Letters without their marks; what has no counterpart in ASCII vanishes."""
    text = "".join(_LETTERS.get(letter, letter) for letter in text)
    return unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()


def clean_column(name):
    """The name that a column of this header gets in a table."""
    name = re.sub(r"[^A-Za-z0-9_]+", "_", to_ascii(name)).strip("_")
    return name + "_" if name.lower() in SYSTEM_COLUMNS else name


def webalize_column(name):
    """POST webalize/column-names: unlike a create it shortens, knows the euro sign, and leaves system names alone."""
    if any(unicodedata.category(letter) == "Cc" for letter in name):
        return ""
    name = to_ascii(name.replace("€", "EUR"))
    return re.sub(r"[^A-Za-z0-9_]+", "_", name).strip("_")[:MAX_COLUMN_NAME]


def webalize_display(name):
    """POST webalize/display-name; empty when nothing is left."""
    return re.sub(r"[^A-Za-z0-9_]+", "-", to_ascii(name)).strip("-")


def column_problem(name):
    """Why NAME cannot be a column, or None."""
    if name == "":
        return "Column name cannot be empty."
    if len(name) > MAX_COLUMN_NAME:
        return "Column name '%s' is too long. Maximum allowed length is %d characters." % (name, MAX_COLUMN_NAME)
    if name.startswith("_"):
        return "Column name '%s' cannot start with underscore." % name
    if not COLUMN_NAME.match(name):
        return "Column name '%s' contains not allowed characters. Only alphanumeric characters, dash and underscores are allowed." % name
    if name.lower() in SYSTEM_COLUMNS:
        return "Column name '%s' is reserved." % name
    return None


def object_name(name):
    """The part of an object key that is made of a file's name."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", to_ascii(name)) or "file"
