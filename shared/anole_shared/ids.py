"""Identities that cross module borders, as distinct types so that they cannot be mixed up."""

from typing import NewType

RequestId = NewType("RequestId", str)
AdapterId = NewType("AdapterId", str)
WorkerId = NewType("WorkerId", str)
GatewayId = NewType("GatewayId", str)
LeaseId = NewType("LeaseId", str)
RegionId = NewType("RegionId", str)
