"""
The main job, whole: real servers, a strict simulator of the upstreams, several collectors, a subscriber, a verdict.

`orchestrate.py` starts and ends the processes and watches them; `collector.py` and `subscriber.py` are such processes,
each through the public API only; `report.py` holds the rules and how they are shown; `_child.py` is the thread between
a process and the one that started it.
"""
