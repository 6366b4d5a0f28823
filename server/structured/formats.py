"""Values of the keyword `format`: regular expressions for those that constrain a string, ranges for those of integers.

Every expression describes a part of what its standard allows, the part that all readers of it agree on: real dates,
no leap seconds, no quoted local parts. Ours, because the compiler's own admit `2023-02-31` and `010.1.1.1`.
"""

from __future__ import annotations

YEAR = r"(?:[1-9]\d{3}|0[1-9]\d\d|00[1-9]\d|000[1-9])"
LEAP_YEAR = r"(?:\d\d(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)"
DATE = (
    rf"(?:{YEAR}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12]\d|3[01])|(?:0[469]|11)-(?:0[1-9]|[12]\d|30)|"
    rf"02-(?:0[1-9]|1\d|2[0-8]))|{LEAP_YEAR}-02-29)"
)
CLOCK = r"(?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d(?:\.\d{1,6})?"
OFFSET = r"(?:Z|[+\-](?:[01]\d|2[0-3]):[0-5]\d)"
DURATION_TIME = r"T(?:\d{1,9}H(?:\d{1,9}M(?:\d{1,9}S)?)?|\d{1,9}M(?:\d{1,9}S)?|\d{1,9}S)"
DURATION_DATE = r"(?:\d{1,9}Y(?:\d{1,9}M(?:\d{1,9}D)?)?|\d{1,9}M(?:\d{1,9}D)?|\d{1,9}D)"
LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9]|-[A-Za-z0-9]){0,30}"
BYTE = r"(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)"
HEX = r"[0-9a-fA-F]{1,4}"
UNRESERVED = r"A-Za-z0-9\-._~"
PERCENT = r"%[0-9A-Fa-f]{2}"
PATH_CHAR = rf"(?:[{UNRESERVED}!$&'()*+,;=:@]|{PERCENT})"
QUERY_CHAR = rf"(?:[{UNRESERVED}!$&'()*+,;=:@/?]|{PERCENT})"
AUTHORITY = rf"(?:(?:[{UNRESERVED}!$&'()*+,;=:]|{PERCENT})*@)?{LABEL}(?:\.{LABEL}){{0,3}}(?::\d{{1,4}})?"
AFTER_PATH = rf"(?:\?{QUERY_CHAR}*)?(?:#{QUERY_CHAR}*)?"
PATHS = rf"(?:/{PATH_CHAR}*)*"
ROOTLESS = rf"{PATH_CHAR}+{PATHS}"
NO_COLON = rf"(?:[{UNRESERVED}!$&'()*+,;=@]|{PERCENT})+{PATHS}"
POINTER = r"(?:/(?:[ !#-.0-\[\]-}]|~[01])*)*"
VARIABLE = rf"(?:[A-Za-z0-9_]|{PERCENT})(?:\.?(?:[A-Za-z0-9_]|{PERCENT}))*(?::[1-9]\d{{0,2}}|\*)?"
EMAIL_ATOM = r"[A-Za-z0-9_+\-]+"

STRINGS = {
    "date": DATE,
    "time": CLOCK + OFFSET,
    "date-time": rf"{DATE}T{CLOCK}{OFFSET}",
    "duration": rf"P(?:{DURATION_DATE}(?:{DURATION_TIME})?|{DURATION_TIME}|\d{{1,9}}W)",
    "email": rf"{EMAIL_ATOM}(?:\.{EMAIL_ATOM})*@(?:{LABEL}\.){{1,3}}[A-Za-z]{{2,24}}",
    "hostname": rf"{LABEL}(?:\.{LABEL}){{0,3}}",
    "ipv4": rf"(?:{BYTE}\.){{3}}{BYTE}",
    "ipv6": "|".join(
        [
            rf"(?:{HEX}:){{7}}{HEX}",
            *(rf"(?:{HEX}:){{{n}}}(?::{HEX}){{1,{7 - n}}}" for n in range(1, 7)),
            rf":(?::{HEX}){{1,7}}",
            rf"(?:{HEX}:){{1,7}}:",
            "::",
        ]
    ),
    "uuid": r"[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[1-8][0-9a-fA-F]{3}-[89abAB][0-9a-fA-F]{3}-[0-9a-fA-F]{12}",
    "uri": rf"[A-Za-z][A-Za-z0-9+\-.]*:(?://{AUTHORITY}{PATHS}|/(?:{ROOTLESS})?|{ROOTLESS}){AFTER_PATH}",
    "uri-reference": rf"(?://{AUTHORITY}{PATHS}|/(?:{ROOTLESS})?|{NO_COLON}|){AFTER_PATH}",
    "uri-template": (rf"(?:[!#$&(-;=?-\[\]_a-z~]|{PERCENT}|\{{[+#./;?&]?{VARIABLE}(?:,{VARIABLE})*\}})*"),
    "json-pointer": POINTER,
    "relative-json-pointer": rf"(?:0|[1-9]{{1,8}})(?:#|{POINTER})",
}

INTEGERS = {
    "int8": (-(2**7), 2**7 - 1),
    "int16": (-(2**15), 2**15 - 1),
    "int32": (-(2**31), 2**31 - 1),
    "int64": (-(2**63), 2**63 - 1),
    "uint8": (0, 2**8 - 1),
    "uint16": (0, 2**16 - 1),
    "uint32": (0, 2**32 - 1),
    "uint64": (0, 2**64 - 1),
}

# Hints for editors and code generators: no validator of JSON Schema looks at them.
HINTS = frozenset(
    {
        *("float", "double", "decimal", "byte", "binary", "base64url", "password", "textarea", "color"),
        *("markdown", "html", "path", "file-path", "directory-path", "json-string", "multi-host-uri"),
        *("ipvanyaddress", "ipvanyinterface", "ipvanynetwork", "email-list", "phone", "code", "sf-integer"),
    }
)

# Patterns that zod writes beside a format. Ours of that format is within them.
REPEATED_AS_PATTERN = {
    "email": frozenset(
        {
            r"^(?!\.)(?!.*\.\.)([A-Za-z0-9_'+\-\.]*)[A-Za-z0-9_+-]@([A-Za-z0-9][A-Za-z0-9\-]*\.)+[A-Za-z]{2,}$",
        }
    ),
    "uuid": frozenset(
        {
            r"^([0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[1-8][0-9a-fA-F]{3}-[89abAB][0-9a-fA-F]{3}-[0-9a-fA-F]{12}|"
            r"00000000-0000-0000-0000-000000000000|ffffffff-ffff-ffff-ffff-ffffffffffff)$",
        }
    ),
}
