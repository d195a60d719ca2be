"""Every message between services. Workers, gateways and the scheduler meet only here."""

from anole_shared.messages.adapters import (
    AdapterPrefetchRequested,
    AdapterRecord,
    AdapterResidencyChanged,
    AdaptersDiscovered,
    Residency,
)
from anole_shared.messages.memory import (
    MAX_DATAGRAM_BYTES,
    DemandReported,
    LeaseDenied,
    LeaseEnded,
    LeaseGranted,
    LeaseReleased,
    LeaseRenewed,
    LeaseRequested,
    LeaseRevoked,
    MemoryMessage,
    MemoryRefused,
    MemoryStatusReported,
    MemoryStatusRequested,
    PlugRequested,
    RegionReport,
    RegionsReported,
    RegionsRequested,
    RegionUnplugged,
    RevocationAnswered,
    UnplugRequested,
    WatchRequested,
)
from anole_shared.messages.requests import (
    FailureCode,
    FinishReason,
    RequestAborted,
    RequestFailed,
    RequestSubmitted,
    Sampling,
    SequenceAborted,
    SequenceAdmitted,
    SequenceFinished,
    SequenceOutput,
    Stopping,
    TokenIds,
    TokenLogprobs,
    TokensGenerated,
)
from anole_shared.messages.workers import (
    ServiceRecord,
    WorkerCapacity,
    WorkerLeft,
    WorkerRecord,
    WorkerReported,
)

Message = (
    RequestSubmitted
    | RequestAborted
    | SequenceAdmitted
    | SequenceAborted
    | TokensGenerated
    | SequenceFinished
    | RequestFailed
    | WorkerReported
    | WorkerLeft
    | AdaptersDiscovered
    | AdapterResidencyChanged
    | AdapterPrefetchRequested
)
"""The tagged union of all messages; `type` is the tag."""

__all__ = [
    "MAX_DATAGRAM_BYTES",
    "AdapterPrefetchRequested",
    "AdapterRecord",
    "AdapterResidencyChanged",
    "AdaptersDiscovered",
    "DemandReported",
    "FailureCode",
    "FinishReason",
    "LeaseDenied",
    "LeaseEnded",
    "LeaseGranted",
    "LeaseReleased",
    "LeaseRenewed",
    "LeaseRequested",
    "LeaseRevoked",
    "MemoryMessage",
    "MemoryRefused",
    "MemoryStatusReported",
    "MemoryStatusRequested",
    "Message",
    "PlugRequested",
    "RegionReport",
    "RegionUnplugged",
    "RegionsReported",
    "RegionsRequested",
    "RequestAborted",
    "RequestFailed",
    "RequestSubmitted",
    "Residency",
    "RevocationAnswered",
    "Sampling",
    "SequenceAborted",
    "SequenceAdmitted",
    "SequenceFinished",
    "SequenceOutput",
    "ServiceRecord",
    "Stopping",
    "TokenIds",
    "TokenLogprobs",
    "TokensGenerated",
    "UnplugRequested",
    "WatchRequested",
    "WorkerCapacity",
    "WorkerLeft",
    "WorkerRecord",
    "WorkerReported",
]
