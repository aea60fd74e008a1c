"""The named maximum of everything that crosses the wire, and how they relate.

A limit is checked where the thing is admitted, and the error names it. Limits that an operator may
change live in the packages' `config.py`; these are part of the protocol.
"""

from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB

BATCH_BYTES_MAX: Final = 8 * MIB
"""Encoded batch, header included. A larger one is refused at admission with `BatchTooLarge`."""

BATCH_RECORDS_MAX: Final = 65_536
"""Records in one batch."""

RECORD_BYTES_MAX: Final = BATCH_BYTES_MAX - 64 * KIB
"""Value, key and headers of one record; leaves room for the batch's own header and tables."""

MESSAGE_BYTES_MAX: Final = 2 * BATCH_BYTES_MAX
"""One gRPC message. It carries at least one whole batch, so it must be larger than one."""

HEADER_NAME_BYTES_MAX: Final = 65_535
"""UTF-8 bytes of a record header's name."""

RECORD_HEADERS_MAX: Final = 1_024
"""Headers of one record."""

LOG_NAME_CHARS_MAX: Final = 255
"""Characters of a log's name."""

FENCING_TOKEN_CHARS_MAX: Final = 64
"""Characters of a fencing token."""

PRODUCER_NAME_CHARS_MAX: Final = 128
"""Characters of a named producer's name."""

NAMED_PRODUCERS_MAX: Final = 1_000
"""Named producers that a log remembers: beyond it, the longest idle one is forgotten."""

REPLICAS_MAX: Final = 7
"""Copies of a batch: the quorum rules are proved exhaustively up to here."""

METADATA_VALUE_BYTES_MAX: Final = 512 * KIB
"""One value in the metadata store."""

METADATA_KEY_BYTES_MAX: Final = 480
"""One key in the metadata store, UTF-8 (LMDB takes 511)."""

READ_LAST_MAX: Final = 65_536
"""Records that `Log.read_last` holds at a time."""

READ_MANY_MAX: Final = 64
"""Logs that `Cluster.read_many` merges."""

LIST_PAGE_MAX: Final = 1_000
"""Entries in one page of a listing."""

NAMESPACES_MAX: Final = 1_000
"""Namespaces of a cluster: all of them are read when a log is created."""

CURSORS_PER_LOG_MAX: Final = 1_000
"""Cursors of one log."""

CURSOR_NAME_CHARS_MAX: Final = 100
"""Characters of a cursor's name."""

CURSOR_OWNER_CHARS_MAX: Final = 200
"""Characters of what a cursor's owner calls itself."""

NONCE_CHARS_MAX: Final = 64
"""Characters by which a caller marks what it may have to repeat."""

assert RECORD_BYTES_MAX < BATCH_BYTES_MAX < MESSAGE_BYTES_MAX
