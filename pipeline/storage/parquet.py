"""Parquet files as bytes, read with every page checksum verified."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.base.errors import DamagedDataError


def read_row_groups(data: bytes, where: str, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """Read row groups one at a time.

    Args:
        data: Bytes of the file.
        where: Place of the file, for messages.
        columns: Columns to read (default: all).

    Raises:
        DamagedDataError: The file is not Parquet, or a page does not match its checksum.
    """
    try:
        file = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)
        for group in range(file.num_row_groups):
            yield file.read_row_group(group, columns=columns, use_threads=False)
    except (pa.ArrowException, OSError) as error:
        raise DamagedDataError(f"{where} cannot be read as Parquet: {error}") from error


def num_rows(data: bytes, where: str) -> int:
    """Number of rows of a Parquet file, after reading every row group and verifying every page checksum.

    Args:
        data: Bytes of the file.
        where: Path or URL of the file, for messages.

    Raises:
        DamagedDataError: The file is damaged.
    """
    return sum(len(table) for table in read_row_groups(data, where))
