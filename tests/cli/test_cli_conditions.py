"""`append --match-offset|--fencing-token|--producer` and `log fence`, on a real cluster."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.command import Cli

pytestmark = [pytest.mark.cluster, pytest.mark.slow]


def test_an_append_gets_the_offset_that_it_must_get_or_none(cli: Cli, log: str) -> None:
    """Exit code 3, a condition was lost; the line says where the tail is."""
    assert cli.ok("append", log, "--match-offset", "0", stdin=b"a\nb\n").text.strip() == (
        "appended 2 records at offsets 0..1"
    )
    lost = cli("append", log, "--match-offset", "0", stdin=b"c\n")
    assert lost.code == 3
    assert "the tail is 2; appended 0 records, 1 record is not" in lost.err
    assert cli.ok("append", log, "--match-offset", "2", "--json", stdin=b"c\n").json["records"] == 1


def test_a_fence_shuts_out_other_tokens(cli: Cli, log: str) -> None:
    assert "from offset 0 on" in cli.ok("log", "fence", log, "one").text
    refused = cli("append", log, "--fencing-token", "two", stdin=b"a\n")
    assert (refused.code, "the log's is 'one'" in refused.err) == (3, True)
    cli.ok("append", log, "--fencing-token", "one", stdin=b"a\n")
    assert cli("log", "fence", log, "three", "--expected", "two").code == 3
    found = cli.ok("log", "fence", log, "three", "--expected", "one", "--json").json
    assert found == {"log": log, "fencing_token": "three", "offset": 2}
    assert "no fencing token" in cli.ok("log", "fence", log, "").text
    assert cli("log", "fence", log, "x" * 65).code == 2


def test_an_import_that_is_run_again_goes_on_where_it_stopped(
    cli: Cli, log: str, tmp_path: Path
) -> None:
    """A named producer over its own restarts: each line of the file is in the log once."""
    lines = [b"line %d\n" % number for number in range(500)]
    source = tmp_path / "import.txt"
    source.write_bytes(b"".join(lines[:300]))
    cli.ok("append", log, "--producer", "import", str(source))
    source.write_bytes(b"".join(lines))
    again = cli.ok("append", log, "--producer", "import", str(source), "--json").json
    assert (again["records"], again["passed_records"]) == (200, 300)
    third = cli.ok("append", log, "--producer", "import", str(source)).text
    assert third.strip() == "appended 0 records (500 records were there already)"
    assert cli.ok("read", log, "--from", "0").out.splitlines(keepends=True) == lines
    assert cli("append", log, "--producer", "x" * 129, str(source)).code == 2
