"""The licence of a pack in the header of its card, as the Hugging Face Hub takes it."""

from __future__ import annotations

# The hub's own identifiers of licences, which are SPDX's in lower case. It takes no others.
_HUB_LICENCES = frozenset((
    "afl-3.0", "agpl-3.0", "apache-2.0", "artistic-2.0", "bsd-2-clause", "bsd-3-clause", "bsd-3-clause-clear",
    "bsl-1.0", "cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-4.0", "cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0",
    "cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0", "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0", "cc-by-nd-4.0",
    "cc-by-sa-3.0", "cc-by-sa-4.0", "cc0-1.0", "cdla-permissive-1.0", "cdla-permissive-2.0", "cdla-sharing-1.0",
    "ecl-2.0", "epl-1.0", "epl-2.0", "etalab-2.0", "eupl-1.1", "eupl-1.2", "gpl-2.0", "gpl-3.0", "isc", "lgpl-2.1",
    "lgpl-3.0", "lppl-1.3c", "mit", "mpl-2.0", "ms-pl", "ncsa", "ofl-1.1", "osl-3.0", "postgresql", "unlicense",
    "wtfpl", "zlib",
))  # fmt: skip


def header_of(spdx: str) -> str:
    """Lines of YAML that name a licence.

    Args:
        spdx: SPDX identifier of the licence.
    """
    lower = spdx.lower()
    for own in (lower, lower.removesuffix("-only"), lower.removesuffix("-or-later")):
        if own in _HUB_LICENCES:
            return f"license: {own}"
    return f"license: other\nlicense_name: {lower}\nlicense_link: https://spdx.org/licenses/{spdx}.html"
