"""Values in S3, changed by compare-and-swap; and a metadata store that is made of them.

What the archive (`loglet/archive/s3_store.py`) and the metadata store both stand on:

    bucket.py     s3://BUCKET/PREFIX              errors.py    what an answer's error means
    settings.py   how a server is spoken to       requests.py  a request, once or until it succeeds
    client.py     the library, loaded late        ranges.py    which bytes of an object
    values.py     read, swap, list, delete        trial.py     whether the conditions are honoured
    listing.py    reading a page of a listing

The metadata store alone:

    store.py      `S3MetadataStore`               records.py   what an object holds, what followed
    config.py     its settings                    objects.py   reading them, and what is kept
    names.py      keys as names of objects        watchers.py  what a watch was told
                                                  polling.py   one poll for all watches

Nothing here loads the library before it is used.
"""
