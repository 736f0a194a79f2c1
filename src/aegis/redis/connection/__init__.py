"""
Behind `aegis.redis.client`: how commands reach servers, and what servers push.

| what | owner | states |
|---|---|---|
| one connection and its watch (`link`, made by `open`) | the socket's callbacks | open, retiring, closed |
| a connection that comes back (`steady`), and its backlog | its task | closed, connected, reconnecting |
| one server (`node`), or the members of a cluster (`members`) | the survey's task | see there |
| commands to a cluster (`cluster`, `pieces`, `slots`, `topology`), the Sentinels (`sentinel`) | their caller | - |
| channels and invalidations (`feed`, on a cluster `feeds`) | its own connection's task | down, up |
| whether a server is worth asking (`outage`) | its probe | well, out |

Commands flow client -> node or cluster -> steady -> link -> server; replies wake `waiters` from within the read.
"""
