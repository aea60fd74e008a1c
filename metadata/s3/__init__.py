"""Values in S3, changed by compare-and-swap: what the archive stands on (`s3_store.py` there).

    bucket.py     s3://BUCKET/PREFIX              errors.py    what an answer's error means
    settings.py   how a server is spoken to       requests.py  a request, once or until it succeeds
    client.py     the library, loaded late        ranges.py    which bytes of an object
    values.py     read, swap, list, delete        trial.py     whether the conditions are honoured

Nothing here loads the library before it is used.
"""
