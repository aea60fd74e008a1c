"""Records what this version puts on the wire and stores, for later versions to read.

    python tools/record_messages.py            # what was not recorded yet
    python tools/record_messages.py --check    # exit 1 and name what was not

Everything goes to `tests/compat/recorded/<version>/`: the descriptors of all messages, an example
of each (`messages/`), an example of each stored form (`stored/`), as bytes and as what they mean.
What was recorded is never written again: the tests would no longer say that it can be read.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
RECORDED: Final = ROOT / "tests" / "compat" / "recorded"

sys.path.insert(0, str(ROOT))


def main(arguments: list[str] | None = None) -> int:
    """Record or check; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing, name what is missing")
    check: bool = parser.parse_args(arguments).check
    missing = {path: data for path, data in wanted().items() if not path.exists()}
    for path, data in sorted(missing.items()):
        sys.stderr.write(f"{'missing' if check else 'recorded'}: {path.relative_to(ROOT)}\n")
        if not check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    return 1 if check and missing else 0


def wanted() -> dict[Path, bytes]:
    """What there should be of this version."""
    from sharedlog import __version__
    from tools.compat_forms import FORMS
    from tools.compat_messages import descriptor_set, examples, message_types, text

    folder = RECORDED / __version__
    serialized = descriptor_set().SerializeToString(deterministic=True)
    found = {folder / "descriptors.bin": serialized}
    for name, descriptor in message_types().items():
        for number, data in examples(descriptor):
            place = folder / "messages" / f"{name}{number}"
            found[place.with_name(place.name + ".bin")] = data
            found[place.with_name(place.name + ".txt")] = text(descriptor, data).encode()
    for form in FORMS:
        data = form.encode()
        found[folder / "stored" / f"{form.name}.bin"] = data
        found[folder / "stored" / f"{form.name}.txt"] = form.text(data).encode()
    return found


if __name__ == "__main__":
    sys.exit(main())
