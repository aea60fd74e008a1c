"""The archived kind of loglet: a log's history as objects, docs/archive-format.md.

| module          | what                                                             |
|-----------------|------------------------------------------------------------------|
| `object_format` | an object: blocks, index, footer; pure                           |
| `manifest`      | what of a log is archived, and what may follow what; pure        |
| `config`        | the section `[archive]`                                          |
| `url`           | which store a URL names, and what a key is; pure                 |
| `object_store`  | where objects lie: the interface, and how a store is opened      |
| `probe`         | whether a store has the properties that all this stands on       |
| `file_store`    | a folder, for development; `folder` is what it does on the disk  |
| `s3_store`      | S3, and what speaks its protocol; the other `s3_*` are its parts |
"""
