"""`contracts.pseudonyms` computed by Spark, and the users who were erased and must not come back."""

from __future__ import annotations

import hashlib

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from contracts.pseudonyms import LENGTH, key_bytes
from contracts.settings import settings
from contracts.tables import ERASED
from spark_jobs import storage

_BLOCK_BYTES = 64
"""Of SHA-256."""

REDACTION = "0x[0-9A-Fa-f]{128}|X'[0-9A-Fa-f]{128}'"
"""For `spark.sql.redaction.string.regex`: what the key looks like in a query plan."""


def pseudonym_of(user_id: Column, key: str) -> Column:
    """`contracts.pseudonyms.pseudonym` of each value (a string), by functions of Spark alone; null stays null.

    The key, padded to a block as HMAC does, is part of the query plan. Nothing that our jobs write holds a plan: the
    web UI and the event log are off. Whoever prints one (`explain`) or turns these on sets
    `spark.sql.redaction.string.regex` to `REDACTION`; it hides the key in plans, not in texts of errors.

    Raises:
        InputError: the key is empty.
    """
    block = key_bytes(key)
    if len(block) > _BLOCK_BYTES:
        block = hashlib.sha256(block).digest()
    block = block.ljust(_BLOCK_BYTES, b"\0")
    inner, outer = (F.lit(bytearray(byte ^ pad for byte in block)) for pad in (0x36, 0x5C))
    message = F.encode(F.trim(user_id), "UTF-8")
    digest = F.sha2(F.concat(outer, F.unhex(F.sha2(F.concat(inner, message), 256))), 256)
    return F.substring(digest, 1, LENGTH)


def without_erased(frame: DataFrame, user_id: str = "user_id") -> DataFrame:
    """The rows of `frame` without those of users whom `spark_jobs.erase` has erased; rows without a user stay.

    Args:
        frame: has the stored id of the user (a pseudonym where ids are personal) in column `user_id`.
    """
    if not storage.total_rows(ERASED):
        return frame
    erased = storage.read(frame.sparkSession, ERASED).select(F.col("user_id_hash").alias("_erased"))
    hashed = pseudonym_of(F.col(user_id), settings().secret("pseudonym_key"))
    return frame.join(F.broadcast(erased), hashed == F.col("_erased"), "left_anti")
