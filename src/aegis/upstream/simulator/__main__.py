"""The simulator alone, as a process: see `command.py`."""

from aegis.upstream.simulator.command import main

main()
