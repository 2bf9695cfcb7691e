"""Where a request goes: those with one context to one replica, which has it encoded.

Each context has an order of all replicas (rendezvous hashing), the same at every router, so nothing
has to be told around: requests go to the first in it, and to the next where that one is full or
gone. When a replica leaves, only its contexts move. Serve's own multiplexing learns from reports of
replicas instead, which lag behind, and keeps every id it ever saw as a metric.
"""

from __future__ import annotations

import hashlib
import random

from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica

__all__ = ["HomeRouter", "order"]


def order(key: str, replicas: list[str]) -> list[str]:
    """Replicas by how much they are the context's home."""
    return sorted(
        replicas,
        key=lambda replica: hashlib.blake2b(f"{key}\0{replica}".encode(), digest_size=8).digest(),
    )


class HomeRouter(RequestRouter):
    """Routes by the request's multiplexed model id, which is its context.

    Requests without go to the less busy of two.
    """

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """Replicas in the order to try them."""
        key = ""
        if pending_request is not None:
            pending_request.routing_context.should_backoff = True
            key = pending_request.metadata.multiplexed_model_id
        if not key:
            return [random.sample(candidate_replicas, min(2, len(candidate_replicas)))]
        by_name = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        return [[by_name[name]] for name in order(key, list(by_name))]
