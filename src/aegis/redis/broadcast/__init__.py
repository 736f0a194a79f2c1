"""
Behind `aegis.redis.pubsub`: states and owners of the broadcast.

| what | owner | states |
|---|---|---|
| outbox, seq and book of a partition | its `Lane`'s task | idle, sending, restoring |
| how much waits in all outboxes | `Producer` | room, full |
| the connection that listens | `Feed`'s task | down, up |
| what has arrived of a partition | `Receiver`, in the socket's callback | idle, reading, live |
| reading a partition, once at a time | the `Place`'s task | - |
| what waits for a consumer | its `Subscription` | joining, live, ended |
| heartbeats | `Pulse`'s task | - |
| the end of old values | `Forgetting`'s task | - |
| number of partitions | Redis: the first process sets it | unset, set |

Data flows producer -> lane -> server -> receiver -> audience -> subscription. Nothing flows back but acknowledgements
to the lane and the answers to heartbeats.
"""
