"""Everything Bespeak raises on purpose.

BespeakError
├── UsageError          the request makes no sense (command line: exit 2)
├── InputError          a file or a line that cannot be read
├── StoreError          the event store cannot be opened, locked or written
├── ModelError          a model that is missing, damaged or cannot be built
└── EngineError         the search engine
    ├── EngineUnreachable   did not answer: refused, timed out, unknown host
    ├── EngineRefused       answered no: credentials, malformed request, not Elasticsearch
    └── IndexMissing        has no such index

Each message is one sentence that says what, where and what to do next. None of them holds a credential.
"""


class BespeakError(Exception):
    """An error whose message is one sentence for the user."""


class UsageError(BespeakError):
    pass


class InputError(BespeakError):
    pass


class StoreError(BespeakError):
    pass


class ModelError(BespeakError):
    pass


class EngineError(BespeakError):
    pass


class EngineUnreachable(EngineError):
    pass


class EngineRefused(EngineError):
    pass


class IndexMissing(EngineError):
    pass
